//! The table of the firewall and all that is fixed in it.

use super::{Batch, ItemKey, Keyed, Kind};
use crate::firewall::Family;
use crate::firewall::skeleton::Layout;
use holdfast_engine::Transition;
use std::fmt;

/// The table of a family with the chains and maps of its [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallSkeleton {
    /// Family.
    pub family: Family,
    /// Of the layout.
    pub digest: u64,
}

impl FirewallSkeleton {
    /// As this version makes it.
    #[must_use]
    pub fn of(family: Family) -> Self {
        Self { family, digest: Layout::of(family).digest() }
    }
}

impl Kind for FirewallSkeleton {
    fn key(&self) -> ItemKey {
        ItemKey::FirewallSkeleton(self.family)
    }

    fn needs(&self) -> Vec<ItemKey> {
        Vec::new()
    }

    /// Only another version of this program has another one.
    fn transition(&self, _: &Self) -> Transition {
        Transition::Recreate
    }

    fn batch(&self) -> Option<Batch> {
        Some(Batch::Nftables)
    }
}

impl Keyed for FirewallSkeleton {
    type Key = Family;

    fn describe(family: &Family, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "firewall table {family}")
    }
}
