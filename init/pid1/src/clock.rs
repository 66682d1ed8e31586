//! `CLOCK_MONOTONIC`, the only clock of the supervisor.
#![forbid(unsafe_code)]

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the kernel started (not counting suspend).
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or((0, 0), |t| (t.tv_sec(), t.tv_nsec()));
    now.0.unsigned_abs() * 1000 + now.1.unsigned_abs() / 1_000_000
}
