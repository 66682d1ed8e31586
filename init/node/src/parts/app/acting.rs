//! What is done about an app, and how it went.

use super::decide::{Ending, Step, Vm};
use super::facts::Guests;
use super::record::AppRecord;
use super::vm::Plan;
use super::{AppPart, Pass};
use crate::part::{Event, Turn};
use holdfast_model::app::App;
use std::time::Duration;
use uuid::Uuid;

/// Between two tries of a stop or a removal.
const RETRY: Duration = Duration::from_secs(2);

/// News: PID 1 was asked for the VM of an app.
pub(super) struct Started {
    app: Uuid,
    result: Result<(), String>,
}

/// News: PID 1 was asked to stop the VM of an app.
pub(super) struct Stopped {
    app: Uuid,
    result: Result<bool, String>,
}

/// News: nothing is left of an app.
pub(super) struct Removed {
    app: Uuid,
    result: Result<(), String>,
}

impl AppPart {
    pub(super) fn act(
        &mut self,
        id: Uuid,
        app: Option<&App>,
        plan: Option<Plan>,
        step: Step,
        pass: Pass<'_>,
        turn: &mut Turn<'_>,
    ) {
        match (step, app, plan) {
            (Step::Stop, ..) => self.stop(id, turn),
            (Step::Forget, ..) => self.forget(id, turn),
            (Step::NoteCounters, Some(app), _) => self.record(id).note_counters(app),
            (Step::Purge, Some(app), _) => self.purge(app, pass),
            (Step::Start, _, Some(plan)) => self.start(id, plan, turn),
            (Step::Wait | Step::NoteCounters | Step::Purge | Step::Start, ..) => {}
        }
    }

    /// Starts the VM once what must not be lost is on disk: counters that order this start, and the uid.
    fn start(&mut self, id: Uuid, plan: Plan, turn: &mut Turn<'_>) {
        // What others hold for its last VM is let go of first: they are told in this pass, and answer before the next one.
        if turn.facts.get::<Guests>().and_then(|guests| guests.0.get(&id)).is_some_and(|guest| guest.running) {
            return;
        }
        let record = self.record(id);
        // A stop that is under way would be taken for one of the new run.
        if record.busy {
            return;
        }
        record.volumes = plan.app.volumes.iter().map(|v| (v.volume, v.generation)).collect();
        let kept = record.kept();
        if self.keeper.on_disk().apps.get(&id) != Some(&kept) {
            return;
        }
        self.record(id).runtime.starting(turn.now, plan.tag());
        let what = format!("start the VM of app {}", plan.app.name);
        let start = self.machines.start(plan);
        turn.start(what, async move { Started { app: id, result: start.await } });
    }

    fn stop(&mut self, id: Uuid, turn: &mut Turn<'_>) {
        if let Some(name) = self.record(id).begin(turn) {
            let stop = self.machines.stop(id);
            turn.start(format!("stop app {name}"), async move { Stopped { app: id, result: stop.await } });
        }
    }

    fn forget(&mut self, id: Uuid, turn: &mut Turn<'_>) {
        if let Some(name) = self.record(id).begin(turn) {
            let remove = self.machines.remove(id);
            turn.start(format!("forget app {name}"), async move { Removed { app: id, result: remove.await } });
        }
    }

    /// A purge: the first volume is replaced by a new one. The counter counts as acted on once that is done, or when there is
    /// no such volume.
    fn purge(&mut self, app: &App, Pass { desired, facts }: Pass<'_>) {
        let first = app.volumes.first().map(|v| (v.volume, v.generation));
        let Some(key) = first.filter(|key| desired.volumes.iter().any(|v| (v.id, v.generation) == *key)) else {
            return self.record(app.id).note_counters(app);
        };
        let fact = facts.volumes.0.get(&key);
        if fact.is_some_and(|f| f.purged == Some(app.purge_counter)) {
            return self.record(app.id).note_counters(app);
        }
        self.record(app.id).error = fact.map(|f| f.error.clone()).unwrap_or_default();
        self.purges.0.insert(key.0, app.purge_counter);
    }

    /// Takes in how an operation went.
    pub(super) fn acted(&mut self, event: &Event, turn: &mut Turn<'_>) {
        if let Some(Started { app, result }) = event.news() {
            self.started(*app, result, turn);
        } else if let Some(Stopped { app, result }) = event.news() {
            self.stopped(*app, result, turn);
        } else if let Some(Removed { app, result }) = event.news() {
            self.removed(*app, result, turn);
        }
    }

    fn started(&mut self, id: Uuid, result: &Result<(), String>, turn: &mut Turn<'_>) {
        let Some(record) = self.apps.get_mut(&id) else { return };
        // PID 1's events may have been faster.
        let Vm::Starting { tag, .. } = record.runtime.vm.clone() else { return };
        match result {
            Ok(()) => {
                record.runtime.started(turn.now, tag);
                turn.say("info", format!("app {}: VM started", record.name));
            }
            Err(text) => {
                record.runtime.start_failed(turn.now, text.clone());
                turn.say("error", text.clone());
            }
        }
    }

    fn stopped(&mut self, id: Uuid, result: &Result<bool, String>, turn: &mut Turn<'_>) {
        let Some(record) = self.apps.get_mut(&id) else { return };
        record.busy = false;
        match result {
            Ok(true) if matches!(record.runtime.vm, Vm::Running { .. }) => record.runtime.vm = Vm::Stopping,
            Ok(true) => {}
            Ok(false) => {
                record.runtime.vm = Vm::Stopping;
                record.runtime.ended(turn.now, Ending::Clean);
            }
            Err(e) => {
                record.retry_at = turn.now + RETRY;
                let text = format!("app {}: it cannot be stopped: {e}; tried again", record.name);
                self.said.once(turn, "error", &text);
            }
        }
    }

    fn removed(&mut self, id: Uuid, result: &Result<(), String>, turn: &mut Turn<'_>) {
        let Some(record) = self.apps.get_mut(&id) else { return };
        record.busy = false;
        if let Err(e) = result {
            record.retry_at = turn.now + RETRY;
            let text = format!("app {}: its unit stays: {e}; tried again", record.name);
            return self.said.once(turn, "warning", &text);
        }
        // Wanted again meanwhile: as any app that is seen for the first time.
        let wanted = turn.config.is_some_and(|c| c.apps.iter().any(|a| a.id == id));
        if wanted {
            record.runtime = super::decide::Runtime::default();
        } else {
            self.apps.remove(&id);
        }
    }
}

impl AppRecord {
    /// Begins a stop or a removal, unless one is under way or the last one failed just now.
    fn begin(&mut self, turn: &mut Turn<'_>) -> Option<String> {
        if self.busy {
            return None;
        }
        if turn.now < self.retry_at {
            turn.wake(self.retry_at);
            return None;
        }
        self.busy = true;
        Some(self.name.clone())
    }
}
