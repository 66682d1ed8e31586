//! Access rules of an app's interface.

use super::Prefix;
use serde::{Deserialize, Serialize};

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
