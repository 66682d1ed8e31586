//! Whatever happens, the engine keeps the order of needs, disturbs nothing that is held, and arrives.

use super::tests::{EXTERNAL, Thing};
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// A real world with several operations under way.
struct World {
    engine: Engine<Thing>,
    things: BTreeMap<u8, Thing>,
    ops: Vec<Op<Thing>>,
    clock: Instant,
    /// Something vanished under them: they are recreated whatever holds them.
    shaken: BTreeSet<u8>,
    violations: Vec<String>,
}

#[derive(Debug, Clone)]
enum Event {
    Intend(Vec<Thing>),
    /// One of the operations under way ends, well or not; a failed one has happened in part.
    End {
        which: usize,
        fails: bool,
        happened: bool,
    },
    /// The process dies: what runs has happened or not, and is found by its successor.
    Crash {
        happened: bool,
    },
    External {
        key: u8,
        needs: Vec<u8>,
        present: bool,
    },
    Conditions {
        key: u8,
        ready: bool,
    },
    Vanish(u8),
    Wait,
}

impl World {
    fn new() -> Self {
        Self {
            engine: Engine::new(Backoff::default()),
            things: BTreeMap::new(),
            ops: Vec::new(),
            clock: Instant::now(),
            shaken: BTreeSet::new(),
            violations: Vec::new(),
        }
    }

    /// Everything that it needs exists, down to the ground.
    fn is_sound(&self, key: u8) -> bool {
        let is_ground = |t: &Thing| t.key >= EXTERNAL;
        self.things.get(&key).is_some_and(|t| is_ground(t) || t.needs.iter().chain(&t.ready).all(|n| self.is_sound(*n)))
    }

    fn start(&mut self) {
        let shaken: Vec<u8> = self.things.keys().copied().filter(|k| !self.is_sound(*k)).collect();
        self.shaken.extend(shaken);
        for op in self.engine.next(self.clock) {
            // What an operation does before is taken into account in order: a batch happens at once.
            let mut after = self.things.clone();
            for action in &op.actions {
                self.check(action, &mut after);
            }
            self.ops.push(op);
        }
    }

    fn check(&mut self, action: &Action<Thing>, after: &mut BTreeMap<u8, Thing>) {
        let key = action.key();
        let is_sound = self.is_sound(key) && !self.shaken.contains(&key);
        let mut wrong = |text: String| self.violations.push(format!("{action:?}: {text}"));
        if key >= EXTERNAL {
            wrong("acts on an external item".into());
        }
        let under_way = self.ops.iter().flat_map(|op| &op.actions);
        for other in under_way.clone() {
            if other.key() == key {
                wrong("two operations at once".into());
            }
            let needs = |t: &Thing| t.needs.contains(&key) || t.ready.contains(&key);
            if matches!(action, Action::Delete(_)) && needs(other.item()) {
                wrong(format!("deleted under the running {other:?}"));
            }
        }
        match action {
            Action::Create(item) | Action::Modify { new: item, .. } => {
                for need in item.needs.iter().chain(&item.ready) {
                    if !after.contains_key(need) || under_way.clone().any(|a| a.key() == *need) {
                        wrong(format!("without {need}"));
                    }
                }
                after.insert(key, (**item).clone());
            }
            Action::Delete(item) => {
                let intended = self.engine.intended().contains(&key);
                for other in after.values().filter(|t| t.needs.contains(&key) || t.ready.contains(&key)) {
                    if other.key < EXTERNAL {
                        wrong(format!("under {}", other.key));
                    }
                }
                let external = self.things.values().any(|t| t.key >= EXTERNAL && t.needs.contains(&key));
                let pinned = item.pin.is_some_and(|by| self.things.contains_key(&by));
                // A value that was found is told to the engine with its pin: it sees what is checked here.
                if (if intended { pinned } else { external }) && is_sound {
                    wrong("disturbs what is held".into());
                }
                after.remove(&key);
            }
        }
    }

