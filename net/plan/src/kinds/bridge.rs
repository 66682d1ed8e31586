//! A bridge.

use super::{ItemKey, Kind};
use holdfast_engine::Transition;
use holdfast_model::net::Mac;

/// A bridge, up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Kernel name.
    pub name: String,
    /// Its own MAC, fixed so that neighbours keep the gateway's address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
}

impl Kind for Bridge {
    fn key(&self) -> ItemKey {
        ItemKey::Link(self.name.clone())
    }

    fn needs(&self) -> Vec<ItemKey> {
        Vec::new()
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Modify
    }
}
