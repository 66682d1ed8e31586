//! What to do about each app: a pure function of what is wanted, what is there, and the time.
//!
//! ```text
//!  Absent --Start--> Starting --> Running --Stop--> Stopping --> Ended --+--Start again (restart, purge, backoff)
//!                                    \---------by itself---------^       +--Forget (deleted)
//! ```

use holdfast_model::{app::App, observed::AppState};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The first wait before an app that ended is started again; doubled each time up to `timer.boot.retry`.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// A run this long forgets the failures before it.
const GOOD_RUN: Duration = Duration::from_secs(300);
/// So often a guest may restart itself without a good run between before it has to wait as after a failure.
const FREE_REBOOTS: u32 = 3;

/// What survives a reboot of the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acted {
    /// Restart counter last acted on.
    pub restart: u32,
    /// Purge counter last acted on.
    pub purge: u32,
}

/// The app's VM as PID 1 last told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Vm {
    /// Never started, or forgotten.
    #[default]
    Absent,
    /// PID 1 was asked for it.
    Starting {
        /// Since when.
        since: Duration,
        /// Hash of the configuration it is started with.
        tag: String,
    },
    /// Its process lives.
    Running {
        /// Since when, by the monotonic clock.
        since: Duration,
        /// Hash of the configuration it was started with.
        tag: String,
    },
    /// Told to stop.
    Stopping,
    /// Ended.
    Ended {
        /// When.
        at: Duration,
        /// How.
        how: Ending,
    },
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// In order: the guest powered off, or the stop that was ordered is done.
    Clean,
    /// The guest restarts itself. This is no failure.
    Reboot,
    /// In words.
    Fault(String),
}

/// What `node` remembers of an app between two decisions.
#[derive(Debug, Clone, Default)]
pub struct Runtime {
    /// Its VM.
    pub vm: Vm,
    /// Counters acted on; `None` before the app was ever seen.
    pub acted: Option<Acted>,
    /// Ends in a row without a good run between.
    pub failures: u32,
    /// Restarts by the guest itself in a row without a good run between.
    pub reboots: u32,
    /// Starts since the device booted.
    pub starts: u32,
    /// The present stop was ordered, so its end is not a failure.
    pub ordered: bool,
    /// Why starting failed before a VM was there; empty when it did not.
    pub start_fault: String,
    /// When `start_fault` happened.
    pub start_fault_at: Duration,
}

/// How ready the things are that an app needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// All there.
    Ready,
    /// Coming: the state to show meanwhile.
    Coming(AppState),
    /// Failed: the text names what and why.
    Failed(String),
}

/// What the decision depends on besides the app.
#[derive(Debug, Clone)]
pub struct World {
    /// Images, volumes and network instances together.
    pub readiness: Readiness,
    /// Hash of the configuration that a start now would use.
    pub tag: String,
    /// Monotonic time since boot.
    pub now: Duration,
    /// No app may run (maintenance, shutdown, reboot under way); the text says which.
    pub held: Option<String>,
    /// `timer.boot.retry`.
    pub boot_retry: Duration,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Start the VM.
    Start,
    /// Ask the guest to power off, then kill.
    Stop,
    /// Make the writable layer anew and note the counter.
    Purge,
    /// Note the counters as acted on.
    NoteCounters,
    /// Remove everything of the app: it is not wanted any more.
    Forget,
}

/// State to report and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// State to report.
    pub state: AppState,
    /// Error to report; empty when none.
    pub error: String,
    /// What to do.
    pub step: Step,
}

fn verdict(state: AppState, step: Step) -> Verdict {
    Verdict { state, error: String::new(), step }
}