    fn happen(&mut self, op: &Op<Thing>) {
        for action in &op.actions {
            match action {
                Action::Create(item) | Action::Modify { new: item, .. } => {
                    self.things.insert(item.key, (**item).clone());
                    self.shaken.remove(&item.key);
                }
                Action::Delete(item) => drop(self.things.remove(&item.key)),
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Intend(things) => self.engine.set_intended(things.into_iter().collect()),
            Event::End { which, fails, happened } if !self.ops.is_empty() => {
                let op = self.ops.remove(which % self.ops.len());
                if happened || !fails {
                    self.happen(&op);
                }
                let result = if fails { Err("no luck".to_owned()) } else { Ok(()) };
                self.engine.finished(op.id, vec![result; op.actions.len()], self.clock);
            }
            Event::End { .. } => {}
            Event::Crash { happened } => {
                for op in std::mem::take(&mut self.ops) {
                    if happened {
                        self.happen(&op);
                    }
                }
                let mut engine = Engine::new(Backoff::default());
                engine.set_intended(self.engine.intended().clone());
                engine.adopt(self.things.values().filter(|t| t.key < EXTERNAL).cloned().collect());
                for thing in self.things.values().filter(|t| t.key >= EXTERNAL) {
                    engine.tell(Fact::Present(thing.clone().into()));
                }
                for (key, conditions) in &self.engine.facts.conditions {
                    engine.tell(Fact::Conditions(*key, conditions.clone()));
                }
                self.engine = engine;
            }
            Event::External { key, needs, present } => {
                // It comes only onto what exists and is not on its way out.
                let steady = needs.iter().all(|n| matches!(self.engine.state(n), Some(State::Created)));
                if present && steady && self.ops.is_empty() {
                    let thing = Thing { key, needs, ..Thing::default() };
                    self.engine.tell(Fact::Present(thing.clone().into()));
                    self.things.insert(key, thing);
                } else if !present {
                    self.things.remove(&key);
                    self.engine.tell(Fact::Absent(key));
                }
            }
            Event::Conditions { key, ready } => {
                let all = if ready { BTreeSet::from(["ready"]) } else { BTreeSet::new() };
                self.engine.tell(Fact::Conditions(key, all));
            }
            Event::Vanish(key) => {
                if self.ops.is_empty() && self.things.remove(&key).is_some() {
                    self.engine.mark_lost(&key);
                }
            }
            Event::Wait => self.clock += Duration::from_millis(700),
        }
        self.start();
    }

    /// Nothing fails any more: everything ends.
    fn settle(&mut self) {
        for _ in 0..400 {
            self.clock += Duration::from_secs(120);
            self.start();
            if self.ops.is_empty() {
                return;
            }
            self.event(Event::End { which: 0, fails: false, happened: true });
        }
        panic!("does not settle: {:?}", self.engine.states());
    }

    /// What can exist of what is intended, found by trying until nothing more is added.
    fn possible(&self) -> BTreeMap<u8, Thing> {
        let mut possible: BTreeMap<u8, Thing> = BTreeMap::new();
        loop {
            let exists = |k: &u8| possible.contains_key(k) || (*k >= EXTERNAL && self.things.contains_key(k));
            let ready = |k: &u8| self.engine.facts.conditions.get(k).is_some_and(|c| c.contains("ready"));
            let more: Vec<Thing> = self
                .engine
                .intended()
                .iter()
                .filter(|(k, t)| **k < EXTERNAL && !possible.contains_key(*k) && t.needs.iter().all(exists))
                .filter(|(_, t)| t.ready.iter().all(|k| exists(k) && ready(k)))
                .map(|(_, t)| (**t).clone())
                .collect();
            if more.is_empty() {
                return possible;
            }
            possible.extend(more.into_iter().map(|t| (t.key, t)));
        }
    }
}

fn things() -> impl Strategy<Value = Vec<Thing>> {
    let one = (0..9_u8, 0..2_u8, 0..3_u8, vec(0..9_u8, 0..3), 0..8_u8, 0..6_u8);
    vec(one, 0..10).prop_map(|list| {
        let thing = |(key, fixed, soft, needs, choice, batch): (u8, u8, u8, Vec<u8>, u8, u8)| Thing {
            key,
            fixed,
            soft,
            // Acyclic: needs only smaller keys, and perhaps an external one. Some of them may be absent.
            needs: needs.into_iter().filter(|n| *n < key).chain((choice == 7).then_some(EXTERNAL)).collect(),
            ready: (choice == 6 && key > 0).then_some(key / 2).into_iter().collect(),
            pin: (choice < 2).then_some(EXTERNAL + 1 + choice),
            batch: (batch < 3).then_some(batch / 2),
            owner: (batch > 0).then_some(key % 3),
        };
        list.into_iter().map(thing).collect()
    })
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let end = (0..8_usize, any::<bool>(), any::<bool>());
    vec(
        prop_oneof![
            2 => things().prop_map(Event::Intend),
            8 => end.prop_map(|(which, fails, happened)| Event::End { which, fails, happened }),
            1 => any::<bool>().prop_map(|happened| Event::Crash { happened }),
            2 => (0..3_u8, vec(0..9_u8, 0..3), any::<bool>())
                .prop_map(|(n, needs, present)| Event::External { key: EXTERNAL + n, needs, present }),
            1 => (0..9_u8, any::<bool>()).prop_map(|(key, ready)| Event::Conditions { key, ready }),
            1 => (0..9_u8).prop_map(Event::Vanish),
            2 => Just(Event::Wait),
        ],
        1..40,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn any_history_converges_in_order_disturbs_nothing_and_then_rests(history in events()) {
        let mut world = World::new();
        for event in history {
            world.event(event);
        }
        world.settle();
        prop_assert!(world.engine.is_settled());
        for key in EXTERNAL..EXTERNAL + 3 {
            world.event(Event::External { key, needs: Vec::new(), present: false });
        }
        world.settle();
        prop_assert!(world.engine.is_settled(), "{:?}", world.engine.states());
        prop_assert_eq!(&world.violations, &Vec::<String>::new());
        prop_assert_eq!(&world.things, &world.possible());
        let current: BTreeMap<u8, Thing> = world.engine.current().iter().map(|(k, t)| (*k, (**t).clone())).collect();
        prop_assert_eq!(&world.things, &current);
        world.clock += Duration::from_secs(3600);
        prop_assert!(world.engine.next(world.clock).is_empty());
    }
}
