//! The base OS, and the ends of boots: ordered reboots, and why the last boot ended.

use super::Agent;
use crate::apps::Vm;
use crate::machine;
use holdfast_model::observed::{BootReason, RebootRecord};
use std::time::Duration;

/// Time that running apps get to end before an ordered reboot goes on without them.
const REBOOT_PATIENCE: Duration = Duration::from_secs(30);

impl Agent {
    pub(super) fn turn_update(&mut self) {
        if !self.configured && !self.update.in_trial() {
            return;
        }
        let apps_hold = self.going_down.is_some();
        let (texts, order) = self.update.turn(
            machine::now(),
            &self.desired,
            &self.roots_pem,
            &self.supervisor,
            &self.jobs,
            self.device.identity().as_ref(),
            apps_hold,
        );
        for text in texts {
            self.say("info", &text);
        }
        if let Some((reason, text)) = order {
            self.order_reboot(reason, &text);
        }
        let limit = Duration::from_secs(self.desired.properties.reboot_no_network_seconds.into());
        let silent = machine::now().saturating_sub(self.session.contact.unwrap_or_default());
        if self.boot.site.is_some() && silent > limit && self.going_down.is_none() {
            self.order_reboot(
                BootReason::Disconnect,
                &format!("no contact with the controller for {} s (timer.reboot.no.network)", limit.as_secs()),
            );
        }
    }

    pub(super) fn order_reboot(&mut self, reason: BootReason, text: &str) {
        if self.going_down.is_some() {
            return;
        }
        let record = RebootRecord { reason, text: text.to_owned(), time_seconds: machine::wall_seconds() };
        self.store.now.ordered_reboot = Some(record.clone());
        self.say("info", &format!("reboot: {text}"));
        self.going_down = Some((record, machine::now()));
    }

    /// Reboots once the apps have ended, or their time is over.
    pub(super) fn turn_down(&mut self) {
        let Some((record, since)) = self.going_down.clone() else {
            return;
        };
        let alive = self.runtimes.values().any(|r| matches!(r.vm, Vm::Running { .. } | Vm::Stopping));
        let waited = machine::now().saturating_sub(since);
        // The state must be on disk before; a second turn lets the report of it go out.
        if (alive && waited < REBOOT_PATIENCE) || waited < Duration::from_secs(2) {
            return;
        }
        if let Err(e) = self.store.save() {
            self.say_once("error", &format!("the agent's state cannot be saved before the reboot: {e}"));
        }
        let _ = self.device.identity().extend_phase(holdfast_format::pcr::phase::SHUTDOWN);
        let ordered = self.supervisor.borrow_mut().reboot(&record.text);
        if let Err(e) = ordered {
            self.say_once("error", &format!("reboot: {e}"));
        }
    }

    pub(super) fn reason_of_last_boot(&mut self) -> RebootRecord {
        let boot = self.boot.facts.boot_count;
        if let Some((counted, record)) = &self.store.now.last_reboot
            && *counted == boot
        {
            return record.clone();
        }
        let ordered = self.store.now.ordered_reboot.take();
        let record = if !self.boot.facts.fallback_reason.is_empty() {
            RebootRecord {
                reason: BootReason::Fallback,
                text: self.boot.facts.fallback_reason.clone(),
                time_seconds: 0,
            }
        } else if let Some(record) = ordered {
            record
        } else if boot <= 1 {
            RebootRecord { reason: BootReason::First, text: "first boot".into(), time_seconds: 0 }
        } else {
            let text = self.boot.facts.previous_end.clone();
            let reason = if text.contains("watchdog") {
                BootReason::Watchdog
            } else if text.contains("panic") {
                BootReason::Kernel
            } else if text.is_empty() {
                BootReason::PowerFail
            } else {
                BootReason::Unknown
            };
            let text = if text.is_empty() { "power was lost, or the machine was reset".into() } else { text };
            RebootRecord { reason, text, time_seconds: 0 }
        };
        self.store.now.last_reboot = Some((boot, record.clone()));
        record
    }
}
