//! A physical interface in use: the card exists by itself, the item brings it up.

use super::{ItemKey, Kind};
use holdfast_engine::Transition;

/// A physical interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Kernel name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
}

impl Kind for Port {
    fn key(&self) -> ItemKey {
        ItemKey::Link(self.name.clone())
    }

    fn needs(&self) -> Vec<ItemKey> {
        vec![ItemKey::Card(self.name.clone())]
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Modify
    }
}
