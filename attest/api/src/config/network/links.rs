//! Layer 2: VLANs, bonds and radios. What of them this version can make is the planner's to say; here only what makes no sense is
//! refused.

use super::ports::{label, physical_address};
use super::{Faults, Named, ObjectKind, interface_name, quoted, read_all};
use crate::proto::common::{BondMode as WireMode, LacpRate, PhyIoType};
use crate::proto::config::{BondAdapter, EdgeDevConfig, PhysicalIo, VlanAdapter};
use holdfast_model::net::{BondMode, Link, LinkKind, Medium, Port};

/// Reads bonds first, since VLANs may lie over them.
pub(super) fn read(config: &EdgeDevConfig, ports: &[Port], faults: &mut Faults) -> Vec<Link> {
    let mut links: Vec<Link> = config.device_io_list.iter().filter_map(radio).collect();
    let named = |label| Named { id: label, name: label };
    let bonds = read_all(
        ObjectKind::Port,
        &config.bonds,
        faults,
        |wire| named(wire.logicallabel.as_str()),
        |wire| bond(wire, ports, &links).map(Some).map_err(|text| format!("{text}; the bond is not made")),
    );
    links.extend(bonds);
    let vlans = read_all(
        ObjectKind::Port,
        &config.vlans,
        faults,
        |wire| named(wire.logicallabel.as_str()),
        |wire| vlan(wire, ports, &links).map(Some).map_err(|text| format!("{text}; the VLAN is not made")),
    );
    links.extend(vlans);
    links
}

/// Labels of the ports that carry the frames of a port or link.
pub(super) fn ports_below<'a>(label: &'a str, links: &'a [Link]) -> Vec<&'a str> {
    match links.iter().find(|link| link.label == label).map(|link| &link.kind) {
        None => vec![label],
        Some(LinkKind::Vlan { parent, .. }) => ports_below(parent, links),
        Some(LinkKind::Bond { members, .. }) => members.iter().map(String::as_str).collect(),
        Some(LinkKind::Wireless(_)) => Vec::new(),
    }
}

fn radio(io: &PhysicalIo) -> Option<Link> {
    let medium = match io.ptype() {
        PhyIoType::PhyIoNetWlan => Medium::Wifi,
        PhyIoType::PhyIoNetWwan => Medium::Cellular,
        _ => return None,
    };
    let interface = physical_address(io, "ifname");
    Some(Link { label: label(io).to_owned(), interface, kind: LinkKind::Wireless(medium) })
}

fn own_label(label: &str, ports: &[Port], links: &[Link]) -> Result<String, String> {
    if label.is_empty() {
        return Err("label: expected a text, found none".to_owned());
    }
    if ports.iter().any(|port| port.label == label) || links.iter().any(|link| link.label == label) {
        return Err(format!("label {:?}: another port or link has it", quoted(label)));
    }
    Ok(label.to_owned())
}

fn bond(wire: &BondAdapter, ports: &[Port], links: &[Link]) -> Result<Link, String> {
    let label = own_label(&wire.logicallabel, ports, links)?;
    let mode = match wire.bond_mode() {
        WireMode::BalanceRr => BondMode::BalanceRr,
        WireMode::ActiveBackup => BondMode::ActiveBackup,
        WireMode::BalanceXor => BondMode::BalanceXor,
        WireMode::Broadcast => BondMode::Broadcast,
        WireMode::BondMode8023ad => BondMode::Lacp { fast: wire.lacp_rate() == LacpRate::Fast },
        WireMode::BalanceTlb => BondMode::BalanceTlb,
        WireMode::BalanceAlb => BondMode::BalanceAlb,
        WireMode::Unspecified => return Err(format!("mode: expected 1 to 7, found {}", wire.bond_mode)),
    };
    if wire.lower_layer_names.is_empty() {
        return Err("members: expected at least one port, found none".to_owned());
    }
    if let Some(other) = wire.lower_layer_names.iter().find(|name| !ports.iter().any(|port| port.label == **name)) {
        return Err(format!("member {:?}: no usable port has that label", quoted(other)));
    }
    let interface = interface_name("interface", &wire.interface_name)?;
    Ok(Link { label, interface, kind: LinkKind::Bond { members: wire.lower_layer_names.clone(), mode } })
}

fn vlan(wire: &VlanAdapter, ports: &[Port], links: &[Link]) -> Result<Link, String> {
    let label = own_label(&wire.logicallabel, ports, links)?;
    let parent = wire.lower_layer_name.clone();
    let over_bond = |link: &Link| link.label == parent && matches!(link.kind, LinkKind::Bond { .. });
    if !ports.iter().any(|port| port.label == parent) && !links.iter().any(over_bond) {
        return Err(format!("lower layer {:?}: no usable port or bond has that label", quoted(&parent)));
    }
    let id = u16::try_from(wire.vlan_id).ok().filter(|id| (1..=4094).contains(id));
    let id = id.ok_or_else(|| format!("id: expected 1 to 4094, found {}", wire.vlan_id))?;
    let interface = interface_name("interface", &wire.interface_name)?;
    Ok(Link { label, interface, kind: LinkKind::Vlan { parent, id } })
}
