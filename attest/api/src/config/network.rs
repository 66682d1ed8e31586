//! Ports, adapters, IP parameter sets and network instances.

use super::{Faults, Named, quoted, read_all, uuid};
use crate::proto::common::{DhcpType, PhyIoMemberUsage, PhyIoType};
use crate::proto::config::{
    EdgeDevConfig, NetworkConfig, NetworkInstanceConfig, PhysicalIo, SystemAdapter, ZNetworkInstType,
};
use holdfast_model::desired::{Desired, ObjectKind};
use holdfast_model::net::{Adapter, Addressing, InstanceKind, Network, NetworkInstance, Port, PortUsage, Prefix};
use std::net::{IpAddr, Ipv4Addr};

/// Smallest MTU that EVE takes (the IPv6 minimum).
const MIN_MTU: u32 = 1280;
/// Labels that need no adapter of that name.
const IMPLICIT_LABELS: [&str; 3] = ["all", "uplink", "freeuplink"];

/// Reads ports, networks, adapters and network instances, in the order in which they refer to each other.
pub(super) fn read(config: &EdgeDevConfig, desired: &mut Desired, faults: &mut Faults) {
    for (kind, labels) in [
        ("VLAN", config.vlans.iter().map(|vlan| vlan.logicallabel.as_str()).collect::<Vec<_>>()),
        ("bond", config.bonds.iter().map(|bond| bond.logicallabel.as_str()).collect()),
    ] {
        for label in labels {
            faults.add(
                ObjectKind::Port,
                label,
                label,
                format!("a {kind} port is not supported by this version; it is not made"),
            );
        }
    }
    desired.ports =
        read_all(ObjectKind::Port, &config.device_io_list, faults, |io| Named { id: label(io), name: label(io) }, port);
    desired.networks = networks(config, faults);
    desired.adapters = adapters(config, desired, faults);
    desired.instances = read_all(
        ObjectKind::NetworkInstance,
        &config.network_instances,
        faults,
        |wire| Named { id: wire.uuidandversion.as_ref().map_or("", |id| &id.uuid), name: &wire.displayname },
        |wire| instance(wire, &desired.adapters).map(Some),
    );
}

/// Old models have no logical label; then the text on the box counts.
fn label(io: &PhysicalIo) -> &str {
    if io.logicallabel.is_empty() { &io.phylabel } else { &io.logicallabel }
}

/// Ethernet ports only; other hardware is for direct assignment and not looked at here.
fn port(io: &PhysicalIo) -> Result<Option<Port>, String> {
    if !matches!(io.ptype(), PhyIoType::PhyIoNetEth | PhyIoType::PhyIoNetEthPf) {
        return Ok(None);
    }
    if label(io).is_empty() {
        return Err("expected a logical label, found none; the port is not used".to_owned());
    }
    let address = |key: &str| {
        io.phyaddrs
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.clone())
            .unwrap_or_default()
    };
    let usage = match PhyIoMemberUsage::try_from(io.usage) {
        Ok(PhyIoMemberUsage::PhyIoUsageNone) => PortUsage::None,
        Ok(PhyIoMemberUsage::PhyIoUsageMgmtAndApps) => PortUsage::ManagementAndApps,
        Ok(PhyIoMemberUsage::PhyIoUsageShared) => PortUsage::Shared,
        Ok(PhyIoMemberUsage::PhyIoUsageDedicated) => PortUsage::Dedicated,
        Ok(PhyIoMemberUsage::PhyIoUsageDisabled) => PortUsage::Disabled,
        Ok(PhyIoMemberUsage::PhyIoUsageMgmtOnly) => PortUsage::Management,
        Err(_) => {
            return Err(format!("usage: expected 0 to 5, found {}; the port is not used", io.usage));
        }
    };
    let (interface, pci) = (address("ifname"), address("pcilong"));
    if interface.is_empty() && pci.is_empty() {
        return Err("physical address: expected ifname or pcilong, found neither; the port is not used".to_owned());
    }
    if interface.len() > 15 {
        return Err(format!(
            "ifname: expected at most 15 characters, found {:?}; the port is not used",
            quoted(&interface)
        ));
    }
    Ok(Some(Port { label: label(io).to_owned(), physical_label: io.phylabel.clone(), interface, pci, usage }))
}

