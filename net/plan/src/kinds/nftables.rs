//! A whole nftables table.

use super::{ItemKey, Keyed, Kind};
use crate::firewall::{Family, Table};
use holdfast_engine::Transition;
use std::fmt;

/// An nftables table, replaced as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nftables(pub Table);

impl Kind for Nftables {
    fn key(&self) -> ItemKey {
        let family = match self.0.family {
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        };
        ItemKey::Nftables((family, self.0.name.clone()))
    }

    fn needs(&self) -> Vec<ItemKey> {
        Vec::new()
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Modify
    }
}

impl Keyed for Nftables {
    /// Family and name.
    type Key = (&'static str, String);

    fn describe((family, name): &Self::Key, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nftables table {family} {name}")
    }
}
