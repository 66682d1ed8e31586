//! Adapters and network instances.

use crate::{
    net::{InstanceKind, Mac},
    trouble::Trouble,
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use uuid::Uuid;

/// An adapter and its port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Adapter name.
    pub name: String,
    /// Kernel interface.
    pub interface: String,
    /// MAC.
    pub mac: Mac,
    /// Link is up.
    pub up: bool,
    /// Used for management.
    pub management: bool,
    /// Addresses by DHCP.
    pub dhcp: bool,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Prefix length of the first address.
    pub prefix_length: u8,
    /// Default routers.
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Domain.
    pub domain: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Cost.
    pub cost: u8,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
}

/// A network instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its id.
    pub id: Uuid,
    /// Version text.
    pub version: String,
    /// Label.
    pub name: String,
    /// Kind.
    pub kind: InstanceKind,
    /// Made.
    pub activated: bool,
    /// Bridge name.
    pub bridge: String,
    /// Bridge address.
    pub address: Option<IpAddr>,
    /// Uplink interface.
    pub uplink: String,
    /// MAC and addresses of apps.
    pub assignments: Vec<(Mac, IpAddr)>,
    /// Interfaces of apps: tap name, MAC, app.
    pub interfaces: Vec<(String, Mac, Uuid)>,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
}