/// Decides for one app; `app` is `None` when the config has it no more.
#[must_use]
pub fn decide(app: Option<&App>, runtime: &Runtime, world: &World) -> Verdict {
    let Some(app) = app else {
        return match runtime.vm {
            Vm::Running { .. } => verdict(AppState::Halting, Step::Stop),
            Vm::Starting { .. } | Vm::Stopping => verdict(AppState::Halting, Step::Wait),
            Vm::Absent | Vm::Ended { .. } => verdict(AppState::Halted, Step::Forget),
        };
    };
    let wanted = Acted { restart: app.restart_counter, purge: app.purge_counter };
    // An app seen for the first time starts with the counters it comes with: they order nothing.
    let Some(acted) = runtime.acted else {
        return verdict(AppState::Initial, Step::NoteCounters);
    };
    let purge = wanted.purge != acted.purge;
    let restart = wanted.restart != acted.restart;

    match &runtime.vm {
        Vm::Starting { .. } => verdict(AppState::Booting, Step::Wait),
        Vm::Stopping => {
            let state = if purge && app.activate {
                AppState::Purging
            } else if restart && app.activate {
                AppState::Restarting
            } else {
                AppState::Halting
            };
            verdict(state, Step::Wait)
        }
        Vm::Running { .. } if !app.activate || world.held.is_some() => verdict(AppState::Halting, Step::Stop),
        Vm::Running { .. } if purge => verdict(AppState::Purging, Step::Stop),
        Vm::Running { .. } if restart => verdict(AppState::Restarting, Step::Stop),
        Vm::Running { tag, .. } => {
            let error = match &world.readiness {
                // It runs on, and yet what is wanted cannot be had: the fault is said beside RUNNING.
                Readiness::Failed(text) => text.clone(),
                Readiness::Ready if *tag != world.tag => format!(
                    "app {}: its resources, disks or interfaces changed: expected a restart or purge counter to change too; the change takes effect with the next start",
                    app.name
                ),
                Readiness::Ready | Readiness::Coming(_) => String::new(),
            };
            Verdict { state: AppState::Running, error, step: Step::Wait }
        }
        Vm::Absent | Vm::Ended { .. } => {
            if purge {
                return verdict(AppState::Purging, Step::Purge);
            }
            if restart {
                return verdict(AppState::Restarting, Step::NoteCounters);
            }
            idle(app, runtime, world)
        }
    }
}

/// Decides for an app that the config has with a fault, so that it is not known what it is to be: one that runs goes on, one that
/// does not is not started.
#[must_use]
pub fn decide_unsure(fault: &str, runtime: &Runtime) -> Verdict {
    let state = match runtime.vm {
        Vm::Starting { .. } => AppState::Booting,
        Vm::Running { .. } => AppState::Running,
        Vm::Stopping => AppState::Halting,
        Vm::Absent | Vm::Ended { .. } => AppState::Error,
    };
    Verdict { state, error: fault.to_owned(), step: Step::Wait }
}

/// An app whose VM does not run and for which no counter is due.
fn idle(app: &App, runtime: &Runtime, world: &World) -> Verdict {
    match &world.readiness {
        Readiness::Failed(text) => {
            return Verdict { state: AppState::Error, error: text.clone(), step: Step::Wait };
        }
        Readiness::Coming(state) => return verdict(*state, Step::Wait),
        Readiness::Ready => {}
    }
    if !app.activate || world.held.is_some() {
        let state = if matches!(runtime.vm, Vm::Ended { .. }) { AppState::Halted } else { AppState::Installed };
        return Verdict {
            state,
            error: world.held.clone().filter(|_| app.activate).unwrap_or_default(),
            step: Step::Wait,
        };
    }
    if !runtime.start_fault.is_empty() {
        let due = runtime.start_fault_at + retry_after(runtime.failures, world.boot_retry);
        return waiting(&runtime.start_fault, due, world);
    }
    match &runtime.vm {
        Vm::Ended { at, how } if !runtime.ordered => match how {
            Ending::Reboot => {
                let text = format!("app {}: its guest restarts again and again", app.name);
                waiting(&text, *at + reboot_after(runtime.reboots, world.boot_retry), world)
            }
            Ending::Clean | Ending::Fault(_) => {
                let text = if let Ending::Fault(text) = how { text } else { "the app ended by itself" };
                let due = *at + retry_after(runtime.failures, world.boot_retry);
                waiting(&format!("app {}: {text}", app.name), due, world)
            }
        },
        _ => {
            if runtime.starts == 0 && world.now < Duration::from_secs(app.start_delay_seconds.into()) {
                return verdict(AppState::StartDelayed, Step::Wait);
            }
            verdict(AppState::Booting, Step::Start)
        }
    }
}

