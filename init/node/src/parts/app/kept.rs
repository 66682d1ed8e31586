//! What the part keeps in its file.

use super::decide::Acted;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The part's file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// The apps that are known.
    pub apps: BTreeMap<Uuid, KeptApp>,
}

/// What survives a restart of the agent and a reboot of the device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptApp {
    /// Display name.
    pub name: String,
    /// Small number that no other app has, for the uid; none only when the file was damaged.
    pub number: Option<u32>,
    /// Counters acted on; none before the app was first taken in.
    pub acted: Option<Acted>,
    /// Generations of volumes that its virtual machine was last started with.
    pub volumes: Vec<(Uuid, i64)>,
}

impl Kept {
    /// The smallest number that no app has.
    #[must_use]
    pub fn free_number(&self) -> u32 {
        let used: BTreeSet<u32> = self.apps.values().filter_map(|a| a.number).collect();
        (0..).find(|n| !used.contains(n)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_forgotten_apps_are_used_again() {
        let mut kept = Kept::default();
        for n in 0..3 {
            let app = KeptApp { number: Some(kept.free_number()), ..KeptApp::default() };
            kept.apps.insert(Uuid::from_u128(n), app);
        }
        kept.apps.remove(&Uuid::from_u128(1));
        assert_eq!(kept.free_number(), 1);
    }
}
