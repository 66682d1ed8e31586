use super::*;
use crate::graph::Transition;
use proptest::prelude::*;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Test item: `fixed` changes only by recreation, `soft` in place.
#[derive(Debug, Clone, PartialEq)]
struct Thing {
    key: u8,
    fixed: u8,
    soft: u8,
    needs: Vec<u8>,
}

impl Item for Thing {
    type Key = u8;
    fn key(&self) -> u8 {
        self.key
    }
    fn dependencies(&self) -> Vec<u8> {
        self.needs.clone()
    }
    fn transition(&self, new: &Self) -> Transition {
        if self.fixed == new.fixed { Transition::Modify } else { Transition::Recreate }
    }
}

fn thing(key: u8, needs: &[u8]) -> Thing {
    Thing { key, fixed: 0, soft: 0, needs: needs.to_vec() }
}

/// A world that fails on demand and checks that no action breaks the order of dependencies.
#[derive(Default)]
struct World {
    things: BTreeMap<u8, Thing>,
    log: Vec<String>,
    /// Each action takes one; true = fail. Empty = succeed.
    faults: Vec<bool>,
    violations: Vec<String>,
}

impl World {
    fn fails(&mut self) -> bool {
        self.faults.pop().unwrap_or(false)
    }
}

impl Driver<Thing> for World {
    type Error = &'static str;

    async fn create(&mut self, item: &Thing) -> Result<(), &'static str> {
        self.log.push(format!("+{}", item.key));
        for d in &item.needs {
            if !self.things.contains_key(d) {
                self.violations.push(format!("{} created without {d}", item.key));
            }
        }
        if self.fails() {
            // Half of it is there.
            self.things.insert(item.key, item.clone());
            return Err("no luck");
        }
        self.things.insert(item.key, item.clone());
        Ok(())
    }

    async fn modify(&mut self, old: &Thing, new: &Thing) -> Result<(), &'static str> {
        self.log.push(format!("~{}", new.key));
        if self.things.get(&old.key) != Some(old) || old.fixed != new.fixed {
            self.violations.push(format!("{} changed from a value it does not have", old.key));
        }
        for d in &new.needs {
            if !self.things.contains_key(d) {
                self.violations.push(format!("{} changed without {d}", new.key));
            }
        }
        if self.fails() {
            return Err("no luck");
        }
        self.things.insert(new.key, new.clone());
        Ok(())
    }

    async fn delete(&mut self, item: &Thing) -> Result<(), &'static str> {
        self.log.push(format!("-{}", item.key));
        for t in self.things.values() {
            if t.needs.contains(&item.key) && t.key != item.key {
                self.violations.push(format!("{} deleted under {}", item.key, t.key));
            }
        }
        if self.fails() {
            return Err("no luck");
        }
        self.things.remove(&item.key);
        Ok(())
    }
}

fn now(future: impl Future<Output = Report>) -> Report {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(r) => r,
        Poll::Pending => panic!("the test driver never waits"),
    }
}

fn settle(r: &mut Reconciler<Thing>, w: &mut World, clock: &mut Instant) {
    for _ in 0..64 {
        *clock += Duration::from_secs(120);
        let report = now(r.run(w, *clock));
        if report.failed == 0 && report.done == 0 {
            return;
        }
    }
    panic!("does not settle: {:?}", r.states());
}

#[test]
fn creates_dependencies_first_and_deletes_them_last() {
    let (mut r, mut w, mut t) = (Reconciler::new(Backoff::default()), World::default(), Instant::now());
    r.set_intended([thing(1, &[2]), thing(2, &[3]), thing(3, &[])].into_iter().collect());
    settle(&mut r, &mut w, &mut t);
    r.set_intended(Graph::new());
    settle(&mut r, &mut w, &mut t);
    assert_eq!(w.log, ["+3", "+2", "+1", "-1", "-2", "-3"]);
}

#[test]
fn recreates_dependents_of_a_recreated_item_and_nothing_else() {
    let (mut r, mut w, mut t) = (Reconciler::new(Backoff::default()), World::default(), Instant::now());
    let base = [thing(1, &[]), thing(2, &[1]), thing(3, &[2]), thing(4, &[]), thing(5, &[4])];
    r.set_intended(base.iter().cloned().collect());
    settle(&mut r, &mut w, &mut t);
    w.log.clear();
    let mut changed: Graph<Thing> = base.into_iter().collect();
    changed.insert(Thing { fixed: 1, ..thing(1, &[]) });
    r.set_intended(changed);
    settle(&mut r, &mut w, &mut t);
    assert_eq!(w.log, ["-3", "-2", "-1", "+1", "+2", "+3"]);
}

#[test]
fn modifies_in_place_without_disturbing_dependents() {
    let (mut r, mut w, mut t) = (Reconciler::new(Backoff::default()), World::default(), Instant::now());
    r.set_intended([thing(1, &[]), thing(2, &[1])].into_iter().collect());
    settle(&mut r, &mut w, &mut t);
    w.log.clear();
    r.set_intended([Thing { soft: 9, ..thing(1, &[]) }, thing(2, &[1])].into_iter().collect());
    settle(&mut r, &mut w, &mut t);
    assert_eq!(w.log, ["~1"]);
}

