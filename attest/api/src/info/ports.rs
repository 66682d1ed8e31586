//! Ports inside the device's message.

use super::errors::merged;
use super::{Report, texts};
use crate::proto::info::{DevicePort, DevicePortStatus, SystemAdapterInfo, ZInfoDns};
use holdfast_model::net::mac_text;
use holdfast_model::observed::PortStatus;
use holdfast_model::trouble::{ObjectKind, Trouble};

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
        SystemAdapterInfo {
            current_index: 0,
            status: vec![DevicePortStatus {
                version: 1,
                key: "zedagent".to_owned(), // EVE's word for "from the controller"
                last_succeeded: Some(self.at),
                ports,
                last_error: networks.join("; "),
                ..DevicePortStatus::default()
            }],
        }
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
            dhcp_type: if port.dhcp { 4 } else { 1 },
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

fn subnet(port: &PortStatus) -> String {
    port.addresses.first().map(|ip| format!("{ip}/{}", port.prefix_length)).unwrap_or_default()
}

pub(super) fn dns(port: &PortStatus) -> ZInfoDns {
    ZInfoDns { dn_sservers: texts(&port.dns), dn_sdomain: port.domain.clone(), dn_ssearch: Vec::new() }
}
