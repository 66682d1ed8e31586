use super::*;
use crate::drive::{Driver, Report, drive};
use crate::item::Transition;
use std::cell::RefCell;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Test item: `fixed` changes only by recreation, `soft` in place. Keys from 100 are external.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Thing {
    pub(super) key: u8,
    pub(super) fixed: u8,
    pub(super) soft: u8,
    pub(super) needs: Vec<u8>,
    pub(super) ready: Vec<u8>,
    pub(super) pin: Option<u8>,
    pub(super) batch: Option<u8>,
    pub(super) owner: Option<u8>,
}

pub(super) const EXTERNAL: u8 = 100;

impl Item for Thing {
    type Key = u8;
    type Condition = &'static str;
    type Batch = u8;
    type Owner = u8;
    fn key(&self) -> u8 {
        self.key
    }
    fn needs(&self) -> Vec<Need<u8, &'static str>> {
        let ready = self.ready.iter().map(|k| Need::with(*k, "ready"));
        self.needs.iter().map(|k| Need::exists(*k)).chain(ready).collect()
    }
    fn transition(&self, new: &Self) -> Transition {
        if self.fixed == new.fixed { Transition::Modify } else { Transition::Recreate }
    }
    fn external(&self) -> bool {
        self.key >= EXTERNAL
    }
    fn pinned_by(&self) -> Option<u8> {
        self.pin
    }
    fn batch(&self) -> Option<u8> {
        self.batch
    }
    fn owner(&self) -> Option<u8> {
        self.owner
    }
}

fn thing(key: u8, needs: &[u8]) -> Thing {
    Thing { key, needs: needs.to_vec(), ..Thing::default() }
}

fn graph(things: impl IntoIterator<Item = Thing>) -> Graph<Thing> {
    things.into_iter().collect()
}

/// Notes what it is asked to do; keys in `broken` fail, and with them the whole operation.
#[derive(Default)]
struct Log {
    lines: RefCell<Vec<String>>,
    broken: RefCell<BTreeSet<u8>>,
}

fn line(actions: &[Action<Thing>]) -> String {
    let sign = |a: &Action<Thing>| match a {
        Action::Create(_) => '+',
        Action::Modify { .. } => '~',
        Action::Delete(_) => '-',
    };
    actions.iter().map(|a| format!("{}{}", sign(a), a.key())).collect::<Vec<_>>().join(" ")
}

impl Driver<Thing> for Log {
    type Error = &'static str;
    async fn run(&self, actions: &[Action<Thing>]) -> Vec<Result<(), &'static str>> {
        self.lines.borrow_mut().push(line(actions));
        let fails = actions.iter().any(|a| self.broken.borrow().contains(&a.key()));
        actions.iter().map(|_| if fails { Err("refused") } else { Ok(()) }).collect()
    }
}

struct Case {
    engine: Engine<Thing>,
    log: Log,
    clock: Instant,
}

impl Case {
    fn new(things: impl IntoIterator<Item = Thing>) -> Self {
        let mut case = Self { engine: Engine::new(Backoff::default()), log: Log::default(), clock: Instant::now() };
        case.engine.set_intended(graph(things));
        case
    }