fn waiting(text: &str, due: Duration, world: &World) -> Verdict {
    if world.now >= due {
        return verdict(AppState::Booting, Step::Start);
    }
    let left = (due - world.now).as_secs() + 1;
    // Rounded, so that the report does not change every second.
    let left = if left > 15 { left.div_ceil(15) * 15 } else { left.div_ceil(5) * 5 };
    Verdict { state: AppState::Error, error: format!("{text}; it is started again within {left} s"), step: Step::Wait }
}

fn reboot_after(reboots: u32, longest: Duration) -> Duration {
    match reboots.saturating_sub(FREE_REBOOTS) {
        0 => Duration::ZERO,
        excess => retry_after(excess, longest),
    }
}

fn retry_after(failures: u32, longest: Duration) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(longest.max(FIRST_RETRY))
}

impl Runtime {
    /// Its VM is there, so what it holds may not be taken from under it.
    #[must_use]
    pub fn has_vm(&self) -> bool {
        matches!(self.vm, Vm::Starting { .. } | Vm::Running { .. } | Vm::Stopping)
    }

    /// Notes that PID 1 was asked for the VM.
    pub fn starting(&mut self, now: Duration, tag: String) {
        self.vm = Vm::Starting { since: now, tag };
        self.ordered = false;
        self.start_fault.clear();
    }

    /// Notes that the VM runs.
    pub fn started(&mut self, now: Duration, tag: String) {
        self.vm = Vm::Running { since: now, tag };
        self.starts += 1;
        self.ordered = false;
        self.start_fault.clear();
    }

    /// Notes that the VM could not be started.
    pub fn start_failed(&mut self, now: Duration, text: String) {
        self.vm = Vm::Absent;
        self.failures += 1;
        self.start_fault = text;
        self.start_fault_at = now;
    }

    /// Notes that the next start was ordered: it waits for no backoff of what failed before.
    pub fn restart_ordered(&mut self) {
        self.ordered = true;
        self.failures = 0;
        self.reboots = 0;
        self.start_fault.clear();
    }

