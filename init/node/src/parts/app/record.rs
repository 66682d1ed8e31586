//! What is known of one app, in one place.

use super::decide::{Acted, Ending, Runtime, Verdict, Vm};
use super::kept::KeptApp;
use super::vm::FIRST_UID;
use holdfast_model::app::App;
use holdfast_model::contract::end::ExitClass;
use holdfast_model::observed::{AppInterfaceStatus, AppState, AppStatus};
use holdfast_model::trouble::{Object, ObjectKind, Severity, Trouble};
use holdfast_supervise::{UnitState, UnitStatus};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Before 2025 a clock is plainly not set.
const CLOCK_IS_SET: Duration = Duration::from_secs(1_735_689_600);

/// One app.
#[derive(Debug, Clone, Default)]
pub struct AppRecord {
    /// Display name.
    pub name: String,
    /// Small number that no other app has.
    pub number: u32,
    /// Generations of volumes that its VM was last started with.
    pub volumes: Vec<(Uuid, i64)>,
    /// Its VM, and what happened to it.
    pub runtime: Runtime,
    /// What was last decided.
    pub state: AppState,
    /// The error beside it; empty when none.
    pub error: String,
    /// When that is tried again, in words; empty when only a new config ends it.
    pub retry: String,
    /// A stop or a removal is under way.
    pub busy: bool,
    /// No stop or removal before: the last one failed.
    pub retry_at: Duration,
    /// Unix seconds when its VM began; 0 when it does not run or the clock was not set.
    pub booted_at: i64,
}

/// What a unit's status means for its app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Its VM runs.
    Runs,
    /// Its VM ended.
    Ended(Ending),
}

impl AppRecord {
    /// One that was kept; `number` is used when it lost its own.
    #[must_use]
    pub fn recall(kept: &KeptApp, number: u32) -> Self {
        Self {
            name: kept.name.clone(),
            number: kept.number.unwrap_or(number),
            volumes: kept.volumes.clone(),
            runtime: Runtime { acted: kept.acted, ..Runtime::default() },
            ..Self::default()
        }
    }

    /// What is to be kept of it.
    #[must_use]
    pub fn kept(&self) -> KeptApp {
        KeptApp {
            name: self.name.clone(),
            number: Some(self.number),
            acted: self.runtime.acted,
            volumes: self.volumes.clone(),
        }
    }

    /// uid of its VMM.
    #[must_use]
    pub fn uid(&self) -> u32 {
        FIRST_UID + self.number
    }

    /// Takes in what PID 1 says of its unit.
    pub fn unit(&mut self, status: &UnitStatus, now: Duration) -> Change {
        let entered = Duration::from_millis(status.since_ms);
        match (status.state, &self.runtime.vm) {
            (UnitState::Running { .. }, Vm::Starting { tag, .. }) => {
                self.runtime.started(entered, tag.clone());
                Change::Runs
            }
            // Found after a restart of the agent.
            (UnitState::Running { .. }, Vm::Absent) => {
                let tag = status.spec.as_ref().map(|s| s.tag.clone()).unwrap_or_default();
                self.runtime.vm = Vm::Running { since: entered, tag };
                self.runtime.starts = self.runtime.starts.max(1);
                Change::None
            }
            (UnitState::Running { .. }, _) => Change::None,
            (UnitState::Stopping { .. }, _) => {
                self.runtime.vm = Vm::Stopping;
                Change::None
            }
            // What is said of the run before the one that begins.
            (UnitState::Ended | UnitState::Backoff { .. }, Vm::Starting { since, .. }) if entered < *since => {
                Change::None
            }
            (UnitState::Ended | UnitState::Backoff { .. }, Vm::Starting { .. } | Vm::Running { .. } | Vm::Stopping) => {
                let how = ending(status);
                self.runtime.ended(now, how.clone());
                self.booted_at = 0;
                Change::Ended(how)
            }
            (UnitState::Ended | UnitState::Backoff { .. }, Vm::Absent | Vm::Ended { .. }) => Change::None,
        }
    }

    /// PID 1 does not know its VM: one that ran has ended without a word.
    pub fn vanished(&mut self, now: Duration) {
        if matches!(self.runtime.vm, Vm::Running { .. } | Vm::Stopping) {
            self.runtime.ended(now, Ending::Fault("its VM is unknown to PID 1".into()));
            self.booted_at = 0;
        }
    }

    /// Notes what was decided.
    pub fn decided(&mut self, verdict: &Verdict) {
        self.state = verdict.state;
        self.error.clone_from(&verdict.error);
        self.retry.clone_from(&verdict.retry);
    }

    /// Notes the counters of its config as acted on.
    pub fn note_counters(&mut self, app: &App) {
        self.runtime.acted = Some(Acted { restart: app.restart_counter, purge: app.purge_counter });
        self.runtime.restart_ordered();
    }