fn networks(config: &EdgeDevConfig, faults: &mut Faults) -> Vec<Network> {
    let networks = read_all(
        ObjectKind::Network,
        &config.networks,
        faults,
        |wire| Named { id: &wire.id, name: &wire.id },
        |wire| network(wire).map(Some),
    );
    for wire in &config.networks {
        // Kept, since the rest of it may still reach the controller.
        if wire
            .ent_proxy
            .as_ref()
            .is_some_and(|proxy| proxy.network_proxy_enable || !proxy.proxies.is_empty() || !proxy.pacfile.is_empty())
        {
            faults.add(
                ObjectKind::Network,
                &wire.id,
                &wire.id,
                "proxies are not supported by this version; the network is used without one",
            );
        }
        if wire.wireless.as_ref().is_some_and(|wireless| wireless.r#type != 0) {
            faults.add(
                ObjectKind::Network,
                &wire.id,
                &wire.id,
                "wireless is not supported by this version; its settings are not used",
            );
        }
    }
    networks
}

fn network(wire: &NetworkConfig) -> Result<Network, String> {
    let id = uuid("id", &wire.id)?;
    let ip = wire.ip.clone().unwrap_or_default();
    let addressing = match DhcpType::try_from(ip.dhcp) {
        Ok(DhcpType::Client) => Addressing::Dhcp,
        Ok(DhcpType::DhcpNone | DhcpType::DhcpNoop) => Addressing::None,
        Ok(DhcpType::Static) => Addressing::Static {
            subnet: prefix("subnet", &ip.subnet)?,
            gateway: optional_address("gateway", &ip.gateway)?.filter(|gateway| !gateway.is_unspecified()),
            dns: ip.dns.iter().map(|text| address("dns", text)).collect::<Result<_, _>>()?,
            domain: ip.domain,
        },
        Err(_) => {
            return Err(format!(
                "dhcp: expected 0 none, 1 static, 2 none or 4 client, found {}; the network is not used",
                ip.dhcp
            ));
        }
    };
    Ok(Network { id, addressing, mtu: mtu(wire.mtu)? })
}

fn adapters(config: &EdgeDevConfig, desired: &Desired, faults: &mut Faults) -> Vec<Adapter> {
    read_all(
        ObjectKind::Adapter,
        &config.system_adapter_list,
        faults,
        |wire| Named { id: &wire.name, name: &wire.name },
        |wire| adapter(wire, desired, config).map(Some),
    )
}

fn adapter(wire: &SystemAdapter, desired: &Desired, config: &EdgeDevConfig) -> Result<Adapter, String> {
    if wire.name.is_empty() {
        return Err("name: expected a text, found none; the adapter is not made".to_owned());
    }
    let lower = if wire.lower_layer_name.is_empty() { &wire.name } else { &wire.lower_layer_name };
    let Some(port) = desired.ports.iter().find(|port| port.label == *lower) else {
        let other = config.device_io_list.iter().find(|io| label(io) == lower);
        return Err(match other {
            Some(io) => format!(
                "lower layer {:?}: its type {} cannot carry IP here or it has a fault; the adapter is not made",
                quoted(lower),
                io.ptype
            ),
            None => format!("lower layer {:?}: no port has that label; the adapter is not made", quoted(lower)),
        });
    };
    let network = if wire.network_uuid.is_empty() { None } else { Some(uuid("network", &wire.network_uuid)?) };
    let parameters =
        match network {
            Some(id) => Some(desired.networks.iter().find(|network| network.id == id).ok_or_else(|| {
                format!("network {id}: not in the config or it has a fault; the adapter is not made")
            })?),
            None => None,
        };
    let address = optional_address("address", &wire.addr)?;
    if let Some(Addressing::Static { subnet, .. }) = parameters.map(|network| &network.addressing) {
        match address {
            None => {
                return Err("address: the network is static, expected an address, found none; the adapter is not made"
                    .to_owned());
            }
            Some(ip) if !subnet.contains(ip) => {
                return Err(format!("address: expected one in {subnet}, found {ip}; the adapter is not made"));
            }
            Some(_) => {}
        }
    }
    let cost = u8::try_from(wire.cost)
        .map_err(|_| format!("cost: expected 0 to 255, found {}; the adapter is not made", wire.cost))?;
    Ok(Adapter {
        name: wire.name.clone(),
        lower: lower.clone(),
        network,
        address,
        cost,
        management: port.usage.is_management() || wire.uplink || wire.free_uplink,
        labels: wire.shared_labels.clone(),
    })
}

