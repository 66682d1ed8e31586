//! An element of a map of the firewall: how packets find their chain.

use super::{Batch, FirewallChain, ItemKey, Keyed, Kind};
use crate::firewall::{Family, Owner, Part};
use holdfast_engine::Transition;
use std::fmt;
use uuid::Uuid;

/// What an element says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Nothing: it is a member of a set.
    Member,
    /// Accept.
    Accept,
    /// To that chain, and back when it does not decide.
    Jump(String),
    /// To that chain, not back.
    Goto(String),
}

/// An element.
#[derive(Debug, Clone, PartialEq)]
pub struct FirewallElement {
    /// Family of its table.
    pub family: Family,
    /// Map or set, one of [`crate::firewall::skeleton`].
    pub map: &'static str,
    /// Parts as the map says.
    pub key: Vec<Part>,
    /// What it says.
    pub target: Target,
    /// Whose it is.
    pub owner: Owner,
}

impl Kind for FirewallElement {
    fn key(&self) -> ItemKey {
        ItemKey::FirewallElement((self.family, self.map, self.key.clone()))
    }

    fn needs(&self) -> Vec<ItemKey> {
        let mut needs = vec![ItemKey::FirewallSkeleton(self.family)];
        match &self.target {
            Target::Jump(chain) | Target::Goto(chain) if FirewallChain::purpose(chain).is_some() => {
                needs.push(ItemKey::FirewallChain((self.family, chain.clone())));
            }
            _ => {}
        }
        // An app is let through only when packets find both of its chains.
        if self.map == crate::firewall::skeleton::APPS {
            let walks = [crate::firewall::skeleton::WALK_OUT, crate::firewall::skeleton::WALK_IN];
            needs.extend(walks.map(|map| ItemKey::FirewallElement((self.family, map, self.key.clone()))));
        }
        needs
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Modify
    }

    fn batch(&self) -> Option<Batch> {
        Some(Batch::Nftables)
    }

    fn owner(&self) -> Option<Uuid> {
        self.owner.0
    }
}

impl Keyed for FirewallElement {
    /// Family, map and key.
    type Key = (Family, &'static str, Vec<Part>);

    fn describe((family, map, key): &Self::Key, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "firewall element {family} {map}")?;
        key.iter().try_for_each(|part| write!(f, " {part}"))
    }
}
