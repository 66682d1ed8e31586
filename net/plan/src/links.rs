//! Links: which kernel interface a label of the model means, and what has to be made below it.

use crate::kinds::{NetItem, Port as PortItem, Vlan};
use crate::{Input, LinkFact, names};
use holdfast_engine::Graph;
use holdfast_model::desired::Desired;
use holdfast_model::net::{Link, LinkKind, Port, PortUsage};
use std::collections::BTreeMap;

/// A label's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lower {
    /// Kernel name.
    pub(crate) interface: String,
    /// The tag, when it is a VLAN.
    pub(crate) vlan: Option<Tag>,
}

/// A VLAN's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Interface of the port below.
    pub parent: String,
    /// 1..=4094.
    pub id: u16,
}

/// The interface that a port of the model is, if it is present.
#[must_use]
pub fn link_of(port: &Port, links: &[LinkFact]) -> Option<String> {
    let by = |f: &dyn Fn(&LinkFact) -> bool| links.iter().find(|l| f(l)).map(|l| l.name.clone());
    if !port.interface.is_empty() {
        by(&|l| l.name == port.interface)
    } else if !port.pci.is_empty() {
        by(&|l| l.pci == port.pci)
    } else {
        by(&|l| l.name == port.label)
    }
}

/// What the label of a port or link means.
pub(crate) fn lower(input: &Input, label: &str) -> Result<Lower, String> {
    let desired = input.desired;
    let Some(link) = desired.links.iter().find(|link| link.label == label) else {
        return Ok(Lower { interface: port(input, label)?, vlan: None });
    };
    match &link.kind {
        LinkKind::Vlan { parent, id } => {
            let other = desired.links.iter().find(|other| other.label == *parent);
            if let Some(Link { label, kind, .. }) = other {
                return Err(format!(
                    "VLAN {}: a VLAN over {label} ({kind}) is not supported by this version",
                    link.label
                ));
            }
            let parent = port(input, parent).map_err(|text| format!("VLAN {}: {text}", link.label))?;
            let name = &link.interface;
            if input.links.iter().any(|fact| fact.name == *name) || names::is_ours(name) {
                return Err(format!("VLAN {}: its interface name {name} is taken", link.label));
            }
            Ok(Lower { interface: name.clone(), vlan: Some(Tag { parent, id: *id }) })
        }
        LinkKind::Bond { .. } | LinkKind::Wireless(_) => {
            Err(format!("stands on {label} ({}), which this version does not support", link.kind))
        }
    }
}

/// The interface of the port with this label, when the host may use it.
fn port(input: &Input, label: &str) -> Result<String, String> {
    let Desired { ports, .. } = input.desired;
    let port = ports.iter().find(|p| p.label == label);
    let port = port.ok_or_else(|| format!("needs port {label:?}, which is not among the ports of the model"))?;
    let kept = match port.usage {
        PortUsage::ManagementAndApps | PortUsage::Management | PortUsage::Shared => None,
        PortUsage::Dedicated => Some("dedicated to an app"),
        PortUsage::Disabled => Some("disabled"),
        PortUsage::None => Some("none"),
    };
    if let Some(usage) = kept {
        return Err(format!("needs port {label}, whose usage ({usage}) keeps it from the host"));
    }
    link_of(port, input.links).ok_or_else(|| {
        let wanted = [&port.interface, &port.pci, &port.label].into_iter().find(|t| !t.is_empty());
        let present: Vec<&str> = input.links.iter().map(|l| l.name.as_str()).collect();
        format!(
            "interface {} of port {} is missing; present are {}",
            wanted.map_or("", String::as_str),
            port.label,
            present.join(", ")
        )
    })
}

/// The interfaces of adapters: cards brought up and VLANs over them. `wanted`: each adapter's interface, tag and MTU. A card
/// carries the largest frames that anything over it sends.
pub(crate) fn items<'a>(wanted: impl Iterator<Item = (&'a str, Option<&'a Tag>, u32)>, graph: &mut Graph<NetItem>) {
    let mut cards: BTreeMap<&str, u32> = BTreeMap::new();
    for (interface, tag, mtu) in wanted {
        let card = match tag {
            None => interface,
            Some(Tag { parent, id }) => {
                graph.insert(NetItem::Vlan(Vlan { name: interface.to_owned(), parent: parent.clone(), id: *id, mtu }));
                parent
            }
        };
        let largest = cards.entry(card).or_insert(mtu);
        *largest = mtu.max(*largest);
    }
    for (name, mtu) in cards {
        graph.insert(NetItem::Port(PortItem { name: name.to_owned(), mtu }));
    }
}
