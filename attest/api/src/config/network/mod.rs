//! The network of the device, layer by layer: ports, links over them, adapters with their IP parameters, and the network instances
//! of apps.
//!
//! Reading order: `ports`, `links`, `parameters`, `adapters`, `instances`.

mod adapters;
mod instances;
mod links;
mod parameters;
mod ports;
#[cfg(test)]
mod tests;

pub(super) use ports::label;

use super::{Faults, Named, quoted, read_all, text, uuid};
use crate::proto::config::EdgeDevConfig;
use holdfast_model::desired::Desired;
use holdfast_model::net::Prefix;
use holdfast_model::trouble::ObjectKind;
use std::net::IpAddr;

/// Smallest MTU that EVE takes (the IPv6 minimum).
const MIN_MTU: u32 = 1280;
/// Longest kernel name of an interface (`IFNAMSIZ` without the NUL).
const MAX_INTERFACE: usize = 15;

/// Reads ports, links, adapters and network instances, in the order in which they refer to each other.
pub(super) fn read(config: &EdgeDevConfig, desired: &mut Desired, faults: &mut Faults) {
    desired.ports = ports::read(config, faults);
    desired.links = links::read(config, &desired.ports, faults);
    let parameters = parameters::read(config, faults);
    desired.adapters = adapters::read(config, desired, &parameters, faults);
    ports::take_old_uplinks(config, desired);
    desired.instances = instances::read(config, &desired.adapters, faults);
}

fn mtu(value: u32) -> Result<Option<u16>, String> {
    match u16::try_from(value) {
        Ok(0) => Ok(None),
        Ok(mtu) if value >= MIN_MTU => Ok(Some(mtu)),
        _ => Err(format!("mtu: expected 0 or {MIN_MTU} to 65535, found {value}")),
    }
}

/// A name that the kernel takes for an interface.
fn interface_name(what: &str, name: &str) -> Result<String, String> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > MAX_INTERFACE || name == "." || name == ".." || name.contains(bad) {
        return Err(format!(
            "{what}: expected an interface name of 1 to {MAX_INTERFACE} bytes, found {:?}",
            quoted(name)
        ));
    }
    Ok(name.to_owned())
}

pub(super) fn prefix(what: &str, text: &str) -> Result<Prefix, String> {
    text.parse().map_err(|error: String| format!("{what}: {}", quoted(&error)))
}

fn address(what: &str, text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{what}: expected an IP address, found {:?}", quoted(text)))
}

fn addresses(what: &str, texts: &[String]) -> Result<Vec<IpAddr>, String> {
    texts.iter().map(|text| address(what, text)).collect()
}

pub(super) fn optional_address(what: &str, text: &str) -> Result<Option<IpAddr>, String> {
    if text.is_empty() { Ok(None) } else { address(what, text).map(Some) }
}
