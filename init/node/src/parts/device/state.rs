//! Counter commands, reboots and why boots end. Pure.

use super::kept::Kept;
use crate::part::Turn;
use holdfast_model::boot::BootFacts;
use holdfast_model::desired::Commands;
use holdfast_model::observed::{BootReason, RebootRecord};
use std::time::Duration;

/// Time that running apps get to end before an ordered reboot goes on without them; also between two tries of it.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Time in which the report of the reboot can go out.
const NOTICE: Duration = Duration::from_secs(2);

/// What a config orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Stop all apps until the next boot.
    ShutDownApps(u32),
    /// Reboot.
    Reboot(u32),
}

/// The orders that are to be followed now; notes them as followed. They must be on disk before anything is done that a second
/// time would do harm.
pub fn follow(kept: &mut Kept, commands: Commands, boot: u64) -> Vec<Order> {
    let mut orders = Vec::new();
    if due(&mut kept.shutdown_counter, commands.shutdown) {
        kept.shut_down_in_boot = Some(boot);
        orders.push(Order::ShutDownApps(commands.shutdown));
    }
    if due(&mut kept.reboot_counter, commands.reboot) {
        orders.push(Order::Reboot(commands.reboot));
    }
    orders
}

/// True when a counter command is to be followed now; notes it. The first value ever seen is where counting starts, and 0
/// stands for "no command".
fn due(acted: &mut Option<u32>, commanded: u32) -> bool {
    match *acted {
        None => {
            *acted = Some(commanded);
            false
        }
        Some(before) if before != commanded && commanded != 0 => {
            *acted = Some(commanded);
            true
        }
        Some(_) => false,
    }
}

/// Why the boot before this one ended, and whether that was a crash that its config may have caused: found out by the first agent of
/// a boot, kept for those after it.
pub fn note_last_boot(kept: &mut Kept, facts: &BootFacts) -> (RebootRecord, bool) {
    if let Some((boot, record)) = &kept.last_reboot
        && *boot == facts.boot_count
    {
        // One that is restarted later in the boot may have got a newer, good config meanwhile.
        return (record.clone(), false);
    }
    let record = last_boot(facts, kept.ordered_reboot.take());
    kept.last_reboot = Some((facts.boot_count, record.clone()));
    let crash = is_crash(record.reason);
    (record, crash)
}

/// Why the last boot ended, from what PID 1 found and what the agent had ordered.
#[must_use]
pub fn last_boot(facts: &BootFacts, ordered: Option<RebootRecord>) -> RebootRecord {
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

/// A reboot that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// Why.
    pub record: RebootRecord,
    /// Since when.
    pub since: Duration,
    /// When PID 1 was last asked for it.
    pub asked: Option<Duration>,
}

impl Down {
    /// True when PID 1 is to be asked now. `saved`: what must not be forgotten over the reboot is on disk. A counter that is not
    /// would order the reboot again after it, for ever; anything else goes on without after a while.
    #[must_use]
    pub fn due(&self, now: Duration, apps_run: bool, saved: bool) -> bool {
        let waited = now.saturating_sub(self.since);
        let ready = saved || (waited >= PATIENCE && self.record.reason != BootReason::RebootCommand);
        let quiet = !apps_run || waited >= PATIENCE;
        let again = self.asked.is_none_or(|at| now.saturating_sub(at) >= PATIENCE);
        waited >= NOTICE && ready && quiet && again
    }
}

/// The reboot that is due because the controller is silent for too long.
#[must_use]
pub fn silence(turn: &Turn<'_>, contact: Option<Duration>) -> Option<(BootReason, String)> {
    let limit = turn.config.map_or_else(
        || holdfast_model::properties::Properties::default().reboot_no_network_seconds,
        |c| c.properties.reboot_no_network_seconds,
    );
    let silent = turn.now.saturating_sub(contact.unwrap_or_default());
    (silent > Duration::from_secs(limit.into())).then(|| {
        let text = format!("no contact with the controller for {limit} s (timer.reboot.no.network)");
        (BootReason::Disconnect, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_command_is_followed_once_and_the_first_value_orders_nothing() {
        let mut acted = None;
        let followed = [7, 7, 8, 8, 0, 8, 9].map(|commanded| due(&mut acted, commanded));
        assert_eq!(followed, [false, false, true, false, false, false, true]);
        assert_eq!(acted, Some(9));
    }

    fn facts(boot_count: u64, end: Option<(BootReason, &str)>, fallback: &str) -> BootFacts {
        serde_json::from_value(serde_json::json!({
            "slot": holdfast_model::slot::Slot::A, "version": "1", "epoch": 0, "boot_count": boot_count,
            "partitions": holdfast_model::boot::Partitions::default(), "tpm": false, "secure_boot": false, "watchdog": "",
            "stages": [], "measurements": [], "previous_end": end.map_or("", |e| e.1),
            "previous_reason": end.map(|e| e.0), "fallback_reason": fallback,
        }))
        .unwrap()
    }

    #[test]
    fn the_end_of_the_last_boot_is_told_from_what_is_known() {
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

    #[test]
    fn only_the_first_agent_of_a_boot_takes_the_last_one_for_a_crash() {
        let mut kept = Kept::default();
        let facts = facts(2, Some((BootReason::Kernel, "Oops")), "");
        let (first, crash) = note_last_boot(&mut kept, &facts);
        assert_eq!((first.reason, crash), (BootReason::Kernel, true));
        assert_eq!(note_last_boot(&mut kept, &facts), (first, false));
    }

    #[test]
    fn a_reboot_waits_for_apps_for_a_while_and_for_its_counter_for_ever() {
        let seconds = Duration::from_secs;
        let down = |reason| Down {
            record: RebootRecord { reason, ..RebootRecord::default() },
            since: seconds(100),
            asked: None,
        };
        let (order, update) = (down(BootReason::RebootCommand), down(BootReason::Update));
        for (down, at, apps_run, saved, due) in [
            (&order, 101, false, true, false),
            (&order, 102, false, true, true),
            (&order, 129, true, true, false),
            (&order, 130, true, true, true),
            (&order, 500, false, false, false),
            (&update, 129, false, false, false),
            (&update, 130, false, false, true),
        ] {
            assert_eq!(down.due(seconds(at), apps_run, saved), due, "{:?} at {at}", down.record.reason);
        }
        let asked = Down { asked: Some(seconds(102)), ..order };
        assert_eq!((asked.due(seconds(131), false, true), asked.due(seconds(132), false, true)), (false, true));
    }
}
