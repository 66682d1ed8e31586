//! Every timeout, retry, backoff and bound of the client, in one table.
//!
//! | what | value | EVE property |
//! |---|---|---|
//! | whole request | 120 s | `timer.send.timeout` |
//! | name lookup; TCP connect and TLS handshake, each address | 10 s | `timer.dial.timeout` |
//! | one request over all uplinks together | 240 s | |
//! | config poll | uniform in 0.3..=1.0 of 60 s | `timer.config.interval` |
//! | metrics | 60 s | `timer.metric.interval` |
//! | device info though unchanged | 600 s | `timer.deviceinfo.interval` |
//! | certificates again; after a failure | 86400 s; 120 s | `timer.cert.interval` |
//! | onboarding backoff | 1 s doubling to 600 s | |
//! | `/uuid` when the controller answers 400 or 404 on config | at most every 600 s | |
//! | attestation after a failure | 15 s | |
//! | info backoff, each item | 1 s doubling to 900 s | |
//! | log upload; with backlog; fast | 90 s; 45, 30, 15, 8, 3 s; 3 s | `newlog.allow.fastupload` |
//! | log upload on 429 | doubles to 300 s, for 3600 s | |
//! | log upload after 3 failures | uniform in 180..=900 s | |
//! | config backup | once the config is 600 s old and good | `timer.test.baseimage.update` |

use holdfast_model::properties::Properties;
use std::time::Duration;

/// One name lookup tries at most this many addresses.
pub const MAX_ADDRESSES: usize = 4;
/// One request over all uplinks together.
pub const ALL_UPLINKS: Duration = Duration::from_secs(240);
/// Onboarding: first and longest wait after a failure.
pub const ONBOARDING_BACKOFF: Backoff = Backoff::new(1, 600);
/// Asking `/uuid` because config says the device is not known.
pub const UUID_RECHECK: Duration = Duration::from_secs(600);
/// Attestation after a failure.
pub const ATTESTATION_RESTART: Duration = Duration::from_secs(15);
/// Certificates after a failure.
pub const CERTIFICATES_RETRY: Duration = Duration::from_secs(120);
/// Info: first and longest wait of an item after a failure.
pub const INFO_BACKOFF: Backoff = Backoff::new(1, 900);
/// Info messages waiting at most, one for each object.
pub const MAX_INFO_ITEMS: usize = 2048;
/// Log files waiting at most, in bytes; the oldest go first.
pub const MAX_LOG_BYTES: usize = 4 << 20;
/// Log upload with nothing waiting behind it.
pub const LOG_INTERVAL: Duration = Duration::from_secs(90);
/// Log upload when so many files wait: files and interval, most first.
pub const LOG_BACKLOG: [(usize, Duration); 5] = [
    (50, Duration::from_secs(3)),
    (25, Duration::from_secs(8)),
    (10, Duration::from_secs(15)),
    (5, Duration::from_secs(30)),
    (2, Duration::from_secs(45)),
];
/// Log upload in fast mode.
pub const LOG_FAST: Duration = Duration::from_secs(3);
/// Longest log interval after answers of 429.
pub const LOG_SLOWEST: Duration = Duration::from_secs(300);
/// How long the slower interval holds.
pub const LOG_SLOW_FOR: Duration = Duration::from_secs(3600);
/// Refusals (4xx) after which a log file is given up.
pub const LOG_MAX_REFUSALS: u32 = 10;
/// Failures in a row after which log upload pauses.
pub const LOG_MAX_FAILURES: u32 = 3;
/// Shortest and longest pause.
pub const LOG_PAUSE: (Duration, Duration) = (Duration::from_secs(180), Duration::from_secs(900));

/// Largest body of a reply, for each kind of request.
pub mod limits {
    /// Certificates.
    pub const CERTIFICATES: usize = 512 * 1024;
    /// Config.
    pub const CONFIG: usize = 8 << 20;
    /// Attestation, with escrowed keys.
    pub const ATTESTATION: usize = 512 * 1024;
    /// Everything else.
    pub const OTHER: usize = 64 * 1024;
    /// A quote request with its event log must stay below this.
    pub const QUOTE_REQUEST: usize = 62_000;
}

/// Doubling wait between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// From `first` to `longest` seconds.
    #[must_use]
    pub const fn new(first: u64, longest: u64) -> Self {
        Self { first: Duration::from_secs(first), longest: Duration::from_secs(longest) }
    }

    /// The wait after the failure number `failures` (1 = the first).
    #[must_use]
    pub fn after(self, failures: u32) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1))).min(self.longest)
    }
}

/// The times that properties set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Whole request.
    pub send: Duration,
    /// Name lookup; connect and handshake of one address.
    pub dial: Duration,
    /// Longest time between config polls.
    pub config: Duration,
    /// Time between metrics.
    pub metrics: Duration,
    /// Device info though unchanged.
    pub device_info: Duration,
    /// Certificates again.
    pub certificates: Duration,
    /// Age at which a good config is backed up.
    pub backup: Duration,
    /// Logs are uploaded fast.
    pub fast_logs: bool,
}

impl Default for Timing {
    fn default() -> Self {
        Self::from_properties(&Properties::default())
    }
}

impl Timing {
    /// The times in force.
    #[must_use]
    pub fn from_properties(properties: &Properties) -> Self {
        let seconds = |value: u32| Duration::from_secs(value.into());
        let or_default =
            |value: u32, default: u64| Duration::from_secs(if value == 0 { default } else { value.into() });
        Self {
            send: or_default(properties.send_timeout_seconds, 120),
            dial: or_default(properties.dial_timeout_seconds, 10),
            config: seconds(properties.config_interval_seconds),
            metrics: seconds(properties.metric_interval_seconds),
            device_info: seconds(properties.device_info_interval_seconds),
            certificates: seconds(properties.certificate_interval_seconds),
            backup: seconds(properties.test_window_seconds),
            fast_logs: properties.fast_log_upload,
        }
    }

    /// Time to the next config poll; `random` in 0.0..1.0 (see [`random`]).
    #[must_use]
    pub fn next_poll(&self, random: f64) -> Duration {
        self.config.mul_f64(0.3 + 0.7 * random.clamp(0.0, 1.0))
    }
}

/// A fresh random number in 0.0..1.0, for jitter.
#[must_use]
pub fn random() -> f64 {
    let [a, b, c, d, e, f, ..] = *uuid::Uuid::new_v4().as_bytes();
    let bits = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    bits as f64 / (1u64 << 48) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        let waits: Vec<u64> = (1..=12).map(|n| INFO_BACKOFF.after(n).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        assert_eq!(INFO_BACKOFF.after(u32::MAX).as_secs(), 900);
    }

    proptest! {
        #[test]
        fn poll_comes_between_three_tenths_and_the_whole_interval(seconds in 5u32..86_400, jitter in 0.0f64..1.0) {
            let timing = Timing::from_properties(&Properties { config_interval_seconds: seconds, ..Properties::default() });
            let wait = timing.next_poll(jitter).as_secs_f64();
            prop_assert!(wait >= 0.299 * f64::from(seconds) && wait <= f64::from(seconds) + 0.001);
        }
    }

    #[test]
    fn jitter_spreads_over_the_unit_interval() {
        let numbers: Vec<f64> = (0..200).map(|_| random()).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        assert!(numbers.iter().any(|n| *n < 0.3) && numbers.iter().any(|n| *n > 0.7));
    }
}
