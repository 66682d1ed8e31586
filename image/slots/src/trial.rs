//! When a trial has passed or failed: a pure decision over times.

use std::fmt;
use std::time::Duration;

/// Deadlines, counted from the start of `node` except where said. Defaults are EVE's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// `timer.test.baseimage.update`: how long all must be well, from the first accepted configuration.
    pub test_window: Duration,
    /// `timer.update.fallback.no.network`: until the first accepted configuration.
    pub no_controller: Duration,
    /// Until the vault is open.
    pub vault: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            test_window: Duration::from_secs(600),
            no_controller: Duration::from_secs(300),
            vault: Duration::from_secs(300),
        }
    }
}

/// What is known so far; durations since the start of `node`, monotonic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// Now.
    pub now: Duration,
    /// When the vault was opened.
    pub vault_open: Option<Duration>,
    /// Since when the controller has been answering without a break: its first accepted configuration or the end of the
    /// last temporary failure.
    pub controller_since: Option<Duration>,
    /// Something that cannot get better (`node` crashes over and over, ...).
    pub fatal: Option<String>,
}

/// Why a trial failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialFailure {
    /// No configuration from the controller.
    NoController(Duration),
    /// The vault did not open.
    Vault(Duration),
    /// Something else that is final.
    Fatal(String),
}

impl fmt::Display for TrialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrialFailure::NoController(d) => write!(f, "no configuration from the controller within {} s", d.as_secs()),
            TrialFailure::Vault(d) => write!(f, "the vault did not open within {} s", d.as_secs()),
            TrialFailure::Fatal(text) => f.write_str(text),
        }
    }
}

/// The verdict so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Undecided; seconds until it can pass, for status. Ask again within a second or so.
    Waiting {
        /// Seconds left of the window, the whole window while it has not begun.
        seconds_left: u32,
    },
    /// Send `TrialPassed`.
    Passed,
    /// Send `TrialFailed` with this text.
    Failed(TrialFailure),
}

/// Judges a trial.
#[must_use]
pub fn judge(deadlines: &Deadlines, health: &Health) -> Verdict {
    if let Some(text) = &health.fatal {
        return Verdict::Failed(TrialFailure::Fatal(text.clone()));
    }
    if health.vault_open.is_none() && health.now >= deadlines.vault {
        return Verdict::Failed(TrialFailure::Vault(deadlines.vault));
    }
    let Some(since) = health.controller_since else {
        return match health.now >= deadlines.no_controller {
            true => Verdict::Failed(TrialFailure::NoController(deadlines.no_controller)),
            false => Verdict::Waiting { seconds_left: seconds(deadlines.test_window) },
        };
    };
    let left = deadlines.test_window.saturating_sub(health.now.saturating_sub(since));
    match left.is_zero() && health.vault_open.is_some() {
        true => Verdict::Passed,
        false => Verdict::Waiting { seconds_left: seconds(left) },
    }
}

fn seconds(d: Duration) -> u32 {
    u32::try_from(d.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(now: u64, vault: Option<u64>, controller: Option<u64>) -> Verdict {
        let s = Duration::from_secs;
        judge(
            &Deadlines::default(),
            &Health { now: s(now), vault_open: vault.map(s), controller_since: controller.map(s), fatal: None },
        )
    }

    #[test]
    fn a_trial_passes_only_after_its_window_with_vault_and_controller() {
        let failed_controller = Verdict::Failed(TrialFailure::NoController(Duration::from_secs(300)));
        let failed_vault = Verdict::Failed(TrialFailure::Vault(Duration::from_secs(300)));
        let cases = [
            ((10, None, None), Verdict::Waiting { seconds_left: 600 }),
            ((299, Some(5), None), Verdict::Waiting { seconds_left: 600 }),
            ((300, Some(5), None), failed_controller),
            ((300, None, Some(20)), failed_vault),
            ((100, Some(5), Some(20)), Verdict::Waiting { seconds_left: 520 }),
            ((619, Some(5), Some(20)), Verdict::Waiting { seconds_left: 1 }),
            ((620, Some(5), Some(20)), Verdict::Passed),
            // A temporary failure has started the window again.
            ((620, Some(5), Some(500)), Verdict::Waiting { seconds_left: 480 }),
        ];
        for ((now, vault, controller), want) in cases {
            assert_eq!(at(now, vault, controller), want, "{now} {vault:?} {controller:?}");
        }
    }

    #[test]
    fn a_fatal_fault_ends_it_at_once_and_says_so() {
        let h = Health { fatal: Some("node crashed 5 times".into()), ..Health::default() };
        let Verdict::Failed(f) = judge(&Deadlines::default(), &h) else { panic!() };
        assert_eq!(f.to_string(), "node crashed 5 times");
    }
}