    fn run(&mut self) -> Report {
        let mut future = pin!(drive(&mut self.engine, &self.log, self.clock));
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(report) => report,
            Poll::Pending => panic!("the test driver never waits"),
        }
    }

    fn done(&mut self) -> Vec<String> {
        self.run();
        self.log.lines.take()
    }

    fn start(&mut self) -> Vec<Op<Thing>> {
        self.engine.next(self.clock)
    }

    fn end(&mut self, op: &Op<Thing>) {
        self.engine.finished(op.id, op.actions.iter().map(|_| Ok(())).collect(), self.clock);
    }

    fn pending(&self, key: u8) -> String {
        match self.engine.state(&key) {
            Some(State::Pending(text) | State::Kept(text)) => text,
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn creates_needs_first_and_deletes_them_last() {
    let mut c = Case::new([thing(1, &[2]), thing(2, &[3]), thing(3, &[])]);
    assert_eq!(c.done(), ["+3", "+2", "+1"]);
    c.engine.set_intended(Graph::new());
    assert_eq!(c.done(), ["-1", "-2", "-3"]);
    assert!(c.engine.is_settled() && c.engine.states().is_empty());
}

#[test]
fn recreates_dependents_of_a_recreated_item_and_nothing_else() {
    let base = [thing(1, &[]), thing(2, &[1]), thing(3, &[2]), thing(4, &[]), thing(5, &[4])];
    let mut c = Case::new(base.clone());
    c.done();
    let mut changed = graph(base);
    changed.insert(Thing { fixed: 1, ..thing(1, &[]) });
    c.engine.set_intended(changed);
    assert_eq!(c.done(), ["-3", "-2", "-1", "+1", "+2", "+3"]);
}

#[test]
fn modifies_in_place_without_disturbing_dependents() {
    let mut c = Case::new([thing(1, &[]), thing(2, &[1])]);
    c.done();
    c.engine.set_intended(graph([Thing { soft: 9, ..thing(1, &[]) }, thing(2, &[1])]));
    assert_eq!(c.done(), ["~1"]);
    c.engine.set_intended(graph([Thing { soft: 9, ..thing(1, &[]) }, thing(2, &[1])]));
    assert!(c.done().is_empty());
}

#[test]
fn an_item_that_can_leave_what_goes_is_changed_before_it_goes() {
    let mut c = Case::new([thing(1, &[]), thing(3, &[1])]);
    c.done();
    c.engine.set_intended(graph([thing(2, &[]), Thing { soft: 1, ..thing(3, &[2]) }]));
    assert_eq!(c.done(), ["+2", "~3", "-1"]);
    // What it moves to has to be deleted first, and stands on what it leaves: only recreation gets there.
    c.engine.set_intended(graph([Thing { fixed: 1, ..thing(2, &[]) }, thing(3, &[2])]));
    assert_eq!(c.done(), ["-3", "-2", "+2", "+3"]);
}

#[test]
fn a_failed_item_waits_for_its_backoff_while_others_go_on() {
    let mut c = Case::new([thing(1, &[]), thing(2, &[1]), thing(3, &[])]);
    c.log.broken.borrow_mut().insert(1);
    let (begin, report) = (c.clock, c.run());
    assert_eq!(c.log.lines.take(), ["+1", "+3"]);
    assert_eq!((report.done, report.failed), (1, 1));
    assert_eq!(report.next_retry, Some(begin + Duration::from_millis(500)));
    assert_eq!(c.engine.state(&1), Some(State::Failed { error: "cannot create 1: refused".into(), attempts: 1 }));
    assert_eq!(c.pending(2), "waits for 1");
    c.log.broken.take();
    c.clock = begin + Duration::from_millis(499);
    assert!(c.done().is_empty());
    c.clock = begin + Duration::from_millis(500);
    assert_eq!(c.done(), ["+1", "+2"]);
    assert!(c.engine.is_settled());
}

#[test]
fn a_half_created_item_is_removed_when_no_longer_wanted() {
    let mut c = Case::new([thing(1, &[])]);
    c.log.broken.borrow_mut().insert(1);
    c.run();
    c.log.broken.take();
    c.engine.set_intended(Graph::new());
    assert!(!c.engine.is_settled());
    assert_eq!(c.done(), ["+1", "-1"]);
    assert!(c.engine.is_settled());
}

#[test]
fn a_missing_need_and_a_cycle_are_named_and_block_nobody_else() {
    let mut c = Case::new([thing(1, &[9]), thing(2, &[3]), thing(3, &[2]), thing(4, &[])]);
    assert_eq!(c.done(), ["+4"]);
    assert_eq!(c.pending(1), "needs 9, which is not configured");
    assert_eq!(c.engine.unmet().len(), 3);
}

#[test]
fn adopted_items_are_kept_or_removed_without_touching_the_rest() {
    let mut c = Case::new([thing(1, &[]), thing(2, &[1])]);
    c.engine.adopt(graph([thing(1, &[]), thing(2, &[1]), thing(7, &[1])]));
    assert_eq!(c.done(), ["-7"]);
}

#[test]
fn a_lost_item_is_created_again_with_its_dependents() {
    let mut c = Case::new([thing(1, &[]), thing(2, &[1]), thing(3, &[])]);
    c.done();
    c.engine.mark_lost(&1);
    assert_eq!(c.done(), ["-2", "+1", "+2"]);
}

#[test]
fn an_item_lost_while_an_operation_on_it_runs_is_created_again() {
    let mut c = Case::new([thing(1, &[])]);
    let ops = c.start();
    c.engine.mark_lost(&1);
    c.end(&ops[0]);
    assert_eq!(c.done(), ["+1"]);
}

#[test]
fn an_operation_that_never_ends_blocks_only_what_depends_on_it() {
    let mut c = Case::new([thing(1, &[]), thing(2, &[1]), thing(3, &[]), thing(4, &[3])]);
    let ops = c.start();
    assert_eq!(ops.iter().map(|op| line(&op.actions)).collect::<Vec<_>>(), ["+1", "+3"]);
    c.end(&ops[1]);
    assert_eq!(c.done(), ["+4"]);
    assert_eq!(c.engine.state(&1), Some(State::InProgress));
    assert_eq!(c.pending(2), "waits for 1");
    // Later changes elsewhere go on too.
    c.engine.set_intended(graph([thing(1, &[]), thing(2, &[1]), thing(5, &[])]));
    assert_eq!(c.done(), ["-4", "+5", "-3"]);
    assert!(!c.engine.is_settled());
}

#[test]
fn a_change_of_mind_takes_effect_when_the_running_operation_has_ended() {
    let mut c = Case::new([thing(1, &[]), thing(2, &[1])]);
    let first = c.start();
    c.engine.set_intended(graph([Thing { fixed: 1, ..thing(1, &[]) }]));
    assert!(c.start().is_empty());
    c.end(&first[0]);
    assert_eq!(c.done(), ["-1", "+1"]);
}

#[test]
fn what_a_running_operation_needs_is_not_deleted_under_it() {
    let mut c = Case::new([thing(1, &[]), thing(2, &[1])]);
    let first = c.start();
    c.end(&first[0]);
    let second = c.start();
    c.engine.set_intended(Graph::new());
    assert!(c.start().is_empty());
    c.end(&second[0]);
    assert_eq!(c.done(), ["-2", "-1"]);
}

#[test]
fn a_result_of_an_operation_from_before_an_adoption_changes_nothing() {
    let mut c = Case::new([thing(1, &[])]);
    let ops = c.start();
    c.engine.adopt(Graph::new());
    c.end(&ops[0]);
    assert_eq!(c.done(), ["+1"]);
}

#[test]
fn an_external_item_is_waited_for_and_never_acted_on() {
    let mut c = Case::new([thing(100, &[]), thing(1, &[100]), thing(2, &[101])]);
    assert!(c.done().is_empty() && c.engine.is_settled());
    assert_eq!((c.pending(100), c.pending(1)), ("waits for 100 to appear".into(), "waits for 100".into()));
    c.engine.tell(Fact::Present(thing(100, &[]).into()));
    c.engine.tell(Fact::Present(thing(101, &[]).into()));
    assert_eq!(c.done(), ["+1", "+2"]);
    assert_eq!(c.engine.state(&100), Some(State::Created));
    c.engine.tell(Fact::Absent(100));
    assert_eq!(c.done(), ["-1"]);
    c.engine.set_intended(Graph::new());
    assert_eq!(c.done(), ["-2"]);
    assert!(c.engine.current().contains(&101));
}

#[test]
fn a_condition_is_waited_for_and_its_end_takes_away_what_needs_it() {
    let mut c = Case::new([thing(1, &[]), Thing { ready: vec![1], ..thing(2, &[]) }]);
    assert_eq!(c.done(), ["+1"]);
    assert_eq!(c.pending(2), "waits for 1 (ready)");
    c.engine.tell(Fact::Conditions(1, BTreeSet::from(["ready"])));
    assert_eq!(c.done(), ["+2"]);
    c.engine.tell(Fact::Conditions(1, BTreeSet::new()));
    assert_eq!(c.done(), ["-2"]);
    c.engine.tell(Fact::Conditions(1, BTreeSet::from(["ready"])));
    assert_eq!(c.done(), ["+2"]);
    // A new one is not ready because the old one was.
    c.engine.set_intended(graph([Thing { fixed: 1, ..thing(1, &[]) }, Thing { ready: vec![1], ..thing(2, &[]) }]));
    assert_eq!(c.done(), ["-2", "-1", "+1"]);
}

#[test]
fn what_an_external_item_needs_is_removed_only_when_it_has_left() {
    let mut c = Case::new([thing(1, &[]), thing(2, &[1]), thing(3, &[2]), thing(4, &[])]);
    c.done();
    c.engine.tell(Fact::Present(thing(100, &[2]).into()));
    c.engine.set_intended(Graph::new());
    assert_eq!(c.done(), ["-3", "-4"]);
    assert_eq!(c.pending(1), "is removed when 100 has ended");
    assert!(c.engine.is_settled());
    c.engine.tell(Fact::Absent(100));
    assert_eq!(c.done(), ["-2", "-1"]);
}

#[test]
fn a_pinned_item_keeps_its_value_until_the_pinning_item_has_left() {
    let pinned = |fixed| Thing { fixed, pin: Some(100), ..thing(2, &[1]) };
    let mut c = Case::new([thing(1, &[]), pinned(0), thing(3, &[2])]);
    c.done();
    c.engine.tell(Fact::Present(thing(100, &[2]).into()));
    // Neither its own value nor that of what it needs is changed by recreation; changes in place pass.
    c.engine.set_intended(graph([Thing { fixed: 1, ..thing(1, &[]) }, pinned(1), thing(3, &[2]), thing(4, &[2])]));
    assert_eq!(c.done(), ["+4"]);
    assert_eq!(c.pending(2), "stays as it is until 100 has ended");
    assert!(c.engine.is_settled());
    c.engine.tell(Fact::Absent(100));
    assert_eq!(c.done(), ["-3", "-4", "-2", "-1", "+1", "+2", "+3", "+4"]);
}

#[test]
fn a_pinned_item_whose_ground_has_vanished_is_created_again_all_the_same() {
    let mut c = Case::new([thing(1, &[]), Thing { pin: Some(100), ..thing(2, &[1]) }]);
    c.done();
    c.engine.tell(Fact::Present(thing(100, &[2]).into()));
    c.engine.mark_lost(&1);
    assert_eq!(c.done(), ["-2", "+1", "+2"]);
}

fn member(key: u8, owner: u8, needs: &[u8]) -> Thing {
    Thing { batch: Some(0), owner: Some(owner), ..thing(key, needs) }
}

#[test]
fn a_batch_is_one_operation_in_the_order_of_needs() {
    let mut c = Case::new([thing(1, &[]), member(2, 1, &[4]), member(3, 1, &[2]), member(4, 2, &[]), thing(5, &[3])]);
    assert_eq!(c.done(), ["+1", "+4 +2 +3", "+5"]);
    let changed = Thing { fixed: 1, ..member(4, 2, &[]) };
    c.engine.set_intended(graph([thing(1, &[]), member(2, 1, &[4]), changed]));
    assert_eq!(c.done(), ["-5", "-3 -2 -4 +4 +2"]);
}

#[test]
fn one_bad_item_of_a_batch_does_not_keep_the_others_out() {
    let mut c = Case::new((1..=6).map(|key| member(key, key / 2, &[])));
    c.log.broken.borrow_mut().insert(3);
    assert_eq!(c.done(), ["+1 +2 +3 +4 +5 +6", "+1", "+2 +3", "+4 +5", "+6"]);
    assert!(matches!(c.engine.state(&2), Some(State::Failed { .. })));
    assert_eq!(c.engine.state(&4), Some(State::Created));
    // Its later tries are its owner's alone.
    c.engine.set_intended(graph((1..=7).map(|key| member(key, key / 2, &[]))));
    c.clock += Duration::from_secs(60);
    assert_eq!(c.done(), ["+7", "+2 +3"]);
}

#[test]
fn a_batch_gathers_what_becomes_ready_while_its_operation_runs() {
    let mut c = Case::new([member(1, 1, &[])]);
    let first = c.start();
    c.engine.set_intended(graph([member(1, 1, &[]), member(2, 2, &[]), member(3, 3, &[1])]));
    assert!(c.start().is_empty());
    c.end(&first[0]);
    assert_eq!(c.done(), ["+2 +3"]);
}
