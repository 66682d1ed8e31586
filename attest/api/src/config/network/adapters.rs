//! Layer 3: the IP endpoints of the device.

use super::links::ports_below;
use super::parameters::{Means, Parameters};
use super::ports::label;
use super::{Faults, Named, ObjectKind, optional_address, quoted, read_all, text, uuid};
use crate::proto::config::{EdgeDevConfig, SystemAdapter};
use holdfast_model::desired::Desired;
use holdfast_model::net::{Adapter, Addressing4, Addressing6, Prefix, Static};
use std::net::IpAddr;

pub(super) fn read(
    config: &EdgeDevConfig,
    desired: &Desired,
    networks: &[Parameters],
    faults: &mut Faults,
) -> Vec<Adapter> {
    for wire in config.system_adapter_list.iter().filter(|wire| !wire.addr.is_empty()) {
        let network = networks.iter().find(|network| network.id.to_string().eq_ignore_ascii_case(&wire.network_uuid));
        if !network.is_some_and(|network| matches!(network.means, Means::Static { .. })) {
            let text = "addr: only used with a static network; ignored";
            faults.warn(ObjectKind::Adapter, &wire.name, &wire.name, text);
        }
    }
    read_all(
        ObjectKind::Adapter,
        &config.system_adapter_list,
        faults,
        |wire| Named { id: &wire.name, name: &wire.name },
        |wire| {
            adapter(wire, desired, config, networks)
                .map(Some)
                .map_err(|text| format!("{text}; the adapter is not made"))
        },
    )
}

fn adapter(
    wire: &SystemAdapter,
    desired: &Desired,
    config: &EdgeDevConfig,
    networks: &[Parameters],
) -> Result<Adapter, String> {
    if wire.name.is_empty() {
        return Err("name: expected a text, found none".to_owned());
    }
    let on = if wire.lower_layer_name.is_empty() { &wire.name } else { &wire.lower_layer_name };
    if !desired.ports.iter().any(|port| port.label == *on) && !desired.links.iter().any(|link| link.label == *on) {
        let other = config.device_io_list.iter().find(|io| label(io) == on);
        return Err(match other {
            Some(io) => {
                format!("lower layer {:?}: its type {} cannot carry IP here or it has a fault", quoted(on), io.ptype)
            }
            None => format!("lower layer {:?}: no port or link has that label", quoted(on)),
        });
    }
    let network = if wire.network_uuid.is_empty() { None } else { Some(uuid("network", &wire.network_uuid)?) };
    let parameters = match network {
        Some(id) => Some(
            networks
                .iter()
                .find(|network| network.id == id)
                .ok_or_else(|| format!("network {id}: not in the config or it has a fault"))?,
        ),
        None => None,
    };
    let (v4, v6) = addressing(parameters.map(|network| &network.means), optional_address("address", &wire.addr)?)?;
    let cost = u8::try_from(wire.cost).map_err(|_| format!("cost: expected 0 to 255, found {}", wire.cost))?;
    Ok(Adapter {
        name: text::name("name", &wire.name)?,
        on: on.clone(),
        network,
        v4,
        v6,
        dns: parameters.map(|network| network.dns.clone()).unwrap_or_default(),
        domain: parameters.map(|network| network.domain.clone()).unwrap_or_default(),
        mtu: parameters.and_then(|network| network.mtu),
        cost,
        management: is_management(on, desired) || wire.uplink || wire.free_uplink,
        labels: wire.shared_labels.iter().map(|label| text::name("label", label)).collect::<Result<_, _>>()?,
    })
}

/// All ports below are for management.
fn is_management(on: &str, desired: &Desired) -> bool {
    let below = ports_below(on, &desired.links);
    let meant = |label: &&str| desired.ports.iter().any(|port| port.label == **label && port.usage.is_management());
    !below.is_empty() && below.iter().all(meant)
}

fn addressing(means: Option<&Means>, address: Option<IpAddr>) -> Result<(Addressing4, Addressing6), String> {
    let (subnet, gateway) = match means {
        None | Some(Means::None) => return Ok((Addressing4::None, Addressing6::None)),
        Some(Means::Automatic { v4, v6 }) => {
            let v4 = if *v4 { Addressing4::Dhcp } else { Addressing4::None };
            let v6 = if *v6 { Addressing6::Auto } else { Addressing6::None };
            return Ok((v4, v6));
        }
        Some(Means::Static { subnet, gateway }) => (*subnet, *gateway),
    };
    let address = address.ok_or("address: the network is static, expected an address, found none")?;
    within("address", subnet, address)?;
    if let Some(gateway) = gateway {
        within("gateway", subnet, gateway)?;
    }
    let prefix_length = subnet.length;
    match (address, gateway) {
        (IpAddr::V4(address), gateway) => {
            let gateway = gateway.and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
            Ok((Addressing4::Static(Static { address, prefix_length, gateway }), Addressing6::None))
        }
        (IpAddr::V6(address), gateway) => {
            let gateway = gateway.and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None });
            Ok((Addressing4::None, Addressing6::Static(Static { address, prefix_length, gateway })))
        }
    }
}

fn within(what: &str, subnet: Prefix, ip: IpAddr) -> Result<(), String> {
    if subnet.contains(ip) { Ok(()) } else { Err(format!("{what}: expected one in {subnet}, found {ip}")) }
}
