//! The part's turn on a bench, over a folder in memory.

use super::*;
use crate::testing::Bench;
use crate::world::Local;
use holdfast_model::desired::Desired;
use holdfast_model::trouble::{Object, Trouble};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) names: RefCell<BTreeSet<String>>,
    pub(crate) made: RefCell<Vec<(Uuid, u64)>>,
    pub(crate) full: RefCell<bool>,
}

impl VolumeStore for Memory {
    fn file(&self, volume: Uuid, generation: i64) -> PathBuf {
        files::file_of(Path::new("/data/volumes"), volume, generation)
    }
    fn look(&self) -> Local<io::Result<Listing>> {
        let mut listing = Listing::default();
        for name in self.names.borrow().iter() {
            match files::key_of(name) {
                Some(key) => drop(listing.volumes.insert(key, 4096)),
                None => listing.strays.push(name.clone()),
            }
        }
        Box::pin(ready(Ok(listing)))
    }
    fn make(&self, volume: Uuid, generation: i64, size_bytes: u64) -> Local<io::Result<u64>> {
        if *self.full.borrow() {
            return Box::pin(ready(Err(io::Error::other("no space"))));
        }
        self.names.borrow_mut().insert(format!("{volume}.{generation}.ext4"));
        self.made.borrow_mut().push((volume, size_bytes));
        Box::pin(ready(Ok(8192)))
    }
    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>> {
        self.names.borrow_mut().retain(|n| !names.contains(n));
        Box::pin(ready(Ok(())))
    }
}

fn volume(id: u128, generation: i64) -> Volume {
    Volume {
        id: Uuid::from_u128(id),
        name: format!("v{id}"),
        origin: VolumeOrigin::Blank,
        generation,
        max_size_bytes: 1 << 20,
        read_only: false,
    }
}

fn name(id: u128, generation: i64) -> String {
    format!("{}.{generation}.ext4", Uuid::from_u128(id))
}

fn part(names: &[String]) -> (Rc<Memory>, VolumePart, Bench) {
    let memory = Rc::new(Memory { names: RefCell::new(names.iter().cloned().collect()), ..Memory::default() });
    let part = VolumePart::over(memory.clone());
    (memory, part, Bench::default())
}

fn with(volumes: &[Volume]) -> Desired {
    Desired { volumes: volumes.to_vec(), ..Desired::default() }
}

fn fact(bench: &Bench, id: u128, generation: i64) -> VolumeFact {
    bench.facts.get::<Volumes>().unwrap().0[&(Uuid::from_u128(id), generation)].clone()
}

#[test]
fn a_volume_is_made_when_an_app_needs_it_and_then_ready() {
    let (memory, mut part, mut bench) = part(&["half.new".into()]);
    bench.config(&mut part, with(&[volume(1, 0), volume(2, 0)]));
    assert!(memory.names.borrow().is_empty(), "the half goes, nothing is made unasked");
    bench.facts.publish(WantedVolumes([(Uuid::from_u128(1), 0)].into()));
    bench.settle(&mut part);
    assert_eq!(*memory.made.borrow(), [(Uuid::from_u128(1), 1 << 20)]);
    assert!(fact(&bench, 1, 0).ready && !fact(&bench, 2, 0).ready);
    let mut observed = Observed::default();
    part.observe(&mut observed);
    let states: Vec<LoadState> = observed.volumes.iter().map(|v| v.state).collect();
    assert_eq!(states, [LoadState::VolumeCreated, LoadState::Initial]);
}

#[test]
fn a_volume_that_cannot_be_made_is_named_and_tried_again() {
    let (memory, mut part, mut bench) = part(&[]);
    *memory.full.borrow_mut() = true;
    bench.facts.publish(WantedVolumes([(Uuid::from_u128(1), 0)].into()));
    bench.config(&mut part, with(&[volume(1, 0)]));
    let found = fact(&bench, 1, 0);
    assert!(!found.ready && found.error.contains("volume v1: no space"), "{found:?}");
    assert_eq!(bench.wake, Some(Duration::from_secs(10)));
    *memory.full.borrow_mut() = false;
    bench.at(&mut part, 10);
    assert!(fact(&bench, 1, 0).ready && fact(&bench, 1, 0).error.is_empty());
    assert_eq!(bench.said("no space"), 1);
}

#[test]
fn a_purge_replaces_the_volume_and_says_so_to_who_ordered_it() {
    let (memory, mut part, mut bench) = part(&[name(1, 0)]);
    bench.config(&mut part, with(&[volume(1, 0)]));
    bench.facts.publish(Purges(BTreeMap::from([(Uuid::from_u128(1), 7)])));
    bench.settle(&mut part);
    assert_eq!(memory.made.borrow().len(), 1);
    assert_eq!(fact(&bench, 1, 0).purged, Some(7));
    bench.settle(&mut part);
    assert_eq!(memory.made.borrow().len(), 1, "once");
}

#[test]
fn volumes_go_only_when_it_is_certain_that_nobody_wants_them() {
    let all = [name(1, 0), name(2, 0), name(3, 0)];
    let (memory, mut part, mut bench) = part(&all);
    let mut desired = with(&[volume(1, 0)]);
    let fault = Trouble::error(Object::new(ObjectKind::Volume, Uuid::from_u128(3), "v3"), "typo");
    desired.faults.push(fault);
    bench.config(&mut part, desired.clone());
    assert_eq!(memory.names.borrow().len(), 3, "it is not known yet which virtual machines run");
    bench.facts.publish(HeldVolumes([(Uuid::from_u128(2), 0)].into()));
    bench.settle(&mut part);
    assert_eq!(memory.names.borrow().len(), 3, "2 is held, 3 has a fault");
    bench.facts.publish(HeldVolumes::default());
    bench.settle(&mut part);
    assert_eq!(*memory.names.borrow(), [name(1, 0), name(3, 0)].into());
    assert_eq!(bench.said(&format!("volumes removed: {}", name(2, 0))), 1);
}
