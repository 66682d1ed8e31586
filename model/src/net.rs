//! Ports, adapters, IP parameter sets, network instances and their rules.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};
use uuid::Uuid;

/// A 48-bit MAC address.
pub type Mac = [u8; 6];

/// Text of a MAC address, lower case with colons.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Who may use a port (`PhyIoMemberUsage`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortUsage {
    /// Nobody.
    None,
    /// Management and apps.
    ManagementAndApps,
    /// Apps only, shared among them.
    Shared,
    /// Given whole to one app.
    Dedicated,
    /// Switched off.
    Disabled,
    /// Management only.
    Management,
}

impl PortUsage {
    /// True when the device may reach its controller through the port.
    #[must_use]
    pub fn is_management(self) -> bool {
        matches!(self, Self::ManagementAndApps | Self::Management)
    }
}

/// A physical port of the hardware model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Logical label; joins with [`Adapter::lower`].
    pub label: String,
    /// Text on the box.
    pub physical_label: String,
    /// Kernel interface name (`phyaddrs["ifname"]`), if the model gives one.
    pub interface: String,
    /// PCI address, if the model gives one.
    pub pci: String,
    /// Who may use it.
    pub usage: PortUsage,
}

/// An IP endpoint over a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapter {
    /// Name used in info and metrics.
    pub name: String,
    /// Label of the port it sits on.
    pub lower: String,
    /// IP parameter set; `None` = layer 2 only.
    pub network: Option<Uuid>,
    /// Static address within the network, for static configuration.
    pub address: Option<IpAddr>,
    /// 0..=255, lower preferred.
    pub cost: u8,
    /// Usable for management.
    pub management: bool,
    /// Labels that network instances may name instead of the adapter; `all`, `uplink` and `freeuplink` are implicit.
    pub labels: Vec<String>,
}

/// How an adapter gets its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing {
    /// DHCP client.
    Dhcp,
    /// Fixed addresses.
    Static {
        /// Prefix of the subnet.
        subnet: Prefix,
        /// Default gateway.
        gateway: Option<IpAddr>,
        /// Name servers.
        dns: Vec<IpAddr>,
        /// Search domain, empty when none.
        domain: String,
    },
    /// No IP at all.
    None,
}

/// An IP prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prefix {
    /// Network address.
    pub address: IpAddr,
    /// Prefix length: 0..=32 or 0..=128.
    pub length: u8,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;
    /// Parses `address/length`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (a, l) = text.split_once('/').ok_or_else(|| format!("{text:?} is not address/length"))?;
        let address: IpAddr = a.parse().map_err(|_| format!("{a:?} is not an IP address"))?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let length =
            l.parse().ok().filter(|l| *l <= max).ok_or_else(|| format!("{l:?} is not a prefix length of 0..={max}"))?;
        Ok(Self { address, length })
    }
}

impl Prefix {
    /// True when `ip` lies in the prefix (same family).
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(n), IpAddr::V4(i)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                u32::from(n) & mask == u32::from(i) & mask
            }
            (IpAddr::V6(n), IpAddr::V6(i)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                u128::from(n) & mask == u128::from(i) & mask
            }
            _ => false,
        }
    }
}

/// An IP parameter set (`NetworkConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: Uuid,
    /// How addresses come.
    pub addressing: Addressing,
    /// MTU in bytes; `None` = the port's default. At least 1280.
    pub mtu: Option<u16>,
}

/// Kind of a network instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceKind {
    /// Pure layer-2 bridge with the port.
    Switch,
    /// Bridge with DHCP, DNS and NAT.
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
    /// Uplink: an adapter's name or a label; empty = air-gapped.
    pub port: String,
    /// Subnet, for `Local`.
    pub subnet: Option<Prefix>,
    /// Gateway = address of the bridge; `None` = first address of the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// First and last address handed out; `None` = all of the subnet but the gateway.
    pub dhcp_range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Name servers handed to the forwarder; empty = those of the uplink.
    pub dns: Vec<IpAddr>,
    /// Domain handed out; empty when none.
    pub domain: String,
    /// Static names.
    pub names: Vec<(String, Vec<IpAddr>)>,
    /// MTU in bytes; `None` = default.
    pub mtu: Option<u16>,
}

/// A virtual NIC of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInterface {
    /// Name used in info and metrics.
    pub name: String,
    /// The network instance it is in.
    pub instance: Uuid,
    /// Fixed address; `None` = from the pool.
    pub address: Option<Ipv4Addr>,
    /// Fixed MAC; `None` = derived from app UUID and position.
    pub mac: Option<Mac>,
    /// Rules in order; what none matches is dropped.
    pub rules: Vec<Rule>,
}

/// One access rule (`ACE`): all matches must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Reported in flow records, at most 24 bits.
    pub id: u32,
    /// Remote prefix; `None` = any.
    pub remote: Option<Prefix>,
    /// Remote host by name (with its subdomains); `None` = any.
    pub host: Option<String>,
    /// IP protocol; `None` = any.
    pub protocol: Option<Protocol>,
    /// Port of the app (for port maps: the port on the uplink); needs a protocol.
    pub local_port: Option<u16>,
    /// Port of the remote side; needs a protocol.
    pub remote_port: Option<u16>,
    /// Only on this uplink adapter; empty = any.
    pub adapter: String,
    /// What to do.
    pub action: RuleAction,
}

/// IP protocol of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, or ICMPv6 in an IPv6 network.
    Icmp,
    /// Any other by number.
    Number(u8),
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    /// Let through.
    Allow,
    /// Drop.
    Drop,
    /// Let through up to a rate, drop above.
    Limit {
        /// Packets per unit.
        rate: u32,
        /// Unit.
        per: RateUnit,
        /// Burst in packets.
        burst: u32,
    },
    /// Forward `local_port` of the uplink to this port of the app.
    PortMap {
        /// Port in the app.
        app_port: u16,
    },
}

/// Unit of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateUnit {
    /// Second.
    Second,
    /// Minute.
    Minute,
    /// Hour.
    Hour,
}
