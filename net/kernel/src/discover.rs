//! Reads back from the kernel what this program made before, so that a restart changes nothing that is right.

use crate::error::NetlinkError;
use crate::link::Link;
use crate::netlink::Netlink;
use crate::rtnl::Rtnl;
use crate::sysctl;
use holdfast_engine::Graph;
use holdfast_model::net::Prefix;
use holdfast_plan::LinkFact;
use holdfast_plan::firewall::{Family, Table};
use holdfast_plan::item::{Address, Bridge, BridgePort, Hop, ItemKey, NetItem, Port, Resolver, Route, Tap, Vlan};
use holdfast_plan::rules::TABLE;

use std::net::IpAddr;
use std::path::Path;

/// Items that exist now. Those with no mark of their own (physical ports, kernel variables, the resolver) are looked for
/// where `intended` names them.
pub async fn discover(
    rtnl: &Rtnl,
    nft: &Netlink,
    resolver: &Path,
    intended: &Graph<NetItem>,
) -> Result<Graph<NetItem>, NetlinkError> {
    let mut graph = Graph::new();
    let links = rtnl.links().await?;
    let name_of = |index: u32| links.iter().find(|l| l.index == index).map(|l| l.name.clone());
    for link in &links {
        graph.extend(link_item(link, intended, &name_of));
        if let Some(bridge) = link.master.and_then(|i| links.iter().find(|l| l.index == i))
            && bridge.ours
        {
            graph.insert(NetItem::BridgePort(BridgePort {
                port: link.name.clone(),
                bridge: bridge.name.clone(),
                isolated: link.isolated,
            }));
        }
    }
    let addresses = rtnl.addresses().await?;
    for a in addresses.iter().filter(|a| a.ours) {
        if let Some(link) = name_of(a.index) {
            graph.insert(NetItem::Address(Address { link, prefix: a.prefix }));
        }
    }
    for r in rtnl.routes().await?.into_iter().filter(|r| r.ours) {
        let link = r.output.and_then(name_of);
        let source = addresses
            .iter()
            .find(|a| Some(a.index) == r.output && Some(a.prefix.address) == r.source)
            .map(|a| a.prefix);
        let hop = match (r.unreachable, link, source, r.router) {
            (true, ..) => Hop::Unreachable,
            (_, Some(link), Some(source), Some(router)) => Hop::Gateway { router, link, source },
            (_, Some(link), Some(source), None) => Hop::Link { link, source },
            // Its source address is gone: not as we make routes, remove it by its key.
            (_, Some(link), None, _) => {
                Hop::Link { link, source: Prefix { address: IpAddr::from([0, 0, 0, 0]), length: 0 } }
            }
            _ => continue,
        };
        graph.insert(NetItem::Route(Route { table: r.table, destination: r.destination, metric: r.metric, hop }));
    }
    graph.extend(rtnl.rules().await?.into_iter().map(NetItem::PolicyRule));
    for family in [Family::Inet, Family::Bridge] {
        for name in nft.tables(family)?.into_iter().filter(|n| n == TABLE) {
            // Its content is not read: an intended table differs from this one and replaces it, which disturbs no
            // connection.
            graph.insert(NetItem::Nftables(Table { family, name, chains: Vec::new() }));
        }
    }
    for (key, item) in intended.iter() {
        match (key, &**item) {
            (ItemKey::Sysctl(path), NetItem::Sysctl(wanted)) => {
                let is_so = sysctl::read(path).is_ok_and(|v| v == wanted.value);
                if is_so || sysctl::is_absent(path) {
                    graph.insert(item.clone());
                }
            }
            (ItemKey::Resolver, NetItem::Resolver(wanted)) => {
                let there = std::fs::read_to_string(resolver);
                if there.is_ok_and(|t| t == Resolver::text(wanted)) {
                    graph.insert(item.clone());
                }
            }
            _ => {}
        }
    }
    Ok(graph)
}

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

fn link_item(link: &Link, intended: &Graph<NetItem>, name_of: &impl Fn(u32) -> Option<String>) -> Option<NetItem> {
    let name = link.name.clone();
    // One of ours that is down was left half made: no MTU makes it differ from what is intended.
    let mtu = if link.up { link.mtu } else { 0 };
    match link.kind.as_str() {
        "bridge" if link.ours => Some(NetItem::Bridge(Bridge { name, mac: link.mac, mtu })),
        "tun" if link.ours => {
            Some(NetItem::Tap(Tap { name, owner_uid: link.tun_owner?, multi_queue: link.tun_multi_queue, mtu }))
        }
        "vlan" if link.ours => {
            Some(NetItem::Vlan(Vlan { name, parent: name_of(link.lower?)?, id: link.vlan_id?, mtu }))
        }
        _ => match intended.get(&NetItem::link_key(&name)) {
            Some(NetItem::Port(_)) => Some(NetItem::Port(Port { name, mtu })),
            _ => None,
        },
    }
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
