//! A persistent tap, the host's end of a VM's network card.

use super::{ItemKey, Kind};
use holdfast_engine::Transition;
use uuid::Uuid;

/// A persistent tap interface with virtio-net header, up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Kernel name.
    pub name: String,
    /// The app whose VM attaches to it; the nil UUID when it was found and no app of the config has it.
    pub app: Uuid,
    /// User that may attach to it.
    pub owner_uid: u32,
    /// For several queues, one descriptor each; a tap of one queue is of the other kind. The kernel lets nobody change it.
    pub multi_queue: bool,
    /// MTU in bytes.
    pub mtu: u32,
}

impl Kind for Tap {
    fn key(&self) -> ItemKey {
        ItemKey::Link(self.name.clone())
    }

    fn needs(&self) -> Vec<ItemKey> {
        Vec::new()
    }

    fn transition(&self, new: &Self) -> Transition {
        let stays = self.owner_uid == new.owner_uid && self.multi_queue == new.multi_queue;
        if stays { Transition::Modify } else { Transition::Recreate }
    }

    /// Its recreation would cut the running VM off its network.
    fn pinned_by(&self) -> Option<ItemKey> {
        Some(ItemKey::Guest(self.app))
    }

    fn owner(&self) -> Option<Uuid> {
        Some(self.app)
    }
}
