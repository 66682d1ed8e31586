//! Ports, their IP settings, and the virtual networks behind them.

use super::build::{BuildError, Builder};
use super::{Network, NetworkInstance, NetworkInstanceKind, Port, Usage};
use holdfast_api::proto::common::{
    DhcpType, IpRange, Ipspec, NetworkType, PhyIoMemberUsage, PhyIoType, ZnetStaticDnsEntry,
};
use holdfast_api::proto::config as wire;

impl Builder<'_> {
    pub(super) fn network(&self, network: &Network) -> Result<wire::NetworkConfig, BuildError> {
        let object = || format!("network {:?}", network.name);
        if network.mtu != 0 && network.mtu < 1280 {
            return Err(BuildError::Value {
                object: object(),
                cause: format!("mtu: expected 0 or at least 1280, found {}", network.mtu),
            });
        }
        if !network.dhcp && network.subnet.is_empty() {
            return Err(BuildError::Value { object: object(), cause: "a static network needs a subnet".into() });
        }
        let dhcp = if network.dhcp { DhcpType::Client } else { DhcpType::Static };
        Ok(wire::NetworkConfig {
            id: self.id("network", &network.name),
            r#type: NetworkType::V4 as i32,
            ip: Some(Ipspec {
                dhcp: dhcp as i32,
                subnet: network.subnet.clone(),
                gateway: network.gateway.clone(),
                ntp: network.ntp.clone(),
                dns: network.dns.clone(),
                ..Default::default()
            }),
            mtu: network.mtu,
            ..Default::default()
        })
    }

    pub(super) fn system_adapter(&self, port: &Port) -> Result<wire::SystemAdapter, BuildError> {
        let object = || format!("port {:?}", port.label);
        if port.cost > 255 {
            return Err(BuildError::Value {
                object: object(),
                cause: format!("cost: expected 0..=255, found {}", port.cost),
            });
        }
        let network_uuid = if port.network.is_empty() {
            String::new()
        } else {
            self.find(&object(), "network", &port.network, self.config.networks.iter().map(|n| &n.name))?
        };
        Ok(wire::SystemAdapter {
            name: port.label.clone(),
            uplink: matches!(port.usage, Usage::ManagementAndApps | Usage::ManagementOnly),
            network_uuid,
            addr: port.address.clone(),
            lower_layer_name: port.label.clone(),
            cost: port.cost,
            ..Default::default()
        })
    }

    pub(super) fn network_instance(&self, ni: &NetworkInstance) -> Result<wire::NetworkInstanceConfig, BuildError> {
        let object = format!("network instance {:?}", ni.name);
        let port = if ni.port.is_empty() {
            None
        } else {
            let known = ["uplink", "freeuplink", "all"].contains(&ni.port.as_str())
                || self.config.ports.iter().any(|p| p.label == ni.port);
            if !known {
                return Err(BuildError::Missing { object, kind: "port", name: ni.port.clone() });
            }
            Some(wire::Adapter { r#type: PhyIoType::PhyIoNetEth as i32, name: ni.port.clone(), ..Default::default() })
        };
        let local = ni.kind == NetworkInstanceKind::Local;
        if local && ni.subnet.is_empty() {
            return Err(BuildError::Value { object, cause: "a local network needs a subnet".into() });
        }
        let kind = if local { wire::ZNetworkInstType::ZnetInstLocal } else { wire::ZNetworkInstType::ZnetInstSwitch };
        Ok(wire::NetworkInstanceConfig {
            uuidandversion: Some(self.object("network-instance", &ni.name)),
            displayname: ni.name.clone(),
            inst_type: kind as i32,
            activate: true,
            port,
            ip_type: if local { wire::AddressType::Ipv4 as i32 } else { wire::AddressType::First as i32 },
            ip: local.then(|| Ipspec {
                dhcp: DhcpType::Client as i32,
                subnet: ni.subnet.clone(),
                gateway: ni.gateway.clone(),
                dns: ni.dns.clone(),
                dhcp_range: ni
                    .dhcp_range
                    .as_ref()
                    .map(|(start, end)| IpRange { start: start.clone(), end: end.clone() }),
                ..Default::default()
            }),
            dns: ni
                .hosts
                .iter()
                .map(|(name, addresses)| ZnetStaticDnsEntry { host_name: name.clone(), address: addresses.clone() })
                .collect(),
            mtu: ni.mtu,
            ..Default::default()
        })
    }
}

/// Hardware model of one port.
pub(super) fn physical_io(port: &Port) -> wire::PhysicalIo {
    let usage = match port.usage {
        Usage::ManagementAndApps => PhyIoMemberUsage::PhyIoUsageMgmtAndApps,
        Usage::Shared => PhyIoMemberUsage::PhyIoUsageShared,
        Usage::Dedicated => PhyIoMemberUsage::PhyIoUsageDedicated,
        Usage::Disabled => PhyIoMemberUsage::PhyIoUsageDisabled,
        Usage::ManagementOnly => PhyIoMemberUsage::PhyIoUsageMgmtOnly,
    };
    let ifname = if port.ifname.is_empty() { &port.label } else { &port.ifname };
    let mut phyaddrs = std::collections::HashMap::from([("Ifname".to_owned(), ifname.clone())]);
    if !port.pci.is_empty() {
        phyaddrs.insert("PciLong".into(), port.pci.clone());
    }
    wire::PhysicalIo {
        ptype: PhyIoType::PhyIoNetEth as i32,
        phylabel: port.label.clone(),
        phyaddrs,
        logicallabel: port.label.clone(),
        assigngrp: port.label.clone(),
        usage: usage as i32,
        usage_policy: Some(wire::PhyIoUsagePolicy { free_uplink: port.cost == 0 }),
        ..Default::default()
    }
}
