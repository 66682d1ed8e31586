//! Layer 2: what lies over ports and carries frames. A port itself carries frames too, so an adapter stands on either.

use serde::{Deserialize, Serialize};

/// A link of layer 2 that is not a port itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its own logical label, distinct from those of ports.
    pub label: String,
    /// Kernel interface name, at most 15 bytes.
    pub interface: String,
    /// What it is.
    pub kind: LinkKind,
}

/// The kinds of link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// Frames with an IEEE 802.1Q tag.
    Vlan {
        /// Label of the port or bond below.
        parent: String,
        /// 1..=4094.
        id: u16,
    },
    /// Several ports as one (LAG).
    Bond {
        /// Labels of the ports, the primary first.
        members: Vec<String>,
        /// How frames are spread over them.
        mode: BondMode,
    },
    /// A radio. Its interface is the device's own, as a port's is.
    Wireless(Medium),
}

/// Modes of a bond, with the kernel's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BondMode {
    /// Round robin.
    BalanceRr,
    /// One at a time.
    ActiveBackup,
    /// By a hash of the frame.
    BalanceXor,
    /// All of them.
    Broadcast,
    /// Link aggregation control protocol (IEEE 802.1AX).
    Lacp {
        /// Partners are asked for one packet each second instead of one in 30.
        fast: bool,
    },
    /// Adaptive transmit load balancing.
    BalanceTlb,
    /// Adaptive load balancing in both directions.
    BalanceAlb,
}

/// Kinds of radio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Medium {
    /// IEEE 802.11.
    Wifi,
    /// A modem.
    Cellular,
}

impl std::fmt::Display for LinkKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vlan { id, .. } => write!(f, "VLAN {id}"),
            Self::Bond { members, .. } => write!(f, "bond of {}", members.join(", ")),
            Self::Wireless(Medium::Wifi) => f.write_str("Wi-Fi"),
            Self::Wireless(Medium::Cellular) => f.write_str("cellular modem"),
        }
    }
}
