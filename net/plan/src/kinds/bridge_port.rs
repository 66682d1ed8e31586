//! The membership of an interface in a bridge.

use super::{ItemKey, Keyed, Kind};
use crate::rules::TABLE;
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
}

impl Kind for BridgePort {
    fn key(&self) -> ItemKey {
        ItemKey::BridgePort(self.port.clone())
    }

    /// No frame flows before the firewall exists, nor after it has been removed.
    fn needs(&self) -> Vec<ItemKey> {
        vec![
            ItemKey::Link(self.port.clone()),
            ItemKey::Link(self.bridge.clone()),
            ItemKey::Nftables(("inet", TABLE.into())),
            ItemKey::Nftables(("bridge", TABLE.into())),
        ]
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
