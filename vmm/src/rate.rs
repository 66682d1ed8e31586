//! Token buckets: what a device may do by now. Pure; the time is passed in.
//!
//! A bucket holds up to `burst` tokens and gains `rate` of them each second. Work takes its tokens when they are there and
//! otherwise waits until the instant that [`Limiter::check`] names. Work larger than the whole burst goes when the bucket
//! is full and leaves a debt, so that it neither waits for ever nor costs less than its size.
//!
//! What is let through in any span is at most `burst + rate * span`, and the part of its last piece that exceeds the burst.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use holdfast_model::contract::vm::Limits;

/// Largest rate and burst: a tebibyte a second is beyond every device, and products of it with a time stay exact.
pub const MAX_RATE: u64 = 1 << 40;
/// Part of a second that a burst lasts when only the rate is given.
const DEFAULT_BURST: u64 = 10;
/// Tokens are counted in billionths, so that a nanosecond at one token a second is one.
const UNIT: i128 = 1_000_000_000;

/// A limit that cannot be used: which field, what it is, what is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitFault {
    /// Field of [`Limits`].
    pub field: &'static str,
    /// Value found.
    pub found: String,
    /// Range in words.
    pub expected: String,
}

/// The first fault in `limits`.
pub fn limit_fault(limits: &Limits) -> Option<LimitFault> {
    let pairs = [
        ("bytes_per_second", limits.bytes_per_second, "burst_bytes", limits.burst_bytes),
        ("ops_per_second", limits.ops_per_second, "burst_ops", limits.burst_ops),
    ];
    for (rate_field, rate, burst_field, burst) in pairs {
        for (field, value) in [(rate_field, rate), (burst_field, burst)] {
            if let Some(value) = value
                && !(1..=MAX_RATE).contains(&value)
            {
                let expected = format!("1 to {MAX_RATE}");
                return Some(LimitFault { field, found: value.to_string(), expected });
            }
        }
        if rate.is_none() && burst.is_some() {
            let expected = format!("to come with {rate_field}");
            return Some(LimitFault { field: burst_field, found: "alone".into(), expected });
        }
    }
    None
}
/// Buckets for bytes and for operations. Work must find room in both.
#[derive(Debug, Clone)]
pub struct Limiter {
    bytes: Option<Bucket>,
    ops: Option<Bucket>,
}

impl Limiter {
    /// Full buckets at `now`; `None` when nothing is limited.
    pub fn new(limits: &Limits, now: Instant) -> Option<Self> {
        let bucket = |rate: Option<u64>, burst: Option<u64>| rate.map(|rate| Bucket::new(rate, burst, now));
        let bytes = bucket(limits.bytes_per_second, limits.burst_bytes);
        let ops = bucket(limits.ops_per_second, limits.burst_ops);
        (bytes.is_some() || ops.is_some()).then_some(Self { bytes, ops })
    }

    /// Whether one operation of `bytes` bytes may go now.
    ///
    /// # Errors
    /// When it may go at the earliest: wait until then and ask again.
    pub fn check(&mut self, bytes: u64, now: Instant) -> Result<(), Instant> {
        let wait = [(&mut self.bytes, bytes), (&mut self.ops, 1)]
            .into_iter()
            .filter_map(|(bucket, amount)| bucket.as_mut()?.wait(amount, now))
            .max();
        // Beyond the clock's range nobody waits to the end.
        wait.map_or(Ok(()), |wait| Err(now.checked_add(wait).unwrap_or(now + Duration::from_secs(3600))))
    }

    /// Counts one operation of `bytes` bytes, whether or not there was room for it. For work whose size shows only when
    /// it is done; [`Limiter::check`] then refuses until the debt is paid.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.take(1);
        }
    }

    /// [`Limiter::check`], and [`Limiter::charge`] when it may go.
    ///
    /// # Errors
    /// As [`Limiter::check`]; nothing is counted then.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Instant> {
        self.check(bytes, now)?;
        self.charge(bytes);
        Ok(())
    }
}

/// One bucket.
#[derive(Debug, Clone)]
struct Bucket {
    /// Tokens gained in a second.
    rate: u64,
    /// Tokens it holds.
    burst: u64,
    /// Billionths of a token that are there; below zero is a debt.
    level: i128,
    /// When `level` was right.
    at: Instant,
}

impl Bucket {
    fn new(rate: u64, burst: Option<u64>, now: Instant) -> Self {
        let burst = burst.unwrap_or(rate / DEFAULT_BURST).max(1);
        Self { rate: rate.max(1), burst, level: i128::from(burst) * UNIT, at: now }
    }

