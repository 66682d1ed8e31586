//! Which volume files to make, to replace and to remove. Pure.
//!
//! A file is removed only when it is certain that nobody wants it: the config is known, no object with a fault may mean it, no
//! virtual machine holds it, and a newer generation of the same volume, if the config has one, exists already.

use super::files::DEFAULT_LAYER_BYTES;
use crate::unsure::Unsure;
use holdfast_model::storage::Volume;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use uuid::Uuid;

/// A volume's generation.
pub type Key = (Uuid, i64);

/// The first wait after a failure; doubled with each up to [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// What is known of the folder of volumes.
#[derive(Debug, Default)]
pub struct State {
    /// Files by generation, with the bytes they really take; `None` before the first look.
    pub present: Option<BTreeMap<Key, u64>>,
    /// Names of files that are no volume's: halves that a power cut left.
    pub strays: Vec<String>,
    /// Under way.
    pub making: BTreeSet<Key>,
    /// Purge orders carried out, by volume, for as long as the order stands.
    pub purged: BTreeMap<Uuid, u32>,
    /// What failed.
    pub failed: BTreeMap<Key, Failed>,
    /// A removal is under way.
    pub removing: bool,
    /// No removal before: the last one failed.
    pub remove_at: Duration,
}

/// A try that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Why.
    pub text: String,
    /// Failures in a row.
    pub failures: u32,
    /// Not before.
    pub retry_at: Duration,
}

/// A file to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Make {
    /// The volume's generation.
    pub key: Key,
    /// Its size.
    pub size_bytes: u64,
    /// The purge order that it carries out: the file that exists is replaced.
    pub purge: Option<u32>,
}

/// What is wanted.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The volumes of the config.
    pub volumes: &'a [Volume],
    /// What apps are about to start with.
    pub needed: &'a BTreeSet<Key>,
    /// Purge orders.
    pub purges: &'a BTreeMap<Uuid, u32>,
}

/// Size of a volume's file.
#[must_use]
pub fn size_of(volume: &Volume) -> u64 {
    if volume.max_size_bytes > 0 { volume.max_size_bytes } else { DEFAULT_LAYER_BYTES }
}

impl State {
    /// The folder was looked at and holds no strays.
    fn settled(&self) -> Option<&BTreeMap<Key, u64>> {
        self.present.as_ref().filter(|_| self.strays.is_empty())
    }

    /// The file of this generation exists.
    #[must_use]
    pub fn has(&self, key: &Key) -> bool {
        self.present.as_ref().is_some_and(|p| p.contains_key(key))
    }

    /// Files to make now.
    #[must_use]
    pub fn to_make(&self, wanted: &Wanted<'_>, now: Duration) -> Vec<Make> {
        let Some(present) = self.settled() else { return Vec::new() };
        let mut list = Vec::new();
        for volume in wanted.volumes {
            let key = (volume.id, volume.generation);
            let purge = wanted.purges.get(&volume.id).copied().filter(|p| self.purged.get(&volume.id) != Some(p));
            let missing = wanted.needed.contains(&key) && !present.contains_key(&key);
            let waits = self.failed.get(&key).is_some_and(|f| now < f.retry_at);
            if (purge.is_some() || missing) && !waits && !self.making.contains(&key) {
                list.push(Make { key, size_bytes: size_of(volume), purge });
            }
        }
        list
    }

    /// Notes that these are being made.
    pub fn begin(&mut self, make: &Make) {
        self.making.insert(make.key);
    }

    /// Notes how that ended: with the bytes that the file takes, or why not.
    pub fn made(&mut self, make: &Make, now: Duration, result: Result<u64, String>) {
        self.making.remove(&make.key);
        match result {
            Ok(used) => {
                self.failed.remove(&make.key);
                self.present.get_or_insert_default().insert(make.key, used);
                if let Some(counter) = make.purge {
                    self.purged.insert(make.key.0, counter);
                }
            }
            Err(text) => {
                let failures = self.failed.get(&make.key).map_or(0, |f| f.failures) + 1;
                let wait = FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(LONGEST_RETRY);
                self.failed.insert(make.key, Failed { text, failures, retry_at: now + wait });
            }
        }
    }

    /// Forgets orders that are withdrawn and failures of what is not wanted any more.
    pub fn tidy(&mut self, wanted: &Wanted<'_>) {
        self.purged.retain(|id, _| wanted.purges.contains_key(id));
        self.failed.retain(|key, _| wanted.volumes.iter().any(|v| (v.id, v.generation) == *key));
    }

    /// The next time that something is due.
    #[must_use]
    pub fn next(&self, now: Duration) -> Option<Duration> {
        self.failed.values().map(|f| f.retry_at).filter(|at| *at > now).min()
    }

