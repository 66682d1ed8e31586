//! The life of one unit as a pure state machine; see [`UnitState`] for the picture.
#![forbid(unsafe_code)]

use super::ends::{self, Around};
use holdfast_model::contract::end::End;
use holdfast_supervise::{Exit, Restart, UnitSpec, UnitState, UnitStatus};

/// What the loop must do after a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the program; answer with [`Unit::started`] or [`Unit::not_started`].
    Spawn,
    /// Send the signal to the main process.
    Signal {
        /// Whom.
        pid: u32,
        /// What.
        signal: i32,
    },
    /// SIGKILL everything in the unit's cgroup.
    KillAll,
    /// The unit has ended for good: remove its cgroup, close its descriptors.
    Release,
}

/// One unit.
#[derive(Debug, Clone)]
pub struct Unit {
    /// As asked for.
    pub spec: UnitSpec,
    /// Position in the order of starts.
    pub order: u64,
    state: UnitState,
    since_ms: u64,
    restarts: u32,
    exit: Option<Exit>,
    end: Option<End>,
    /// Short runs in a row, which is the exponent of the backoff.
    short_runs: u32,
    /// When SIGKILL follows the stop signal; only while stopping, and only until it was sent.
    kill_at_ms: Option<u64>,
}

impl Unit {
    /// A unit that is to be spawned now: the caller does that and tells the result.
    pub fn new(spec: UnitSpec, order: u64, now_ms: u64) -> Unit {
        Unit {
            spec,
            order,
            state: UnitState::Ended,
            since_ms: now_ms,
            restarts: 0,
            exit: None,
            end: None,
            short_runs: 0,
            kill_at_ms: None,
        }
    }

    /// Its state.
    pub fn state(&self) -> UnitState {
        self.state
    }

    /// Since when, in monotonic milliseconds.
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// True when a process lives or will be started again.
    pub fn is_alive(&self) -> bool {
        self.state != UnitState::Ended
    }

    /// What is told about it.
    pub fn status(&self, with_spec: bool) -> UnitStatus {
        UnitStatus {
            name: self.spec.name.clone(),
            state: self.state,
            since_ms: self.since_ms,
            restarts: self.restarts,
            exit: self.exit.clone(),
            end: self.end.clone(),
            spec: with_spec.then(|| Box::new(self.spec.clone())),
        }
    }

    /// The process runs.
    pub fn started(&mut self, now_ms: u64, pid: u32) {
        self.enter(now_ms, UnitState::Running { pid });
    }

    /// The process could not be made. Counts as a failed run.
    pub fn not_started(&mut self, now_ms: u64, why: String) -> Option<Action> {
        let exit = Exit::NotStarted(why);
        let end = ends::of(&self.spec, &exit, None, Around::default());
        self.ended(now_ms, exit, end, false, true)
    }

    /// The main process has ended, for the reason `end`. [`Action::KillAll`] of what it left behind is implied.
    pub fn exited(&mut self, now_ms: u64, exit: Exit, end: End) -> Option<Action> {
        let stopping = matches!(self.state, UnitState::Stopping { .. });
        let short = now_ms.saturating_sub(self.since_ms) < self.spec.backoff.max_ms;
        self.ended(now_ms, exit, end, stopping, short)
    }

    /// Somebody wants it to end, at most `deadline_ms` after the signal (its own deadline when `None`).
    /// A second stop can only shorten the deadline.
    pub fn stop(&mut self, now_ms: u64, deadline_ms: Option<u64>) -> Option<Action> {
        let deadline_ms = deadline_ms.unwrap_or(self.spec.stop.deadline_ms);
        let kill_at_ms = now_ms.saturating_add(deadline_ms);
        match self.state {
            UnitState::Ended => None,
            UnitState::Backoff { .. } => {
                self.enter(now_ms, UnitState::Ended);
                Some(Action::Release)
            }
            UnitState::Running { pid } => {
                self.enter(now_ms, UnitState::Stopping { pid });
                if deadline_ms == 0 {
                    return Some(Action::KillAll);
                }
                self.kill_at_ms = Some(kill_at_ms);
                Some(Action::Signal { pid, signal: self.spec.stop.signal })
            }
            UnitState::Stopping { .. } => {
                self.kill_at_ms = self.kill_at_ms.map(|at| at.min(kill_at_ms));
                None
            }
        }
    }

    /// When [`Unit::due`] has something to do.
    pub fn next_ms(&self) -> Option<u64> {
        match self.state {
            UnitState::Backoff { until_ms } => Some(until_ms),
            _ => self.kill_at_ms,
        }
    }

    /// What the clock demands.
    pub fn due(&mut self, now_ms: u64) -> Option<Action> {
        if self.next_ms().is_none_or(|at| now_ms < at) {
            return None;
        }
        match self.state {
            UnitState::Backoff { .. } => {
                self.restarts = self.restarts.saturating_add(1);
                Some(Action::Spawn)
            }
            _ => {
                self.kill_at_ms = None;
                Some(Action::KillAll)
            }
        }
    }

    fn ended(&mut self, now_ms: u64, exit: Exit, end: End, stopping: bool, short: bool) -> Option<Action> {
        let again = !stopping
            && match self.spec.restart {
                Restart::Never => false,
                Restart::OnFailure => !exit.is_success(),
                Restart::Always => true,
            };
        self.exit = Some(exit);
        self.end = Some(end);
        if !again {
            self.enter(now_ms, UnitState::Ended);
            return Some(Action::Release);
        }
        self.short_runs = if short { self.short_runs.saturating_add(1) } else { 1 };
        let backoff = self.spec.backoff;
        let doublings = (self.short_runs - 1).min(30);
        let wait_ms = (backoff.first_ms << doublings).min(backoff.max_ms);
        self.enter(now_ms, UnitState::Backoff { until_ms: now_ms + wait_ms });
        None
    }

