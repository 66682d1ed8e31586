//! Network cards: what exists by itself.

use crate::error::NetlinkError;
use crate::rtnl::Rtnl;
use holdfast_engine::{Fact, Graph};
use holdfast_plan::LinkFact;
use holdfast_plan::kinds::{Card, ItemKey, NetItem};
use std::path::Path;

/// The physical Ethernet interfaces that are present, with their PCI addresses where sysfs tells them.
pub async fn physical_links(rtnl: &Rtnl) -> Result<Vec<LinkFact>, NetlinkError> {
    let links = rtnl.links().await?;
    let physical = links.into_iter().filter(|l| l.ethernet && l.kind.is_empty());
    Ok(physical.map(|l| LinkFact { pci: pci_address(&l.name), name: l.name, mac: l.mac }).collect())
}

/// The last part of the device's sysfs path that is a PCI address: a virtio device lies below its PCI function.
fn pci_address(name: &str) -> String {
    let device = Path::new("/sys/class/net").join(name).join("device");
    let path = std::fs::canonicalize(device).unwrap_or_default();
    let mut parts = path.iter().rev().filter_map(|p| p.to_str());
    parts.find(|p| is_pci_address(p)).unwrap_or_default().to_owned()
}

/// `0000:00:03.0`
fn is_pci_address(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 12
        && bytes.iter().enumerate().all(|(i, b)| match i {
            4 | 7 => *b == b':',
            10 => *b == b'.',
            _ => b.is_ascii_hexdigit(),
        })
}

/// What the engine is to be told: cards that are present, and those of `current` that are not any more.
#[must_use]
pub fn card_facts(links: &[LinkFact], current: &Graph<NetItem>) -> Vec<Fact<NetItem>> {
    let present = links.iter().map(|l| Fact::Present(NetItem::from(Card { name: l.name.clone() }).into()));
    let absent = current.iter().filter_map(|(key, _)| match key {
        ItemKey::Card(name) if !links.iter().any(|l| l.name == *name) => Some(Fact::Absent(key.clone())),
        _ => None,
    });
    present.chain(absent).collect()
}

#[cfg(test)]
mod tests {
    use super::is_pci_address;

    #[test]
    fn pci_addresses_are_told_from_other_names() {
        assert!(is_pci_address("0000:00:1f.6"));
        for other in ["virtio0", "0000:00:1f-6", "pci0000:00", "0000:00:1g.6"] {
            assert!(!is_pci_address(other), "{other}");
        }
    }
}
