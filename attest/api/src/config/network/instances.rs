//! Network instances: the virtual networks of apps.

use super::{
    Faults, Named, ObjectKind, address, addresses, mtu, optional_address, prefix, quoted, read_all, text, uuid,
};
use crate::proto::common::Ipspec;
use crate::proto::config::{AddressType, EdgeDevConfig, NetworkInstanceConfig, ZNetworkInstType};
use holdfast_model::net::{Adapter, InstanceKind, NetworkInstance, Prefix, Subnet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Labels that need no adapter of that name.
const IMPLICIT_LABELS: [&str; 3] = ["all", "uplink", "freeuplink"];

pub(super) fn read(config: &EdgeDevConfig, adapters: &[Adapter], faults: &mut Faults) -> Vec<NetworkInstance> {
    for wire in config.network_instances.iter().filter(|wire| wire.inst_type() == ZNetworkInstType::ZnetInstSwitch) {
        let ip = wire.ip.clone().unwrap_or_default();
        if ip != (Ipspec { dhcp: ip.dhcp, ..Ipspec::default() }) || !wire.dns.is_empty() {
            let id = wire.uuidandversion.as_ref().map_or("", |id| &id.uuid);
            let text = "ip, dns: a switch has no addresses of its own; ignored";
            faults.warn(ObjectKind::NetworkInstance, id, &wire.displayname, text);
        }
    }
    read_all(
        ObjectKind::NetworkInstance,
        &config.network_instances,
        faults,
        |wire| Named { id: wire.uuidandversion.as_ref().map_or("", |id| &id.uuid), name: &wire.displayname },
        |wire| instance(wire, adapters).map(Some).map_err(|text| format!("{text}; it is not made")),
    )
}

fn instance(wire: &NetworkInstanceConfig, adapters: &[Adapter]) -> Result<NetworkInstance, String> {
    let id = wire.uuidandversion.clone().unwrap_or_default();
    let kind = match wire.inst_type() {
        ZNetworkInstType::ZnetInstSwitch => InstanceKind::Switch,
        ZNetworkInstType::ZnetInstLocal => InstanceKind::Local,
        _ => {
            return Err(format!("type: expected 1 (switch) or 2 (local), found {}", wire.inst_type));
        }
    };
    let port = wire.port.as_ref().map_or("", |port| port.name.as_str());
    let known = |adapter: &Adapter| adapter.name == port || adapter.labels.iter().any(|label| label == port);
    if !port.is_empty() && !IMPLICIT_LABELS.contains(&port) && !adapters.iter().any(known) {
        return Err(format!("port {:?}: no usable adapter has that name or label", quoted(port)));
    }
    let ip = wire.ip.clone().unwrap_or_default();
    let mut instance = NetworkInstance {
        id: uuid("id", &id.uuid)?,
        version: text::shown(&id.version),
        name: text::shown(&wire.displayname),
        kind,
        activate: wire.activate,
        uplinks: Some(port).filter(|port| !port.is_empty()).map(str::to_owned).into_iter().collect(),
        v4: None,
        v6: None,
        dns: addresses("dns", &ip.dns)?,
        domain: text::domain("domain", &ip.domain)?,
        names: Vec::new(),
        mtu: mtu(wire.mtu)?,
    };
    if kind == InstanceKind::Local {
        let prefix = prefix("subnet", &ip.subnet)?;
        let expected = match AddressType::try_from(wire.ip_type) {
            Ok(AddressType::Ipv4) => Some(true),
            Ok(AddressType::Ipv6) => Some(false),
            _ => None,
        };
        if expected.is_some_and(|v4| v4 != prefix.address.is_ipv4()) {
            let found = wire.ip_type;
            return Err(format!("address type {found} and subnet {prefix}: expected one version of IP, found two"));
        }
        match prefix.address {
            IpAddr::V4(network) => instance.v4 = Some(subnet(network, prefix, &ip)?),
            IpAddr::V6(network) => instance.v6 = Some(subnet(network, prefix, &ip)?),
        }
    }
    for entry in &wire.dns {
        let addresses = entry.address.iter().map(|text| address("static name", text)).collect::<Result<Vec<_>, _>>()?;
        let name = text::domain("static name", &entry.host_name)?;
        if name.is_empty() {
            return Err("static name: expected a text, found none".to_owned());
        }
        instance.names.push((name, addresses));
    }
    Ok(instance)
}

/// An address of one IP version.
trait Family: Copy + PartialOrd {
    fn of(ip: IpAddr) -> Option<Self>;
    /// Shortest and longest prefix of a network of apps.
    const LENGTHS: (u8, u8);
}

impl Family for Ipv4Addr {
    fn of(ip: IpAddr) -> Option<Self> {
        if let IpAddr::V4(ip) = ip { Some(ip) } else { None }
    }
    const LENGTHS: (u8, u8) = (8, 30);
}

impl Family for Ipv6Addr {
    fn of(ip: IpAddr) -> Option<Self> {
        if let IpAddr::V6(ip) = ip { Some(ip) } else { None }
    }
    const LENGTHS: (u8, u8) = (16, 126);
}

fn subnet<A: Family>(network: A, prefix: Prefix, ip: &Ipspec) -> Result<Subnet<A>, String> {
    let (shortest, longest) = A::LENGTHS;
    if !(shortest..=longest).contains(&prefix.length) {
        return Err(format!("subnet: expected a prefix length of {shortest} to {longest}, found {prefix}"));
    }
    let within = |what: &str, text: &str| -> Result<Option<A>, String> {
        let Some(ip) = optional_address(what, text)? else { return Ok(None) };
        let inside = Some(ip).filter(|ip| prefix.contains(*ip)).and_then(A::of);
        inside.map(Some).ok_or_else(|| format!("{what}: expected an address in {prefix}, found {ip}"))
    };
    let gateway = within("gateway", &ip.gateway)?;
    let range = ip.dhcp_range.clone().unwrap_or_default();
    let (first, last) =
        (within("first address of the pool", &range.start)?, within("last address of the pool", &range.end)?);
    let range = match (first, last) {
        (None, None) => None,
        (Some(first), Some(last)) if first <= last => Some((first, last)),
        _ => {
            let (start, end) = (quoted(&range.start), quoted(&range.end));
            return Err(format!("pool: expected first and last address in order, found {start:?} and {end:?}"));
        }
    };
    Ok(Subnet { network, prefix_length: prefix.length, gateway, range })
}