    /// Notes when its VM began, once that and the time are known; it does not change while the VM runs.
    pub fn note_boot_time(&mut self, now: Duration, wall: SystemTime) {
        let wall = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Vm::Running { since, .. } = self.runtime.vm
            && self.booted_at == 0
            && wall >= CLOCK_IS_SET
        {
            let began = wall.saturating_sub(now.saturating_sub(since));
            self.booted_at = i64::try_from(began.as_secs()).unwrap_or(0);
        }
    }

    /// What is wrong with it. An app that runs, or that is held back, works but for that.
    fn trouble(&self, id: Uuid) -> Option<Trouble> {
        let trouble = Trouble::from_text(Object::new(ObjectKind::App, id, &self.name), &self.error)?;
        let severity = if self.state == AppState::Error { Severity::Error } else { Severity::Warning };
        let trouble = Trouble { severity, ..trouble };
        Some(if self.retry.is_empty() { trouble } else { trouble.retried(self.retry.clone()) })
    }

    /// As it is reported; `app` is `None` when its config has a fault.
    #[must_use]
    pub fn status(&self, id: Uuid, app: Option<&App>, interfaces: Vec<AppInterfaceStatus>) -> AppStatus {
        AppStatus {
            id,
            version: app.map(|a| a.version.clone()).unwrap_or_default(),
            name: self.name.clone(),
            state: self.state,
            activated: matches!(self.runtime.vm, Vm::Running { .. }),
            boot_time_seconds: self.booted_at,
            interfaces,
            troubles: self.trouble(id).into_iter().collect(),
            starts: self.runtime.starts,
            memory_bytes: app.map_or(0, |a| a.memory_bytes),
            volumes: app.map_or_else(
                || self.volumes.iter().map(|v| v.0).collect(),
                |a| a.volumes.iter().map(|v| v.volume).collect(),
            ),
        }
    }
}

/// How a VM ended: by its last words, whose sentence goes on unchanged.
pub fn ending(status: &UnitStatus) -> Ending {
    match &status.end {
        Some(end) if end.class == ExitClass::GuestReset => Ending::Reboot,
        Some(end) if end.class.is_failure() => Ending::Fault(end.reason.clone()),
        _ => Ending::Clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::app::vm::unit_of;
    use holdfast_model::contract::end::End;

    fn status(state: UnitState, since_ms: u64, end: Option<End>) -> UnitStatus {
        UnitStatus { name: unit_of(Uuid::from_u128(1)), state, since_ms, restarts: 0, exit: None, end, spec: None }
    }

    fn exit(code: i32) -> Option<End> {
        Some(End::new(ExitClass::GuestExit { code }, format!("/web exited with {code}")))
    }

    const NOW: Duration = Duration::from_secs(9);

    #[test]
    fn what_is_said_of_the_run_before_is_not_taken_for_the_present_one() {
        let mut record = AppRecord::default();
        record.runtime.starting(Duration::from_secs(5), "t".into());
        assert_eq!(record.unit(&status(UnitState::Ended, 4000, exit(3)), NOW), Change::None);
        assert_eq!(record.unit(&status(UnitState::Running { pid: 1 }, 5000, None), NOW), Change::Runs);
        let fault = Ending::Fault("/web exited with 3".into());
        assert_eq!(record.unit(&status(UnitState::Ended, 6000, exit(3)), NOW), Change::Ended(fault));
    }

    #[test]
    fn a_vm_that_ends_before_its_start_is_answered_has_ended() {
        let mut record = AppRecord::default();
        record.runtime.starting(Duration::from_secs(5), "t".into());
        assert!(matches!(record.unit(&status(UnitState::Ended, 5000, exit(21)), NOW), Change::Ended(_)));
        assert_eq!(record.runtime.failures, 1);
    }

    #[test]
    fn endings_are_told_apart() {
        let jail = End::new(ExitClass::Jail, "jail: no user namespaces");
        let reset = End::new(ExitClass::GuestReset, "the guest asked for a reset");
        for (end, how) in [
            (exit(0), Ending::Clean),
            (None, Ending::Clean),
            (Some(reset), Ending::Reboot),
            (Some(jail), Ending::Fault("jail: no user namespaces".into())),
            (exit(7), Ending::Fault("/web exited with 7".into())),
        ] {
            assert_eq!(ending(&status(UnitState::Ended, 0, end)), how);
        }
    }

    #[test]
    fn the_time_of_a_boot_stands_once_it_is_known() {
        let mut record = AppRecord::default();
        record.runtime.started(Duration::from_secs(4), "t".into());
        record.note_boot_time(NOW, UNIX_EPOCH + Duration::from_secs(9));
        assert_eq!(record.booted_at, 0, "the clock is not set");
        record.note_boot_time(NOW, UNIX_EPOCH + Duration::from_secs(1_800_000_009));
        record.note_boot_time(NOW, UNIX_EPOCH + Duration::from_millis(1_800_000_011_999));
        assert_eq!(record.booted_at, 1_800_000_004);
    }
}
