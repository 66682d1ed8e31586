//! A config of the controller whose own ports do not lead to it, with those of another source below.

use crate::{LinkFact, link_of};
use holdfast_model::desired::Desired;
use holdfast_model::net::{Adapter, Layers, Link, LinkKind, Port, PortUsage};

/// The config with the addressing of `other` on its ports. Adapters of the config keep their names, costs and labels, so that
/// network instances find them; ports that the config keeps from the host stay so; what `other` has beyond the config is added.
#[must_use]
pub fn overlay(desired: &Desired, other: &Layers, links: &[LinkFact]) -> Desired {
    let mut made = desired.clone();
    for adapter in other.adapters.iter().filter(|adapter| adapter.reaches_controller()) {
        let Some(on) = place(&mut made, other, &adapter.on, links) else { continue };
        match made.adapters.iter_mut().find(|own| own.on == on) {
            Some(own) => {
                let Adapter { network, v4, v6, dns, domain, mtu, .. } = adapter.clone();
                let Adapter { name, on, cost, labels, .. } = own.clone();
                *own = Adapter { name, on, network, v4, v6, dns, domain, mtu, cost, management: true, labels };
            }
            None => made.adapters.push(Adapter { on, ..adapter.clone() }),
        }
    }
    made
}

/// The label in `made` of what `other` calls `label`, added when the config has no such port or link; `None` when it cannot be used.
fn place(made: &mut Desired, other: &Layers, label: &str, links: &[LinkFact]) -> Option<String> {
    if let Some(link) = other.links.iter().find(|link| link.label == label) {
        let LinkKind::Vlan { parent, id } = &link.kind else { return None };
        let kind = LinkKind::Vlan { parent: place(made, other, parent, links)?, id: *id };
        if let Some(own) = made.links.iter().find(|own| own.kind == kind) {
            return Some(own.label.clone());
        }
        let label = free_label(made, label, &link.interface)?;
        made.links.push(Link { label: label.clone(), interface: link.interface.clone(), kind });
        return Some(label);
    }
    let port = other.ports.iter().find(|port| port.label == label)?;
    let interface = link_of(port, links)?;
    if let Some(own) = made.ports.iter().find(|own| link_of(own, links).as_ref() == Some(&interface)) {
        let usable = !matches!(own.usage, PortUsage::Disabled | PortUsage::Dedicated | PortUsage::None);
        return usable.then(|| own.label.clone());
    }
    let label = free_label(made, label, &interface)?;
    made.ports.push(Port { label: label.clone(), ..port.clone() });
    Some(label)
}

/// The first of the two that no port or link of the config has.
fn free_label(made: &Desired, label: &str, interface: &str) -> Option<String> {
    let taken = |text: &str| made.ports.iter().any(|p| p.label == text) || made.links.iter().any(|l| l.label == text);
    [label, interface].into_iter().find(|text| !taken(text)).map(str::to_owned)
}
