//! A VLAN interface over another (IEEE 802.1Q).

use super::{ItemKey, Kind};
use holdfast_engine::Transition;

/// A VLAN interface, up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlan {
    /// Kernel name.
    pub name: String,
    /// Interface it lies over.
    pub parent: String,
    /// 1..=4094.
    pub id: u16,
    /// MTU in bytes.
    pub mtu: u32,
}

impl Kind for Vlan {
    fn key(&self) -> ItemKey {
        ItemKey::Link(self.name.clone())
    }

    fn needs(&self) -> Vec<ItemKey> {
        vec![ItemKey::Link(self.parent.clone())]
    }

    fn transition(&self, new: &Self) -> Transition {
        if self.parent == new.parent && self.id == new.id { Transition::Modify } else { Transition::Recreate }
    }
}
