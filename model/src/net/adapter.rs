//! Layer 3: IP endpoints of the device over a port or link, with their parameters.

use super::Prefix;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uuid::Uuid;

/// An IP endpoint of the device (`SystemAdapter` with its `NetworkConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapter {
    /// Name used in info and metrics.
    pub name: String,
    /// Label of the port or link that it stands on.
    pub on: String,
    /// The IP parameter set it was made from; `None` = layer 2 only.
    pub network: Option<Uuid>,
    /// How it gets its IPv4 address.
    pub v4: Addressing4,
    /// How it gets its IPv6 addresses.
    pub v6: Addressing6,
    /// Name servers beside a static address.
    pub dns: Vec<IpAddr>,
    /// Search domain beside a static address; empty when none.
    pub domain: String,
    /// MTU in bytes, at least 1280; `None` = what the lease says, else 1500.
    pub mtu: Option<u16>,
    /// 0..=255, lower preferred.
    pub cost: u8,
    /// The controller may be reached through it.
    pub management: bool,
    /// Labels that network instances may name instead of the adapter; `all`, `uplink` and `freeuplink` are implicit.
    pub labels: Vec<String>,
}

impl Adapter {
    /// The host has IP here, of either version.
    #[must_use]
    pub fn has_ip(&self) -> bool {
        self.v4 != Addressing4::None || self.v6 != Addressing6::None
    }

    /// The controller may be reached through it: meant for management, and the host has IP.
    #[must_use]
    pub fn reaches_controller(&self) -> bool {
        self.management && self.has_ip()
    }
}

/// How an adapter gets its IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing4 {
    /// No IPv4.
    None,
    /// DHCP client.
    Dhcp,
    /// A fixed address.
    Static(Static<Ipv4Addr>),
}

/// How an adapter gets its IPv6 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing6 {
    /// No global IPv6.
    None,
    /// As routers advertise (RFC 4861, RFC 4862).
    Auto,
    /// A fixed address.
    Static(Static<Ipv6Addr>),
}

/// A fixed address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Static<A> {
    /// The host's own.
    pub address: A,
    /// Length of the subnet's prefix: 0..=32 or 0..=128.
    pub prefix_length: u8,
    /// Default router.
    pub gateway: Option<A>,
}

impl<A: Copy + Into<IpAddr>> Static<A> {
    /// The address with the subnet's prefix length.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        Prefix { address: self.address.into(), length: self.prefix_length }
    }

    /// The default router.
    #[must_use]
    pub fn router(&self) -> Option<IpAddr> {
        self.gateway.map(Into::into)
    }
}