    fn enter(&mut self, now_ms: u64, state: UnitState) {
        self.state = state;
        self.since_ms = now_ms;
        self.kill_at_ms = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_supervise::{Backoff, UnitName};
    use proptest::prelude::*;

    fn unit(restart: Restart) -> Unit {
        let mut spec = UnitSpec::new(UnitName::new("u").unwrap(), "/bin/u", 1);
        spec.restart = restart;
        spec.backoff = Backoff { first_ms: 100, max_ms: 1000 };
        let mut unit = Unit::new(spec, 0, 0);
        unit.started(0, 10);
        unit
    }

    fn exited(unit: &mut Unit, now_ms: u64, exit: Exit) -> Option<Action> {
        let end = ends::of(&unit.spec, &exit, None, Around::default());
        unit.exited(now_ms, exit, end)
    }

    #[test]
    fn restart_policy_decides_by_exit() {
        let table = [
            (Restart::Never, Exit::Code(1), false),
            (Restart::Never, Exit::Code(0), false),
            (Restart::OnFailure, Exit::Code(0), false),
            (Restart::OnFailure, Exit::Code(1), true),
            (Restart::OnFailure, Exit::Signal(9), true),
            (Restart::Always, Exit::Code(0), true),
        ];
        for (policy, exit, again) in table {
            let mut unit = unit(policy);
            let action = exited(&mut unit, 5, exit.clone());
            assert_eq!(matches!(unit.state(), UnitState::Backoff { .. }), again, "{policy:?} {exit:?}");
            assert_eq!(action, (!again).then_some(Action::Release));
        }
    }

    #[test]
    fn backoff_doubles_to_its_maximum_and_starts_over_after_a_long_run() {
        let mut unit = unit(Restart::Always);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..6 {
            exited(&mut unit, now, Exit::Code(1));
            let UnitState::Backoff { until_ms } = unit.state() else { panic!("{:?}", unit.state()) };
            waits.push(until_ms - now);
            assert_eq!(unit.due(until_ms - 1), None);
            assert_eq!(unit.due(until_ms), Some(Action::Spawn));
            now = until_ms;
            unit.started(now, 11);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(unit.status(false).restarts, 6);
        exited(&mut unit, now + 1000, Exit::Code(1));
        assert_eq!(unit.state(), UnitState::Backoff { until_ms: now + 1100 });
    }

    #[test]
    fn stop_signals_then_kills_at_the_deadline_and_never_restarts() {
        let mut unit = unit(Restart::Always);
        assert_eq!(unit.stop(50, Some(300)), Some(Action::Signal { pid: 10, signal: 15 }));
        assert_eq!(unit.due(349), None);
        assert_eq!(unit.due(350), Some(Action::KillAll));
        assert_eq!(unit.due(351), None, "killed once");
        assert_eq!(exited(&mut unit, 360, Exit::Signal(9)), Some(Action::Release));
        assert_eq!(unit.state(), UnitState::Ended);
    }

    #[test]
    fn second_stop_can_only_shorten_the_deadline() {
        let mut unit = unit(Restart::Never);
        unit.stop(0, Some(1000));
        unit.stop(10, Some(5000));
        assert_eq!(unit.next_ms(), Some(1000));
        unit.stop(20, Some(30));
        assert_eq!(unit.next_ms(), Some(50));
    }

    #[test]
    fn stop_with_deadline_zero_kills_at_once() {
        assert_eq!(unit(Restart::Never).stop(0, Some(0)), Some(Action::KillAll));
    }

    #[test]
    fn stop_during_backoff_ends_the_unit() {
        let mut unit = unit(Restart::Always);
        exited(&mut unit, 0, Exit::Code(1));
        assert_eq!(unit.stop(10, None), Some(Action::Release));
        assert_eq!(unit.next_ms(), None);
    }

    #[test]
    fn program_that_cannot_start_backs_off_like_one_that_fails() {
        let mut unit = unit(Restart::OnFailure);
        assert_eq!(unit.not_started(0, "execve: ENOENT".into()), None);
        assert!(matches!(unit.state(), UnitState::Backoff { until_ms: 100 }));
        let mut unit = self::unit(Restart::Never);
        assert_eq!(unit.not_started(0, "execve: ENOENT".into()), Some(Action::Release));
    }

    proptest! {
        /// Whatever happens in whatever order: a stopped unit ends, and a live one always has a process or a timer.
        #[test]
        fn no_order_of_events_leaves_a_unit_stuck(events in proptest::collection::vec((0u8..5, 1u64..2000), 1..60)) {
            let mut unit = unit(Restart::Always);
            let (mut now, mut stopped) = (0, false);
            for (event, wait) in events {
                now += wait;
                match event {
                    0 if unit.state().pid().is_some() => { exited(&mut unit, now, Exit::Code(1)); }
                    1 => { unit.stop(now, None); stopped = true; }
                    _ => if unit.due(now) == Some(Action::Spawn) {
                        prop_assert!(!stopped);
                        if event == 2 { unit.not_started(now, String::new()); } else { unit.started(now, 12); }
                    }
                }
                match unit.state() {
                    UnitState::Running { .. } | UnitState::Backoff { .. } => prop_assert!(!stopped),
                    UnitState::Stopping { .. } => prop_assert!(stopped),
                    UnitState::Ended => prop_assert!(stopped && unit.next_ms().is_none()),
                }
            }
        }
    }
}
