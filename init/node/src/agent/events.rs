//! Events in: units of PID 1, log lines, what the session learned.

use super::Agent;
use super::fetching::FETCH_UNITS;
use crate::machine;
use crate::parts::app::decide::{Ending, Vm};
use crate::parts::app::record::ending;
use crate::parts::app::vm as vms;
use crate::session::SessionEvent;
use anyhow::Result;
use holdfast_supervise::{Event, UnitState, UnitStatus};
use std::fs;
use std::time::Duration;

/// File below `/run/holdfast` with the cursor of the last log line read.
const LOG_CURSOR: &str = "log-cursor";

impl Agent {
    pub(super) fn look_at_units(&mut self) -> Result<()> {
        let list = self.supervisor.borrow_mut().list()?;
        for unit in &list {
            self.unit_status(unit);
        }
        Ok(())
    }

    pub(super) fn unit_event(&mut self, event: Event) {
        match event {
            Event::Unit(status) => self.unit_status(&status),
            Event::Removed { .. } | Event::Shutdown { .. } => {}
            Event::Logs { .. } => self.collect_logs(),
        }
    }

    fn unit_status(&mut self, status: &UnitStatus) {
        self.collect_logs();
        let Some(app) = vms::app_of(&status.name) else {
            // PID 1's table is for units that somebody may ask for: an ended download is not one.
            if status.name.as_str().starts_with(FETCH_UNITS) && matches!(status.state, UnitState::Ended) {
                let _ = self.supervisor.borrow_mut().remove(&status.name);
            }
            return;
        };
        let now = machine::now();
        let runtime = self.runtimes.entry(app).or_default();
        match status.state {
            UnitState::Running { .. } => {
                if matches!(runtime.vm, Vm::Absent) {
                    // Found after a restart of the agent.
                    let tag = status.spec.as_ref().map(|s| s.tag.clone()).unwrap_or_default();
                    runtime.vm = Vm::Running { since: Duration::from_millis(status.since_ms), tag };
                    runtime.starts = runtime.starts.max(1);
                    runtime.acted = runtime.acted.or_else(|| self.store.now.acted.get(&app).copied());
                }
            }
            UnitState::Stopping { .. } => runtime.vm = Vm::Stopping,
            UnitState::Ended | UnitState::Backoff { .. } => {
                if matches!(runtime.vm, Vm::Running { .. } | Vm::Stopping) {
                    let how = ending(status);
                    let text = match &how {
                        Ending::Clean => "ended".to_owned(),
                        Ending::Reboot => "the guest restarts".to_owned(),
                        Ending::Fault(text) => text.clone(),
                    };
                    runtime.ended(now, how);
                    let name = self.names.get(&app).cloned().unwrap_or_else(|| app.to_string());
                    self.say("info", &format!("app {name}: {text}"));
                }
            }
        }
    }

    /// Where the agent before this one had read to in this boot, so that no line is sent twice and none is lost; 0 when
    /// there was none. In memory only: cursors begin anew with each boot.
    pub(super) fn kept_log_cursor(&self) -> u64 {
        fs::read_to_string(self.paths.run.join(LOG_CURSOR)).ok().and_then(|t| t.parse().ok()).unwrap_or(0)
    }

    fn collect_logs(&mut self) {
        let before = self.log_cursor;
        self.read_logs();
        if self.log_cursor != before
            && let Err(e) = fs::write(self.paths.run.join(LOG_CURSOR), self.log_cursor.to_string())
        {
            self.say_once("warning", &format!("the place in the log is not kept for the next agent: {e}"));
        }
    }

    fn read_logs(&mut self) {
        let boot_ns = machine::boot_time_seconds().max(0).unsigned_abs() * 1_000_000_000;
        loop {
            let Ok(logs) = self.supervisor.borrow_mut().logs(self.log_cursor) else {
                return;
            };
            self.log_cursor = logs.next;
            for line in &logs.lines {
                // What the agent itself says went into the log when it was said.
                if line.unit.as_str() == "node" {
                    continue;
                }
                let keep = vms::app_of(&line.unit)
                    .is_none_or(|app| self.desired.apps.iter().any(|a| a.id == app && !a.disable_logs));
                self.logs.borrow_mut().unit_line(line, boot_ns, keep);
            }
            if !logs.more {
                return;
            }
        }
    }

    pub(super) fn session_event(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Config(desired) => {
                self.network.contact();
                self.update.contact(machine::now());
                self.session.contact = Some(machine::now());
                self.session.refused.clear();
                self.say(
                    "info",
                    &format!(
                        "config {} accepted: {} apps, {} network instances, {} faults",
                        desired.revision,
                        desired.apps.len(),
                        desired.instances.len(),
                        desired.faults.len()
                    ),
                );
                let last = self.desired.clone();
                self.apply(&last, *desired);
            }
            SessionEvent::Refused(text) => {
                self.say_once("error", &text);
                self.session.refused = text;
            }
            SessionEvent::Contact => {
                self.session.refused.clear();
                self.network.contact();
                self.update.contact(machine::now());
                self.session.contact = Some(machine::now());
            }
            SessionEvent::NoContact { temporary } => {
                self.update.no_contact(machine::now(), temporary);
                // The ports have done their part when the remote side is at fault.
                if temporary {
                    self.network.contact();
                } else {
                    self.network.no_contact();
                }
            }
            SessionEvent::Device(id) => {
                self.say("info", &format!("this device is {id} at its controller"));
                self.store.now.device = Some(id);
            }
            SessionEvent::Attestation { state, error } => {
                if !error.is_empty() {
                    self.update.no_contact(machine::now(), false);
                    self.say_once("error", &format!("attestation: {error}"));
                }
                (self.session.attestation, self.session.attestation_error) = (state, error);
            }
            SessionEvent::Trouble(text) => self.say_once("warning", &text),
        }
    }
}