#[test]
fn failed_item_waits_for_its_backoff_while_others_go_on() {
    let (mut r, mut w, t) = (Reconciler::new(Backoff::default()), World::default(), Instant::now());
    r.set_intended([thing(1, &[]), thing(2, &[1]), thing(3, &[])].into_iter().collect());
    w.faults = vec![false, true];
    let report = now(r.run(&mut w, t));
    assert_eq!(w.log, ["+1", "+3"]);
    assert_eq!((report.done, report.failed), (1, 1));
    assert_eq!(report.next_retry, Some(t + Duration::from_millis(500)));
    assert_eq!(r.state(&1), Some(State::Failed { error: "cannot create 1: no luck".into(), attempts: 1 }));
    assert_eq!(r.state(&2), Some(State::Pending("waits for 1".into())));
    now(r.run(&mut w, t + Duration::from_millis(499)));
    assert_eq!(w.log, ["+1", "+3"]);
    now(r.run(&mut w, t + Duration::from_millis(500)));
    assert_eq!(w.log, ["+1", "+3", "+1", "+2"]);
    assert!(r.is_settled());
}

#[test]
fn a_half_made_item_is_removed_when_no_longer_wanted() {
    let (mut r, mut w, mut t) = (Reconciler::new(Backoff::default()), World::default(), Instant::now());
    r.set_intended([thing(1, &[])].into_iter().collect());
    w.faults = vec![true];
    now(r.run(&mut w, t));
    assert!(w.things.contains_key(&1));
    r.set_intended(Graph::new());
    assert!(!r.is_settled());
    settle(&mut r, &mut w, &mut t);
    assert!(w.things.is_empty());
    assert!(r.is_settled());
}

#[test]
fn missing_dependency_and_cycle_are_named_and_block_nobody_else() {
    let (mut r, mut w, mut t) = (Reconciler::new(Backoff::default()), World::default(), Instant::now());
    r.set_intended([thing(1, &[9]), thing(2, &[3]), thing(3, &[2]), thing(4, &[])].into_iter().collect());
    settle(&mut r, &mut w, &mut t);
    assert_eq!(w.log, ["+4"]);
    assert_eq!(r.state(&1), Some(State::Pending("needs 9, which is not configured".into())));
    assert_eq!(r.unsatisfied().len(), 3);
}

#[test]
fn adopted_items_are_kept_or_removed_without_touching_the_rest() {
    let (mut r, mut w, mut t) = (Reconciler::new(Backoff::default()), World::default(), Instant::now());
    for i in [thing(1, &[]), thing(2, &[1]), thing(7, &[1])] {
        w.things.insert(i.key, i);
    }
    r.adopt(w.things.values().cloned().collect());
    r.set_intended([thing(1, &[]), thing(2, &[1])].into_iter().collect());
    settle(&mut r, &mut w, &mut t);
    assert_eq!(w.log, ["-7"]);
}

#[test]
fn a_lost_item_is_made_again_with_its_dependents() {
    let (mut r, mut w, mut t) = (Reconciler::new(Backoff::default()), World::default(), Instant::now());
    r.set_intended([thing(1, &[]), thing(2, &[1]), thing(3, &[])].into_iter().collect());
    settle(&mut r, &mut w, &mut t);
    w.log.clear();
    r.mark_lost(&1);
    settle(&mut r, &mut w, &mut t);
    assert_eq!(w.log, ["-2", "+1", "+2"]);
}

fn graphs() -> impl Strategy<Value = Vec<Thing>> {
    let one = (0..8_u8, 0..3_u8, 0..3_u8, proptest::collection::vec(0..8_u8, 0..3));
    proptest::collection::vec(one, 0..9).prop_map(|v| {
        v.into_iter()
            .map(|(key, fixed, soft, needs)| Thing {
                key,
                fixed,
                soft,
                // Acyclic: needs only smaller keys. Some of them may be absent.
                needs: needs.into_iter().filter(|n| *n < key).collect(),
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn any_history_converges_in_order_and_then_rests(
        history in proptest::collection::vec((graphs(), proptest::collection::vec(any::<bool>(), 0..6), 1..3_u8), 1..6),
    ) {
        let (mut r, mut w, mut t) = (Reconciler::new(Backoff::default()), World::default(), Instant::now());
        for (items, faults, runs) in history {
            r.set_intended(items.into_iter().collect());
            w.faults = faults;
            for _ in 0..runs {
                t += Duration::from_millis(700);
                now(r.run(&mut w, t));
            }
        }
        w.faults.clear();
        settle(&mut r, &mut w, &mut t);
        prop_assert!(r.is_settled());
        prop_assert_eq!(&w.violations, &Vec::<String>::new());
        let blocked = r.unsatisfied();
        let want: BTreeMap<u8, Thing> = r.intended().iter()
            .filter(|(k, _)| !blocked.contains_key(*k))
            .map(|(k, v)| (*k, v.clone())).collect();
        prop_assert_eq!(&w.things, &want);
        w.log.clear();
        now(r.run(&mut w, t + Duration::from_secs(3600)));
        prop_assert_eq!(w.log, Vec::<String>::new());
    }
}
