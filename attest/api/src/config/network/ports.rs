//! Layer 1: Ethernet ports of the hardware model.

use super::links::ports_below;
use super::{Faults, Named, ObjectKind, interface_name, read_all, text};
use crate::proto::common::{PhyIoMemberUsage, PhyIoType};
use crate::proto::config::{EdgeDevConfig, PhysicalIo};
use holdfast_model::desired::Desired;
use holdfast_model::net::{Port, PortUsage};

pub(super) fn read(config: &EdgeDevConfig, faults: &mut Faults) -> Vec<Port> {
    read_all(ObjectKind::Port, &config.device_io_list, faults, |io| Named { id: label(io), name: label(io) }, port)
}

/// Old models have no logical label; then the text on the box counts.
pub(in crate::config) fn label(io: &PhysicalIo) -> &str {
    if io.logicallabel.is_empty() { &io.phylabel } else { &io.logicallabel }
}

/// A physical address of a port. Keys count in any case: the exact one first, else the first in order, so that one config has one
/// meaning.
pub(super) fn physical_address(io: &PhysicalIo, key: &str) -> String {
    let alike = || io.phyaddrs.iter().filter(|(name, _)| name.eq_ignore_ascii_case(key)).min().map(|(_, value)| value);
    io.phyaddrs.get(key).or_else(alike).cloned().unwrap_or_default()
}

/// Ethernet ports only; radios are links, and other hardware is for direct assignment and not looked at here.
fn port(io: &PhysicalIo) -> Result<Option<Port>, String> {
    if !matches!(io.ptype(), PhyIoType::PhyIoNetEth | PhyIoType::PhyIoNetEthPf) {
        return Ok(None);
    }
    if label(io).is_empty() {
        return Err("expected a logical label, found none; the port is not used".to_owned());
    }
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
    let (interface, pci) = (physical_address(io, "ifname"), physical_address(io, "pcilong"));
    if interface.is_empty() && pci.is_empty() {
        return Err("physical address: expected ifname or pcilong, found neither; the port is not used".to_owned());
    }
    if !interface.is_empty() {
        interface_name("ifname", &interface).map_err(|text| format!("{text}; the port is not used"))?;
    }
    let physical_label = text::shown(&io.phylabel);
    Ok(Some(Port { label: text::name("label", label(io))?, physical_label, interface, pci, usage }))
}

/// The old form: a port without usage that carries an uplink is for management and apps.
pub(super) fn take_old_uplinks(config: &EdgeDevConfig, desired: &mut Desired) {
    let Desired { ports, links, adapters, .. } = desired;
    let old = |name: &str| {
        config.system_adapter_list.iter().any(|wire| wire.name == name && (wire.uplink || wire.free_uplink))
    };
    let uplinks: Vec<_> = adapters.iter().filter(|adapter| old(&adapter.name)).collect();
    for port in ports.iter_mut().filter(|port| port.usage == PortUsage::None) {
        if uplinks.iter().any(|adapter| ports_below(&adapter.on, links).contains(&port.label.as_str())) {
            port.usage = PortUsage::ManagementAndApps;
        }
    }
}
