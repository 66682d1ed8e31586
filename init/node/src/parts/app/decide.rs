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
#[serde(default)]
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
    /// When it is tried again, in words that do not change meanwhile; empty when only a new config ends it.
    pub retry: String,
    /// What to do.
    pub step: Step,
}

fn verdict(state: AppState, step: Step) -> Verdict {
    Verdict { state, error: String::new(), retry: String::new(), step }
}

fn fault(state: AppState, error: impl Into<String>) -> Verdict {
    Verdict { error: error.into(), ..verdict(state, Step::Wait) }
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
            fault(AppState::Running, error)
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
    self::fault(state, fault)
}

/// An app whose VM does not run and for which no counter is due.
fn idle(app: &App, runtime: &Runtime, world: &World) -> Verdict {
    match &world.readiness {
        Readiness::Failed(text) => {
            return fault(AppState::Error, text);
        }
        Readiness::Coming(state) => return verdict(*state, Step::Wait),
        Readiness::Ready => {}
    }
    if !app.activate || world.held.is_some() {
        let state = if matches!(runtime.vm, Vm::Ended { .. }) { AppState::Halted } else { AppState::Installed };
        return fault(state, world.held.clone().filter(|_| app.activate).unwrap_or_default());
    }
    if !runtime.start_fault.is_empty() {
        let wait = retry_after(runtime.failures, world.boot_retry);
        return waiting(runtime.start_fault.clone(), runtime.start_fault_at, wait, world);
    }
    match &runtime.vm {
        Vm::Ended { at, how } if !runtime.ordered => match how {
            Ending::Reboot => {
                let text = format!("app {}: its guest restarts again and again", app.name);
                waiting(text, *at, reboot_after(runtime.reboots, world.boot_retry), world)
            }
            Ending::Clean | Ending::Fault(_) => {
                let text = if let Ending::Fault(text) = how { text } else { "the app ended by itself" };
                let wait = retry_after(runtime.failures, world.boot_retry);
                waiting(format!("app {}: {text}", app.name), *at, wait, world)
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

fn waiting(text: String, failed_at: Duration, wait: Duration, world: &World) -> Verdict {
    if world.now >= failed_at + wait {
        return verdict(AppState::Booting, Step::Start);
    }
    let retry = format!("started again {} s after that", wait.as_secs());
    Verdict { retry, ..fault(AppState::Error, text) }
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
mod tests;