fn instance(wire: &NetworkInstanceConfig, adapters: &[Adapter]) -> Result<NetworkInstance, String> {
    let id = wire.uuidandversion.clone().unwrap_or_default();
    let kind = match wire.inst_type() {
        ZNetworkInstType::ZnetInstSwitch => InstanceKind::Switch,
        ZNetworkInstType::ZnetInstLocal => InstanceKind::Local,
        _ => {
            return Err(format!("type: expected 1 (switch) or 2 (local), found {}; it is not made", wire.inst_type));
        }
    };
    let port = wire.port.as_ref().map_or("", |port| port.name.as_str());
    let known = |adapter: &Adapter| {
        adapter.name == port || adapter.lower == port || adapter.labels.iter().any(|label| label == port)
    };
    if !port.is_empty() && !IMPLICIT_LABELS.contains(&port) && !adapters.iter().any(known) {
        return Err(format!("port {:?}: no usable adapter has that name or label; it is not made", quoted(port)));
    }
    let ip = wire.ip.clone().unwrap_or_default();
    let mut instance = NetworkInstance {
        id: uuid("id", &id.uuid)?,
        version: id.version,
        name: wire.displayname.clone(),
        kind,
        activate: wire.activate,
        port: port.to_owned(),
        subnet: None,
        gateway: None,
        dhcp_range: None,
        dns: ip.dns.iter().map(|text| address("dns", text)).collect::<Result<_, _>>()?,
        domain: ip.domain.clone(),
        names: Vec::new(),
        mtu: mtu(wire.mtu)?,
    };
    if kind == InstanceKind::Local {
        let subnet = prefix("subnet", &ip.subnet)?;
        if !subnet.address.is_ipv4() || !(8..=30).contains(&subnet.length) {
            return Err(format!("subnet: expected an IPv4 subnet of length 8 to 30, found {subnet}; it is not made"));
        }
        let within = |what: &str, text: &str| -> Result<Option<Ipv4Addr>, String> {
            match optional_address(what, text)? {
                None => Ok(None),
                Some(IpAddr::V4(v4)) if subnet.contains(v4.into()) => Ok(Some(v4)),
                Some(other) => Err(format!("{what}: expected an address in {subnet}, found {other}; it is not made")),
            }
        };
        instance.gateway = within("gateway", &ip.gateway)?;
        let range = ip.dhcp_range.unwrap_or_default();
        instance.dhcp_range =
            match (within("first address of the pool", &range.start)?, within("last address of the pool", &range.end)?)
            {
                (None, None) => None,
                (Some(first), Some(last)) if first <= last => Some((first, last)),
                _ => {
                    return Err(format!(
                        "pool: expected first and last address in order, found {:?} and {:?}; it is not made",
                        quoted(&range.start),
                        quoted(&range.end)
                    ));
                }
            };
        instance.subnet = Some(subnet);
    }
    for entry in &wire.dns {
        let addresses = entry.address.iter().map(|text| address("static name", text)).collect::<Result<Vec<_>, _>>()?;
        if entry.host_name.is_empty() || entry.host_name.len() > 253 {
            return Err(format!(
                "static name: expected 1 to 253 characters, found {:?}; it is not made",
                quoted(&entry.host_name)
            ));
        }
        instance.names.push((entry.host_name.clone(), addresses));
    }
    Ok(instance)
}

fn mtu(value: u32) -> Result<Option<u16>, String> {
    match u16::try_from(value) {
        Ok(0) => Ok(None),
        Ok(mtu) if value >= MIN_MTU => Ok(Some(mtu)),
        _ => Err(format!("mtu: expected 0 or {MIN_MTU} to 65535, found {value}")),
    }
}

pub(super) fn prefix(what: &str, text: &str) -> Result<Prefix, String> {
    text.parse().map_err(|error: String| format!("{what}: {}", quoted(&error)))
}

fn address(what: &str, text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{what}: expected an IP address, found {:?}", quoted(text)))
}

pub(super) fn optional_address(what: &str, text: &str) -> Result<Option<IpAddr>, String> {
    if text.is_empty() { Ok(None) } else { address(what, text).map(Some) }
}
