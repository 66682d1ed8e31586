//! When a trial has passed or failed: a pure decision over times.

use std::fmt;
use std::time::Duration;

/// Deadlines, counted from the start of `node` except where said. Defaults are EVE's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// `timer.test.baseimage.update`: how long all must be well without a break, the controller's answers included.
    pub test_window: Duration,
    /// `timer.update.fallback.no.network`: longest time without the controller, from the start or from its last sign of life.
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

/// The controller as a trial sees it.
///
/// ```text
///  Away --accepted--> Answers --anything else--> Away
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// It does not answer with a configuration, or with the word that the present one is right.
    Away {
        /// Its last sign of life; the start of `node` when there was none.
        since: Duration,
    },
    /// It answers.
    Answers {
        /// Without a break since then.
        since: Duration,
    },
}

impl Default for Controller {
    fn default() -> Self {
        Self::Away { since: Duration::ZERO }
    }
}

impl Controller {
    /// A configuration was accepted, or the present one confirmed.
    #[must_use]
    pub fn accepted(self, now: Duration) -> Self {
        match self {
            Self::Away { .. } => Self::Answers { since: now },
            Self::Answers { .. } => self,
        }
    }

    /// A poll brought neither. A `temporary` failure (503, connection refused) is a sign of life: the remote side is at fault, not this
    /// image, and it is waited for; but the window begins anew when it is over.
    #[must_use]
    pub fn failed(self, now: Duration, temporary: bool) -> Self {
        match self {
            Self::Away { .. } if !temporary => self,
            Self::Away { .. } | Self::Answers { .. } => Self::Away { since: now },
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
    /// The controller.
    pub controller: Controller,
    /// Something that cannot get better (`node` crashes over and over, ...).
    pub fatal: Option<String>,
}

/// Why a trial failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialFailure {
    /// No configuration from the controller since the start.
    NoController(Duration),
    /// The controller was there, and then no more.
    LostController(Duration),
    /// The vault did not open.
    Vault(Duration),
    /// Something else that is final.
    Fatal(String),
}

impl fmt::Display for TrialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrialFailure::NoController(d) => write!(f, "no configuration from the controller within {} s", d.as_secs()),
            TrialFailure::LostController(d) => {
                write!(f, "the controller was there, and then gave no sign of life for {} s", d.as_secs())
            }
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
    let since = match health.controller {
        Controller::Away { since } if health.now.saturating_sub(since) < deadlines.no_controller => {
            return Verdict::Waiting { seconds_left: seconds(deadlines.test_window) };
        }
        Controller::Away { since: Duration::ZERO } => {
            return Verdict::Failed(TrialFailure::NoController(deadlines.no_controller));
        }
        Controller::Away { .. } => return Verdict::Failed(TrialFailure::LostController(deadlines.no_controller)),
        Controller::Answers { since } => since,
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

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at(now: u64, vault: Option<u64>, controller: Controller) -> Verdict {
        judge(&Deadlines::default(), &Health { now: s(now), vault_open: vault.map(s), controller, fatal: None })
    }

    #[test]
    fn a_trial_passes_only_after_its_window_with_vault_and_controller() {
        let never = Controller::default();
        let away = |since| Controller::Away { since: s(since) };
        let answers = |since| Controller::Answers { since: s(since) };
        let cases = [
            ((10, None, never), Verdict::Waiting { seconds_left: 600 }),
            ((299, Some(5), never), Verdict::Waiting { seconds_left: 600 }),
            ((300, Some(5), never), Verdict::Failed(TrialFailure::NoController(s(300)))),
            ((300, None, answers(20)), Verdict::Failed(TrialFailure::Vault(s(300)))),
            ((100, Some(5), answers(20)), Verdict::Waiting { seconds_left: 520 }),
            ((619, Some(5), answers(20)), Verdict::Waiting { seconds_left: 1 }),
            ((620, Some(5), answers(20)), Verdict::Passed),
            // Back since 500: the window began anew.
            ((620, Some(5), answers(500)), Verdict::Waiting { seconds_left: 480 }),
            // Gone just before the end.
            ((620, Some(5), away(610)), Verdict::Waiting { seconds_left: 600 }),
            ((909, Some(5), away(610)), Verdict::Waiting { seconds_left: 600 }),
            ((910, Some(5), away(610)), Verdict::Failed(TrialFailure::LostController(s(300)))),
        ];
        for ((now, vault, controller), want) in cases {
            assert_eq!(at(now, vault, controller), want, "{now} {vault:?} {controller:?}");
        }
    }

    /// Seconds and what a poll brought: `a` accepted, `t` temporary failure, `f` another one.
    type Events = &'static [(u64, char)];

    fn story(events: Events) -> Controller {
        events.iter().fold(Controller::default(), |controller, (at, what)| match what {
            'a' => controller.accepted(s(*at)),
            what => controller.failed(s(*at), *what == 't'),
        })
    }

    #[test]
    fn the_window_counts_from_the_first_answer_after_the_last_break() {
        let since = |controller| match controller {
            Controller::Answers { since } => Ok(since.as_secs()),
            Controller::Away { since } => Err(since.as_secs()),
        };
        let cases: [(Events, Result<u64, u64>); 9] = [
            (&[], Err(0)),
            (&[(10, 'f'), (20, 'f')], Err(0)),
            (&[(10, 'f'), (20, 'a'), (30, 'a')], Ok(20)),
            (&[(20, 'a'), (30, 'f')], Err(30)),
            // It is away since the break, not since the last failure ...
            (&[(20, 'a'), (30, 'f'), (40, 'f')], Err(30)),
            // ... but a temporary failure is a sign of life.
            (&[(20, 'a'), (30, 'f'), (40, 't')], Err(40)),
            (&[(10, 't'), (200, 't')], Err(200)),
            (&[(20, 'a'), (30, 't'), (90, 'a'), (99, 'a')], Ok(90)),
            (&[(20, 'a'), (30, 'f'), (40, 'a'), (50, 'f'), (60, 'a')], Ok(60)),
        ];
        for (events, want) in cases {
            assert_eq!(since(story(events)), want, "{events:?}");
        }
    }

    #[test]
    fn a_fatal_fault_ends_it_at_once_and_says_so() {
        let h = Health { fatal: Some("node crashed 5 times".into()), ..Health::default() };
        let Verdict::Failed(f) = judge(&Deadlines::default(), &h) else { panic!() };
        assert_eq!(f.to_string(), "node crashed 5 times");
    }
}