    /// Notes that the VM ended.
    pub fn ended(&mut self, now: Duration, how: Ending) {
        if let Vm::Running { since, .. } = self.vm
            && now.saturating_sub(since) > GOOD_RUN
        {
            self.failures = 0;
            self.reboots = 0;
        }
        self.ordered = matches!(self.vm, Vm::Stopping);
        if self.ordered {
            self.failures = 0;
            self.reboots = 0;
        } else if how == Ending::Reboot {
            self.reboots += 1;
        } else {
            self.failures += 1;
        }
        self.vm = Vm::Ended { at: now, how };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::Uuid;

    fn app() -> App {
        App {
            id: Uuid::from_u128(1),
            version: "1".into(),
            name: "web".into(),
            activate: true,
            vcpus: 1,
            memory_bytes: 64 << 20,
            volumes: vec![],
            interfaces: vec![],
            user_data: String::new(),
            restart_counter: 0,
            purge_counter: 0,
            start_delay_seconds: 0,
            disable_logs: false,
        }
    }

    fn world(now: u64) -> World {
        World {
            readiness: Readiness::Ready,
            tag: "t".into(),
            now: Duration::from_secs(now),
            held: None,
            boot_retry: Duration::from_secs(600),
        }
    }

    fn seen() -> Runtime {
        Runtime { acted: Some(Acted::default()), ..Runtime::default() }
    }

    fn running() -> Runtime {
        let mut r = seen();
        r.started(Duration::ZERO, "t".into());
        r
    }

    #[test]
    fn a_ready_app_starts_and_then_runs() {
        assert_eq!(decide(Some(&app()), &seen(), &world(1)).step, Step::Start);
        assert_eq!(decide(Some(&app()), &running(), &world(1)), verdict(AppState::Running, Step::Wait));
    }

    #[test]
    fn an_app_seen_first_takes_its_counters_as_done() {
        let mut a = app();
        a.restart_counter = 7;
        assert_eq!(decide(Some(&a), &Runtime::default(), &world(1)).step, Step::NoteCounters);
    }

    #[test]
    fn what_is_missing_is_waited_for_and_what_failed_is_named() {
        let mut w = world(1);
        w.readiness = Readiness::Coming(AppState::Downloading);
        assert_eq!(decide(Some(&app()), &seen(), &w), verdict(AppState::Downloading, Step::Wait));
        w.readiness = Readiness::Failed("content x: digest".into());
        let v = decide(Some(&app()), &seen(), &w);
        assert_eq!((v.state, v.error.as_str()), (AppState::Error, "content x: digest"));
    }

    #[test]
    fn a_restart_counter_stops_notes_and_starts() {
        let mut a = app();
        a.restart_counter = 1;
        let mut r = running();
        assert_eq!(decide(Some(&a), &r, &world(1)), verdict(AppState::Restarting, Step::Stop));
        r.vm = Vm::Stopping;
        assert_eq!(decide(Some(&a), &r, &world(1)), verdict(AppState::Restarting, Step::Wait));
        r.ended(Duration::from_secs(2), Ending::Clean);
        assert_eq!(decide(Some(&a), &r, &world(2)).step, Step::NoteCounters);
        r.acted = Some(Acted { restart: 1, purge: 0 });
        assert_eq!(decide(Some(&a), &r, &world(2)).step, Step::Start, "an ordered end is not waited after");
    }

    #[test]
    fn a_purge_counter_makes_the_layer_anew_even_when_never_started() {
        let mut a = app();
        a.purge_counter = 3;
        assert_eq!(decide(Some(&a), &running(), &world(1)), verdict(AppState::Purging, Step::Stop));
        assert_eq!(decide(Some(&a), &seen(), &world(1)).step, Step::Purge);
    }

    #[test]
    fn an_app_that_ends_by_itself_is_started_again_later_and_later() {
        let mut r = running();
        r.ended(Duration::from_secs(10), Ending::Fault("exit code 3".into()));
        let v = decide(Some(&app()), &r, &world(11));
        assert_eq!(v.state, AppState::Error);
        assert!(v.error.contains("exit code 3"), "{}", v.error);
        assert_eq!(decide(Some(&app()), &r, &world(15)).step, Step::Start);
        r.started(Duration::from_secs(15), "t".into());
        r.ended(Duration::from_secs(16), Ending::Fault("exit code 3".into()));
        assert_eq!(decide(Some(&app()), &r, &world(22)).step, Step::Wait);
        assert_eq!(decide(Some(&app()), &r, &world(26)).step, Step::Start);
    }

    #[test]
    fn an_ordered_restart_does_not_wait_for_the_backoff() {
        let mut r = seen();
        r.start_failed(Duration::from_secs(1), "no memory".into());
        assert_eq!(decide(Some(&app()), &r, &world(2)).step, Step::Wait);
        r.restart_ordered();
        assert_eq!(decide(Some(&app()), &r, &world(2)).step, Step::Start);
    }

    #[test]
    fn a_good_run_forgets_old_failures() {
        let mut r = running();
        r.failures = 9;
        r.ended(Duration::from_secs(1000), Ending::Fault("exit code 3".into()));
        assert_eq!(r.failures, 1);
    }

    #[test]
    fn deactivated_and_held_apps_stop() {
        let mut a = app();
        a.activate = false;
        assert_eq!(decide(Some(&a), &running(), &world(1)).step, Step::Stop);
        assert_eq!(decide(Some(&a), &seen(), &world(1)), verdict(AppState::Installed, Step::Wait));
        let mut w = world(1);
        w.held = Some("maintenance mode".into());
        assert_eq!(decide(Some(&app()), &running(), &w).step, Step::Stop);
        assert_eq!(decide(Some(&app()), &seen(), &w).error, "maintenance mode");
    }

    #[test]
    fn a_deleted_app_stops_then_is_forgotten() {
        let mut r = running();
        assert_eq!(decide(None, &r, &world(1)).step, Step::Stop);
        r.vm = Vm::Stopping;
        assert_eq!(decide(None, &r, &world(1)).step, Step::Wait);
        r.ended(Duration::from_secs(2), Ending::Clean);
        assert_eq!(decide(None, &r, &world(2)).step, Step::Forget);
    }

    #[test]
    fn a_changed_app_without_a_counter_is_reported_and_left_running() {
        let mut w = world(1);
        w.tag = "other".into();
        let v = decide(Some(&app()), &running(), &w);
        assert_eq!((v.state, v.step), (AppState::Running, Step::Wait));
        assert!(v.error.contains("restart or purge counter"));
    }

    #[test]
    fn the_start_delay_counts_from_device_boot_only() {
        let mut a = app();
        a.start_delay_seconds = 60;
        assert_eq!(decide(Some(&a), &seen(), &world(10)).state, AppState::StartDelayed);
        assert_eq!(decide(Some(&a), &seen(), &world(61)).step, Step::Start);
    }

    #[test]
    fn a_fault_of_what_a_running_app_needs_is_said_beside_running() {
        let mut w = world(1);
        w.readiness = Readiness::Failed("app web: port 8080 is taken".into());
        let v = decide(Some(&app()), &running(), &w);
        assert_eq!((v.state, v.error.as_str(), v.step), (AppState::Running, "app web: port 8080 is taken", Step::Wait));
    }

    #[test]
    fn an_app_with_a_fault_runs_on_and_is_not_started() {
        let v = decide_unsure("typo", &running());
        assert_eq!((v.state, v.error.as_str(), v.step), (AppState::Running, "typo", Step::Wait));
        let v = decide_unsure("typo", &seen());
        assert_eq!((v.state, v.error.as_str(), v.step), (AppState::Error, "typo", Step::Wait));
    }

    #[test]
    fn a_guest_that_restarts_itself_is_started_at_once_but_not_for_ever() {
        let mut r = running();
        for n in 1..=FREE_REBOOTS {
            r.ended(Duration::from_secs(10), Ending::Reboot);
            assert_eq!(decide(Some(&app()), &r, &world(10)), verdict(AppState::Booting, Step::Start), "restart {n}");
            r.started(Duration::from_secs(10), "t".into());
        }
        r.ended(Duration::from_secs(10), Ending::Reboot);
        let v = decide(Some(&app()), &r, &world(10));
        assert!(v.step == Step::Wait && v.error.contains("again and again"), "{v:?}");
        assert_eq!(decide(Some(&app()), &r, &world(15)).step, Step::Start);
        assert_eq!(r.failures, 0, "no failure");
        r.started(Duration::from_secs(15), "t".into());
        r.ended(Duration::from_secs(1000), Ending::Reboot);
        assert_eq!(decide(Some(&app()), &r, &world(1000)).step, Step::Start, "after a good run");
    }

    #[test]
    fn a_vm_that_is_being_started_is_waited_for() {
        let mut r = seen();
        r.starting(Duration::from_secs(1), "t".into());
        assert_eq!(decide(Some(&app()), &r, &world(1)), verdict(AppState::Booting, Step::Wait));
        assert_eq!(decide(None, &r, &world(1)), verdict(AppState::Halting, Step::Wait));
        r.start_failed(Duration::from_secs(2), "no tap".into());
        assert_eq!(decide(Some(&app()), &r, &world(2)).step, Step::Wait);
        assert_eq!(decide(None, &r, &world(2)).step, Step::Forget);
    }
}