    /// How long `amount` has to wait; `None` when it need not.
    fn wait(&mut self, amount: u64, now: Instant) -> Option<Duration> {
        let rate = i128::from(self.rate);
        let elapsed = i128::try_from(now.saturating_duration_since(self.at).as_nanos()).unwrap_or(i128::MAX);
        self.level = self.level.saturating_add(elapsed.saturating_mul(rate)).min(i128::from(self.burst) * UNIT);
        self.at = self.at.max(now);
        let missing = i128::from(amount.min(self.burst)) * UNIT - self.level;
        if missing <= 0 {
            return None;
        }
        // Rounded up: at the instant named the tokens are there.
        let nanos = (missing + rate - 1) / rate;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn take(&mut self, amount: u64) {
        self.level = self.level.saturating_sub(i128::from(amount) * UNIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(rate: u64, burst: u64) -> Limits {
        Limits { bytes_per_second: Some(rate), burst_bytes: Some(burst), ..Limits::default() }
    }

    #[test]
    fn burst_goes_at_once_and_the_rest_at_the_rate() {
        let start = Instant::now();
        let mut limiter = Limiter::new(&bytes(1000, 500), start).unwrap();
        assert_eq!(limiter.take(500, start), Ok(()));
        assert_eq!(limiter.take(100, start), Err(start + Duration::from_millis(100)));
        assert_eq!(limiter.take(100, start + Duration::from_millis(99)), Err(start + Duration::from_millis(100)));
        assert_eq!(limiter.take(100, start + Duration::from_millis(100)), Ok(()));
    }

    #[test]
    fn work_larger_than_the_burst_goes_when_the_bucket_is_full_and_is_paid_for_afterwards() {
        let start = Instant::now();
        let mut limiter = Limiter::new(&bytes(1000, 10), start).unwrap();
        assert_eq!(limiter.take(2010, start), Ok(()));
        assert_eq!(limiter.take(10, start), Err(start + Duration::from_millis(2010)));
    }

    #[test]
    fn both_buckets_must_have_room() {
        let start = Instant::now();
        let limits = Limits { ops_per_second: Some(10), burst_ops: Some(1), ..bytes(1000, 1000) };
        let mut limiter = Limiter::new(&limits, start).unwrap();
        assert_eq!(limiter.take(1000, start), Ok(()));
        assert_eq!(limiter.check(0, start), Err(start + Duration::from_millis(100)), "operations");
        assert_eq!(limiter.check(500, start), Err(start + Duration::from_millis(500)), "bytes");
    }

    #[test]
    fn refused_work_costs_nothing_and_a_clock_that_goes_back_gives_nothing() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut limiter = Limiter::new(&bytes(1000, 100), later).unwrap();
        assert_eq!(limiter.take(100, later), Ok(()));
        for _ in 0..10 {
            assert!(limiter.take(1, start).is_err());
        }
        assert_eq!(limiter.take(100, later + Duration::from_millis(100)), Ok(()));
    }

    #[test]
    fn no_rate_is_no_limiter_and_the_burst_defaults_to_a_tenth_of_a_second() {
        let start = Instant::now();
        assert!(Limiter::new(&Limits::default(), start).is_none());
        let limits = Limits { ops_per_second: Some(50), ..Limits::default() };
        let mut limiter = Limiter::new(&limits, start).unwrap();
        let let_through = (0..100).filter(|_| limiter.take(4096, start).is_ok()).count();
        assert_eq!(let_through, 5);
    }

    #[test]
    fn faults_name_the_field() {
        let cases = [
            ("bytes_per_second", Limits { bytes_per_second: Some(0), ..Limits::default() }),
            ("burst_bytes", bytes(1, MAX_RATE + 1)),
            ("burst_ops", Limits { burst_ops: Some(1), ..bytes(1, 1) }),
        ];
        for (field, limits) in cases {
            assert_eq!(limit_fault(&limits).map(|f| f.field), Some(field));
        }
        assert_eq!(limit_fault(&bytes(1, MAX_RATE)), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Against the definition: over every span of a random run, at most burst + rate * span and one overdraft.
        #[test]
        fn never_more_than_burst_and_rate_allow(
            rate in 1u64..5_000_000,
            burst in 1u64..100_000,
            work in proptest::collection::vec((0u64..50_000_000, 1u64..20_000), 1..60),
        ) {
            let start = Instant::now();
            let mut limiter = Limiter::new(&bytes(rate, burst), start).unwrap();
            let mut now = start;
            let mut passed: Vec<(Instant, u64)> = Vec::new();
            for (pause_ns, amount) in work {
                now += Duration::from_nanos(pause_ns);
                if limiter.take(amount, now).is_ok() {
                    passed.push((now, amount));
                }
            }
            for (n, (from, _)) in passed.iter().enumerate() {
                let mut sum = 0u128;
                for (to, amount) in &passed[n..] {
                    sum += u128::from(*amount);
                    let span = (*to - *from).as_nanos();
                    let overdraft = u128::from(amount.saturating_sub(burst));
                    let most = u128::from(burst) + span * u128::from(rate) / 1_000_000_000 + overdraft;
                    // One for the fraction of a token that the division above drops.
                    prop_assert!(sum <= most + 1, "{} of {} let through in {} ns", sum, most, span);
                }
            }
        }

        /// Who waits exactly as told goes next time, and in the long run gets the whole rate.
        #[test]
        fn waiting_as_told_reaches_the_rate(rate in 1000u64..10_000_000, burst in 1u64..100_000, amount in 1u64..100_000) {
            let start = Instant::now();
            let mut limiter = Limiter::new(&bytes(rate, burst), start).unwrap();
            let (mut now, mut sum) = (start, 0u128);
            for _ in 0..50 {
                if let Err(at) = limiter.take(amount, now) {
                    prop_assert!(at > now);
                    now = at;
                    prop_assert_eq!(limiter.take(amount, now), Ok(()));
                }
                sum += u128::from(amount);
            }
            let gained = (now - start).as_nanos() * u128::from(rate) / 1_000_000_000;
            prop_assert!(sum + u128::from(amount.max(burst)) >= gained, "{} of {}", sum, gained);
        }
    }
}
