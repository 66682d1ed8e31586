//! The membership of an interface in a bridge.

use super::{ItemKey, Keyed, Kind};
use crate::firewall::skeleton::TAPS;
use crate::firewall::{Family, Part};
use holdfast_engine::Transition;
use std::fmt;

/// An interface in a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgePort {
    /// The interface.
    pub port: String,
    /// The bridge.
    pub bridge: String,
    /// Frames do not pass between isolated ports: they go up to the bridge and are routed, through the firewall.
    pub isolated: bool,
    /// It is a tap: what its guest sends passes the chain of the app.
    pub filtered: bool,
}

impl Kind for BridgePort {
    fn key(&self) -> ItemKey {
        ItemKey::BridgePort(self.port.clone())
    }

    /// No frame flows before the firewall exists, nor after it has been removed.
    fn needs(&self) -> Vec<ItemKey> {
        let mut needs = vec![
            ItemKey::Link(self.port.clone()),
            ItemKey::Link(self.bridge.clone()),
            ItemKey::FirewallSkeleton(Family::Inet),
            ItemKey::FirewallSkeleton(Family::Bridge),
        ];
        if self.filtered {
            let tap = vec![Part::Interface(self.port.clone())];
            needs.push(ItemKey::FirewallElement((Family::Bridge, TAPS, tap)));
        }
        needs
    }

    fn transition(&self, new: &Self) -> Transition {
        if self.bridge == new.bridge { Transition::Modify } else { Transition::Recreate }
    }
}

impl Keyed for BridgePort {
    type Key = String;

    fn describe(port: &String, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bridge port {port}")
    }
}
