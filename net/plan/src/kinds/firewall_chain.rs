//! A chain of an app or an instance.

use super::{Batch, ItemKey, Keyed, Kind};
use crate::firewall::{Family, Owner, Rule, digest};
use holdfast_engine::Transition;
use std::fmt;
use uuid::Uuid;

/// A chain, entered by an element that leads to it. Other rules have another name, so that a name stands for its content.
#[derive(Debug, Clone)]
pub struct FirewallChain {
    /// Family.
    pub family: Family,
    /// What it is for, a dot, and the digest of its rules in 16 hexadecimal digits.
    pub name: String,
    /// Rules in order; not known of one that was found.
    pub rules: Vec<Rule>,
    /// Name of the counter that its rules count with.
    pub counter: Option<String>,
    /// Whose it is.
    pub owner: Owner,
}

impl PartialEq for FirewallChain {
    fn eq(&self, other: &Self) -> bool {
        (self.family, &self.name) == (other.family, &other.name)
    }
}

impl FirewallChain {
    /// A chain of these rules. One that counts has a counter of the name it is given here, which outlives the rules.
    #[must_use]
    pub fn new(family: Family, name: &str, rules: Vec<Rule>, owner: Owner) -> Self {
        let counter = rules.iter().any(|r| r.counted).then(|| name.to_owned());
        Self { family, name: format!("{name}.{:016x}", digest(&rules)), rules, counter, owner }
    }

    /// What a chain of that name is for; `None` when it is none of these chains.
    #[must_use]
    pub fn purpose(name: &str) -> Option<&str> {
        let (purpose, digest) = name.rsplit_once('.')?;
        (digest.len() == 16 && digest.bytes().all(|b| b.is_ascii_hexdigit())).then_some(purpose)
    }
}

impl Kind for FirewallChain {
    fn key(&self) -> ItemKey {
        ItemKey::FirewallChain((self.family, self.name.clone()))
    }

    fn needs(&self) -> Vec<ItemKey> {
        let counter = self.counter.iter().map(|c| ItemKey::FirewallCounter((self.family, c.clone())));
        counter.chain([ItemKey::FirewallSkeleton(self.family)]).collect()
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

impl Keyed for FirewallChain {
    /// Family and name.
    type Key = (Family, String);

    fn describe((family, name): &Self::Key, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "firewall chain {family} {name}")
    }
}
