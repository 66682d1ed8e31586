//! The base OS, and the ends of boots: ordered reboots, and why the last boot ended.

use super::Agent;
use crate::machine;
use crate::parts::app::decide::Vm;
use holdfast_model::boot::BootFacts;
use holdfast_model::observed::{BootReason, RebootRecord};
use std::time::Duration;

/// Time that running apps get to end before an ordered reboot goes on without them.
const REBOOT_PATIENCE: Duration = Duration::from_secs(30);

impl Agent {
    pub(super) fn turn_update(&mut self) {
        if !self.configured && !self.update.busy() {
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
        if self.reboot_asked.is_some_and(|at| machine::now().saturating_sub(at) < REBOOT_PATIENCE) {
            return;
        }
        if let Err(e) = self.store.save() {
            self.say_once("error", &format!("the agent's state cannot be saved before the reboot: {e}"));
        }
        if self.reboot_asked.replace(machine::now()).is_none() {
            let _ = self.device.identity().extend_phase(holdfast_format::pcr::phase::SHUTDOWN);
        }
        let ordered = self.supervisor.borrow_mut().reboot(&record.text);
        if let Err(e) = ordered {
            self.say_once("error", &format!("reboot: {e}"));
        }
    }

    /// Why the last boot ended: found out by the first agent of a boot, kept for those after it.
    pub(super) fn note_last_boot(&mut self) {
        let boot = self.boot.facts.boot_count;
        if let Some((counted, record)) = &self.store.now.last_reboot
            && *counted == boot
        {
            self.last_reboot = record.clone();
            return;
        }
        let ordered = self.store.now.ordered_reboot.take();
        self.last_reboot = last_boot(&self.boot.facts, ordered);
        // Only this first agent: one that is restarted later in the boot may have got a newer, good config meanwhile.
        self.after_crash = is_crash(self.last_reboot.reason);
        self.store.now.last_reboot = Some((boot, self.last_reboot.clone()));
    }

    /// Outside of a trial the running image is the committed one: the TPM must refuse those before it from now on. Done at each
    /// start, as the power may have gone between making the vault, or a commit, and this.
    pub(super) fn keep_committed_epoch(&mut self) {
        if self.update.busy() {
            return;
        }
        let epoch = self.boot.facts.epoch;
        if let Err(e) = self.device.identity().commit_epoch(epoch) {
            self.say(
                "warning",
                &format!("security epoch {epoch} is not committed to the TPM: {e}; tried again after a restart"),
            );
        }
    }
}

/// Why the last boot ended, from what PID 1 found and what this agent had ordered.
pub(crate) fn last_boot(facts: &BootFacts, ordered: Option<RebootRecord>) -> RebootRecord {
    let record = |reason, text: &str| RebootRecord { reason, text: text.to_owned(), time_seconds: 0 };
    if !facts.fallback_reason.is_empty() {
        return record(BootReason::Fallback, &facts.fallback_reason);
    }
    match (facts.previous_reason, ordered) {
        // A crash on the way down is worth more than the order.
        (Some(reason), _) if is_crash(reason) => record(reason, &facts.previous_end),
        (_, Some(ordered)) => ordered,
        (Some(reason), None) => record(reason, &facts.previous_end),
        (None, None) if facts.boot_count <= 1 => record(BootReason::First, "first boot"),
        (None, None) => record(BootReason::PowerFail, "power was lost, or the machine was reset"),
    }
}

/// Ends that a config may have caused.
fn is_crash(reason: BootReason) -> bool {
    matches!(reason, BootReason::Fatal | BootReason::Watchdog | BootReason::Kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_last_boot_is_told_from_what_is_known() {
        let facts = |boot_count, end: Option<(BootReason, &str)>, fallback: &str| -> BootFacts {
            serde_json::from_value(serde_json::json!({
                "slot": holdfast_model::slot::Slot::A, "version": "1", "epoch": 0, "boot_count": boot_count,
                "partitions": holdfast_model::boot::Partitions::default(), "tpm": false, "secure_boot": false, "watchdog": "",
                "stages": [], "measurements": [], "previous_end": end.map_or("", |e| e.1),
                "previous_reason": end.map(|e| e.0), "fallback_reason": fallback,
            }))
            .unwrap()
        };
        let order = RebootRecord { reason: BootReason::RebootCommand, text: "counter 3".into(), time_seconds: 9 };
        let panic = Some((BootReason::Kernel, "Oops"));
        let by_order = Some((BootReason::RebootCommand, "reboot by node"));
        let cases = [
            (facts(1, None, ""), None, BootReason::First, "first boot"),
            (facts(2, None, ""), None, BootReason::PowerFail, "power was lost, or the machine was reset"),
            (facts(2, by_order, ""), Some(order.clone()), BootReason::RebootCommand, "counter 3"),
            (facts(2, by_order, ""), None, BootReason::RebootCommand, "reboot by node"),
            (facts(2, panic, ""), Some(order.clone()), BootReason::Kernel, "Oops"),
            (facts(2, panic, "trial failed"), Some(order), BootReason::Fallback, "trial failed"),
            (facts(2, Some((BootReason::Watchdog, "no heartbeat")), ""), None, BootReason::Watchdog, "no heartbeat"),
        ];
        for (facts, ordered, reason, text) in cases {
            let found = last_boot(&facts, ordered);
            assert_eq!((found.reason, found.text.as_str()), (reason, text));
        }
    }
}
