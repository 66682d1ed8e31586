//! Is the decision maker well? Heartbeats of `node`, and what follows when they stay away.
//!
//! | wait | value | EVE property |
//! |---|---|---|
//! | first heartbeat after a start of `node` | [`START_GRACE_MS`] | none |
//! | heartbeat to heartbeat | [`HEARTBEAT_DEADLINE_MS`] | none |
//! | no heartbeat at all, restarts included, then reboot | [`REBOOT_AFTER_MS`] | none |
//! | petting the hardware watchdog | [`PET_INTERVAL_MS`] | none |
#![forbid(unsafe_code)]

/// From the start of `node` to its first heartbeat.
pub const START_GRACE_MS: u64 = 120_000;
/// From one heartbeat to the next.
pub const HEARTBEAT_DEADLINE_MS: u64 = 60_000;
/// Without any heartbeat for this long the machine is restarted: on a trial that is the way back to the old slot.
pub const REBOOT_AFTER_MS: u64 = 300_000;
/// The hardware's timeout is 60 s.
pub const PET_INTERVAL_MS: u64 = 10_000;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Well,
    /// Kill `node`; its restart policy starts it again.
    RestartNode,
    /// Give up on this boot.
    Reboot,
}

/// Watches heartbeats.
#[derive(Debug)]
pub struct Health {
    last_heartbeat_ms: u64,
    node_due_ms: Option<u64>,
}

impl Health {
    /// Counting begins now.
    pub fn new(now_ms: u64) -> Health {
        Health { last_heartbeat_ms: now_ms, node_due_ms: None }
    }

    /// `node` was started.
    pub fn node_started(&mut self, now_ms: u64) {
        self.node_due_ms = Some(now_ms + START_GRACE_MS);
    }

    /// `node` has ended, or is being stopped on purpose.
    pub fn node_ended(&mut self) {
        self.node_due_ms = None;
    }

    /// `node` says that it is well.
    pub fn heartbeat(&mut self, now_ms: u64) {
        self.last_heartbeat_ms = now_ms;
        self.node_due_ms = self.node_due_ms.map(|_| now_ms + HEARTBEAT_DEADLINE_MS);
    }

    /// When [`Health::check`] may say something new.
    pub fn next_ms(&self) -> u64 {
        let reboot_ms = self.last_heartbeat_ms + REBOOT_AFTER_MS;
        self.node_due_ms.map_or(reboot_ms, |due| due.min(reboot_ms))
    }

    /// Judges; a verdict other than `Well` is given once.
    pub fn check(&mut self, now_ms: u64) -> Verdict {
        if now_ms >= self.last_heartbeat_ms + REBOOT_AFTER_MS {
            self.last_heartbeat_ms = now_ms;
            return Verdict::Reboot;
        }
        if self.node_due_ms.is_some_and(|due| now_ms >= due) {
            self.node_due_ms = None;
            return Verdict::RestartNode;
        }
        Verdict::Well
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_node_is_restarted_and_a_lasting_silence_reboots() {
        let mut health = Health::new(0);
        health.node_started(0);
        assert_eq!(health.check(START_GRACE_MS - 1), Verdict::Well);
        assert_eq!(health.check(START_GRACE_MS), Verdict::RestartNode);
        assert_eq!(health.check(START_GRACE_MS + 1), Verdict::Well);
        health.node_started(START_GRACE_MS + 10);
        assert_eq!(health.next_ms(), 2 * START_GRACE_MS + 10);
        assert_eq!(health.check(REBOOT_AFTER_MS), Verdict::Reboot);
    }

    #[test]
    fn heartbeats_move_both_deadlines() {
        let mut health = Health::new(0);
        health.node_started(0);
        for n in 1..20 {
            let now = n * (HEARTBEAT_DEADLINE_MS - 1);
            assert_eq!(health.check(now), Verdict::Well);
            health.heartbeat(now);
        }
        assert_eq!(health.next_ms(), 19 * (HEARTBEAT_DEADLINE_MS - 1) + HEARTBEAT_DEADLINE_MS);
    }

    #[test]
    fn node_that_crashes_for_ever_reboots_in_the_end() {
        let mut health = Health::new(0);
        for start in [0, 100_000, 200_000] {
            health.node_started(start);
            health.node_ended();
        }
        assert_eq!(health.next_ms(), REBOOT_AFTER_MS);
        assert_eq!(health.check(REBOOT_AFTER_MS), Verdict::Reboot);
    }
}
