//! Ports inside the device's message.

use super::errors::merged;
use super::{Report, stamp, texts};
use crate::proto::info::{DevicePort, DevicePortStatus, SystemAdapterInfo, ZInfoDns};
use holdfast_model::net::{Adapter, Addressing4, Addressing6, PortConfig, PortConfigSource, PortConfigs, mac_text};
use holdfast_model::observed::PortStatus;
use holdfast_model::trouble::{Object, ObjectKind, Trouble};

impl Report<'_> {
    pub(super) fn adapters(&self) -> SystemAdapterInfo {
        let mut ports: Vec<DevicePort> = self.observed.ports.iter().map(|port| self.port(port)).collect();
        // Ports and adapters that exist only as faults.
        for fault in &self.observed.faults {
            if matches!(fault.on.kind, ObjectKind::Port | ObjectKind::Adapter)
                && ports.iter().all(|port| port.name != fault.on.name)
            {
                let err = merged(self.port_faults(&fault.on.name));
                ports.push(DevicePort { name: fault.on.name.clone(), err, ..DevicePort::default() });
            }
        }
        let networks = self.observed.faults.iter().filter(|fault| fault.on.kind == ObjectKind::Network);
        let networks: Vec<String> = networks.map(|t| format!("network {}: {}", t.on.name, t.text)).collect();
        let mut networks = networks.join("; ");
        let PortConfigs { current, list } = &self.observed.port_configs;
        let mut ports = Some(ports);
        let mut status: Vec<DevicePortStatus> = Vec::new();
        for (index, config) in list.iter().enumerate() {
            let own = if index == *current { ports.take() } else { None };
            status.push(config_status(config, own.unwrap_or_else(|| planned(config))));
        }
        // Before the first is chosen.
        if let Some(ports) = ports {
            let key = key(PortConfigSource::Controller).to_owned();
            status = vec![DevicePortStatus { version: VERSION, key, ports, ..DevicePortStatus::default() }];
        }
        let in_use = if status.len() > *current { *current } else { 0 };
        if !networks.is_empty() {
            let error = &mut status[in_use].last_error;
            if !error.is_empty() {
                networks = format!("{error}; {networks}");
            }
            *error = networks;
        }
        SystemAdapterInfo { current_index: u32::try_from(in_use).unwrap_or_default(), status }
    }

    /// Faults of the config on a port or an adapter of this name.
    fn port_faults<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'b Trouble> {
        let kinds = [ObjectKind::Port, ObjectKind::Adapter];
        self.observed.faults.iter().filter(move |t| kinds.contains(&t.on.kind) && t.on.name == name)
    }

    fn port(&self, port: &PortStatus) -> DevicePort {
        DevicePort {
            ifname: port.interface.clone(),
            name: port.name.clone(),
            is_mgmt: port.management,
            free: port.cost == 0,
            dhcp_type: dhcp_type(port.dhcp, !port.addresses.is_empty()),
            subnet: subnet(port),
            gateway: port.gateways.first().map(ToString::to_string).unwrap_or_default(),
            domainname: port.domain.clone(),
            dns_servers: texts(&port.dns),
            mac_addr: mac_text(port.mac),
            ip_addrs: texts(&port.addresses),
            default_routers: texts(&port.gateways),
            dns: Some(dns(port)),
            up: port.up,
            err: merged(port.troubles.iter().chain(self.port_faults(&port.name))),
            cost: port.cost.into(),
            mtu: port.mtu,
            ..DevicePort::default()
        }
    }
}

/// The form of port configurations that is meant (EVE's `DPCIsMgmt` and later).
const VERSION: u32 = 1;

fn config_status(config: &PortConfig, ports: Vec<DevicePort>) -> DevicePortStatus {
    DevicePortStatus {
        version: VERSION,
        key: key(config.source).to_owned(),
        time_priority: stamp(config.made_seconds),
        last_failed: stamp(config.failed_seconds),
        last_succeeded: stamp(config.succeeded_seconds),
        ports,
        last_error: config.error.clone(),
    }
}

/// EVE's words for where a port configuration comes from.
fn key(source: PortConfigSource) -> &'static str {
    match source {
        PortConfigSource::Controller | PortConfigSource::Earlier => "zedagent",
        PortConfigSource::Site => "bootstrap",
        PortConfigSource::LastResort => "lastresort",
    }
}

/// Ports of a configuration that is not in use: what it asks for, and what came of it when it was.
fn planned(config: &PortConfig) -> Vec<DevicePort> {
    let port = |adapter: &Adapter| {
        let port = config.layers.ports.iter().find(|port| port.label == adapter.on);
        let link = config.layers.links.iter().find(|link| link.label == adapter.on);
        let interface = port.map(|port| &port.interface).or(link.map(|link| &link.interface));
        let fixed = match (adapter.v4, adapter.v6) {
            (Addressing4::Static(fixed), _) => Some((fixed.prefix(), fixed.router())),
            (_, Addressing6::Static(fixed)) => Some((fixed.prefix(), fixed.router())),
            _ => None,
        };
        let test = config.paths.get(&adapter.name).filter(|test| !test.error.is_empty());
        let on = Object::new(ObjectKind::Adapter, &adapter.name, &adapter.name);
        let trouble =
            test.map(|test| Trouble { since_seconds: test.failed_seconds, ..Trouble::error(on, &test.error) });
        DevicePort {
            ifname: interface.cloned().unwrap_or_default(),
            name: adapter.name.clone(),
            is_mgmt: adapter.management,
            free: adapter.cost == 0,
            dhcp_type: dhcp_type(adapter.v4 == Addressing4::Dhcp, adapter.has_ip()),
            subnet: fixed.map(|(prefix, _)| prefix.to_string()).unwrap_or_default(),
            gateway: fixed.and_then(|(_, router)| router).map(|router| router.to_string()).unwrap_or_default(),
            domainname: adapter.domain.clone(),
            dns_servers: texts(&adapter.dns),
            err: merged(&trouble),
            cost: adapter.cost.into(),
            ..DevicePort::default()
        }
    };
    config.layers.adapters.iter().map(port).collect()
}

/// `DHCPType`: 4 client, 1 static, 2 none.
fn dhcp_type(client: bool, has_ip: bool) -> u32 {
    match (client, has_ip) {
        (true, _) => 4,
        (false, true) => 1,
        (false, false) => 2,
    }
}

fn subnet(port: &PortStatus) -> String {
    port.addresses.first().map(|ip| format!("{ip}/{}", port.prefix_length)).unwrap_or_default()
}

pub(super) fn dns(port: &PortStatus) -> ZInfoDns {
    ZInfoDns { dn_sservers: texts(&port.dns), dn_sdomain: port.domain.clone(), dn_ssearch: Vec::new() }
}
