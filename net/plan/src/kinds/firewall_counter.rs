//! A counter of packets that a chain drops. It outlives the rules of the chain.

use super::{Batch, ItemKey, Keyed, Kind};
use crate::firewall::{Family, Owner};
use holdfast_engine::Transition;
use std::fmt;
use uuid::Uuid;

/// A named counter.
#[derive(Debug, Clone, PartialEq)]
pub struct FirewallCounter {
    /// Family of its table.
    pub family: Family,
    /// Name.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
}

impl Kind for FirewallCounter {
    fn key(&self) -> ItemKey {
        ItemKey::FirewallCounter((self.family, self.name.clone()))
    }

    fn needs(&self) -> Vec<ItemKey> {
        vec![ItemKey::FirewallSkeleton(self.family)]
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Recreate
    }

    fn batch(&self) -> Option<Batch> {
        Some(Batch::Nftables)
    }

    fn owner(&self) -> Option<Uuid> {
        self.owner.0
    }
}

impl Keyed for FirewallCounter {
    /// Family and name.
    type Key = (Family, String);

    fn describe((family, name): &Self::Key, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "firewall counter {family} {name}")
    }
}
