//! Network instances (virtual networks of apps) and the interfaces of apps in them.

use super::{Mac, Prefix, Rule};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uuid::Uuid;

/// Kind of a network instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceKind {
    /// Pure layer-2 bridge with the port.
    Switch,
    /// Bridge with DHCP, DNS and NAT.
    #[default]
    Local,
}

/// A virtual network for apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInstance {
    /// Its id.
    pub id: Uuid,
    /// Version text of the object.
    pub version: String,
    /// Label.
    pub name: String,
    /// Kind.
    pub kind: InstanceKind,
    /// Make it.
    pub activate: bool,
    /// Which adapters may be its uplink, each a name or a label; empty = air-gapped. EVE's API names at most one.
    pub uplinks: Vec<String>,
    /// IPv4 subnet, for `Local`.
    pub v4: Option<Subnet<Ipv4Addr>>,
    /// IPv6 subnet, for `Local`.
    pub v6: Option<Subnet<Ipv6Addr>>,
    /// Name servers that the forwarder asks; empty = those of the uplink.
    pub dns: Vec<IpAddr>,
    /// Domain handed out; empty when none.
    pub domain: String,
    /// Static names.
    pub names: Vec<(String, Vec<IpAddr>)>,
    /// MTU in bytes, at least 1280; `None` = default.
    pub mtu: Option<u16>,
}

/// The subnet of a network instance in one IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet<A> {
    /// Any address of the subnet.
    pub network: A,
    /// Prefix length.
    pub prefix_length: u8,
    /// Gateway = address of the bridge; `None` = first address of the subnet.
    pub gateway: Option<A>,
    /// First and last address handed out; `None` = all of the subnet but the gateway.
    pub range: Option<(A, A)>,
}

impl<A: Copy + Into<IpAddr>> Subnet<A> {
    /// As a prefix.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        Prefix { address: self.network.into(), length: self.prefix_length }
    }
}

/// At most one address of each IP version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Addresses {
    /// IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Both, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

impl From<Ipv4Addr> for Addresses {
    fn from(ip: Ipv4Addr) -> Self {
        Self { v4: Some(ip), v6: None }
    }
}

impl From<IpAddr> for Addresses {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self { v4: Some(ip), v6: None },
            IpAddr::V6(ip) => Self { v4: None, v6: Some(ip) },
        }
    }
}

/// A virtual NIC of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInterface {
    /// Name used in info and metrics.
    pub name: String,
    /// The network instance it is in.
    pub instance: Uuid,
    /// Fixed addresses; where there is none, one comes from the pool.
    pub fixed: Addresses,
    /// Fixed MAC; `None` = derived from app UUID and position.
    pub mac: Option<Mac>,
    /// Rules in order; what none matches is dropped.
    pub rules: Vec<Rule>,
}