    /// Generations to remove.
    #[must_use]
    pub fn to_remove(&self, volumes: &[Volume], unsure: &Unsure, held: &BTreeSet<Key>, now: Duration) -> Vec<Key> {
        let Some(present) = self.settled().filter(|_| !self.removing && now >= self.remove_at) else {
            return Vec::new();
        };
        let unwanted = |key: &Key| {
            if held.contains(key) || self.making.contains(key) {
                return false;
            }
            match volumes.iter().find(|v| v.id == key.0) {
                Some(v) => v.generation != key.1 && present.contains_key(&(v.id, v.generation)),
                None => !unsure.may_want(&key.0),
            }
        };
        present.keys().filter(|key| unwanted(key)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::desired::Desired;
    use holdfast_model::storage::VolumeOrigin;
    use holdfast_model::trouble::{Object, ObjectKind, Trouble};

    fn volume(id: u128, generation: i64) -> Volume {
        Volume {
            id: Uuid::from_u128(id),
            name: format!("v{id}"),
            origin: VolumeOrigin::Blank,
            generation,
            max_size_bytes: 0,
            read_only: false,
        }
    }

    fn key(id: u128, generation: i64) -> Key {
        (Uuid::from_u128(id), generation)
    }

    fn with(keys: &[Key]) -> State {
        State { present: Some(keys.iter().map(|k| (*k, 1)).collect()), ..State::default() }
    }

    fn make(state: &State, volumes: &[Volume], needed: &[Key], purges: &[(u128, u32)], now: u64) -> Vec<Make> {
        let needed = needed.iter().copied().collect();
        let purges = purges.iter().map(|(id, n)| (Uuid::from_u128(*id), *n)).collect();
        state.to_make(&Wanted { volumes, needed: &needed, purges: &purges }, Duration::from_secs(now))
    }

    #[test]
    fn nothing_is_made_before_the_folder_was_looked_at_or_while_strays_lie_in_it() {
        let volumes = [volume(1, 0)];
        assert!(make(&State::default(), &volumes, &[key(1, 0)], &[], 0).is_empty());
        let mut state = with(&[]);
        state.strays = vec!["half.new".into()];
        assert!(make(&state, &volumes, &[key(1, 0)], &[], 0).is_empty());
        state.strays.clear();
        assert_eq!(make(&state, &volumes, &[key(1, 0)], &[], 0).len(), 1);
    }

    #[test]
    fn a_volume_is_made_once_and_only_when_an_app_needs_it() {
        let volumes = [volume(1, 0), volume(2, 0)];
        let mut state = with(&[]);
        let due = make(&state, &volumes, &[key(2, 0)], &[], 0);
        assert_eq!(due, [Make { key: key(2, 0), size_bytes: DEFAULT_LAYER_BYTES, purge: None }]);
        state.begin(&due[0]);
        assert!(make(&state, &volumes, &[key(2, 0)], &[], 0).is_empty());
        state.made(&due[0], Duration::ZERO, Ok(4096));
        assert!(make(&state, &volumes, &[key(2, 0)], &[], 0).is_empty());
        assert!(state.has(&key(2, 0)));
    }

    #[test]
    fn a_purge_is_carried_out_once_for_each_order() {
        let volumes = [volume(1, 0)];
        let mut state = with(&[key(1, 0)]);
        let due = make(&state, &volumes, &[], &[(1, 5)], 0);
        assert_eq!(due[0].purge, Some(5));
        state.made(&due[0], Duration::ZERO, Ok(1));
        assert!(make(&state, &volumes, &[], &[(1, 5)], 0).is_empty());
        assert_eq!(make(&state, &volumes, &[], &[(1, 6)], 0).len(), 1);
        // Withdrawn, then the same number again: another order.
        state.tidy(&Wanted { volumes: &volumes, needed: &BTreeSet::new(), purges: &BTreeMap::new() });
        assert_eq!(make(&state, &volumes, &[], &[(1, 5)], 0).len(), 1);
    }

    #[test]
    fn a_purge_without_space_keeps_the_old_volume_and_is_tried_again_later() {
        let volumes = [volume(1, 0)];
        let mut state = with(&[key(1, 0)]);
        let due = make(&state, &volumes, &[], &[(1, 5)], 0);
        state.made(&due[0], Duration::ZERO, Err("no space".into()));
        assert!(state.has(&key(1, 0)) && state.purged.is_empty());
        assert!(make(&state, &volumes, &[], &[(1, 5)], 9).is_empty());
        assert_eq!(make(&state, &volumes, &[], &[(1, 5)], 10).len(), 1);
        assert_eq!(state.next(Duration::ZERO), Some(Duration::from_secs(10)));
    }

    #[test]
    fn only_what_nobody_can_want_is_removed() {
        let fault = Trouble::error(Object::new(ObjectKind::Volume, Uuid::from_u128(4), "v4"), "size: typo");
        let desired = Desired { faults: vec![fault], ..Desired::default() };
        let unsure = Unsure::of(&desired, ObjectKind::Volume);
        let state = with(&[key(1, 0), key(2, 0), key(2, 1), key(3, 0), key(4, 0), key(5, 0)]);
        let held = BTreeSet::from([key(5, 0)]);
        // 1 is wanted, 2 has its newer generation, 3's newer one is missing yet, 4 has a fault, 5 is held.
        let volumes = [volume(1, 0), volume(2, 1), volume(3, 1)];
        assert_eq!(state.to_remove(&volumes, &unsure, &held, Duration::ZERO), [key(2, 0)]);
        assert_eq!(
            state.to_remove(&[], &Unsure::default(), &BTreeSet::new(), Duration::ZERO).len(),
            6,
            "nothing wants any"
        );
    }
}
