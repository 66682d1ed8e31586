//! The firmware's and kernel's log of what was measured, as the controller wants it: raw.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read as _;

/// Where securityfs shows it.
pub const EVENT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// Logs of real machines are 3 KiB to some hundred KiB.
const EVENT_LOG_MAX: u64 = 4 << 20;

/// The TCG binary event log (crypto-agile format, TCG PC Client Platform Firmware Profile §10); `None` when there is none.
pub fn read() -> Option<Vec<u8>> {
    let mut log = Vec::new();
    File::open(EVENT_LOG).ok()?.take(EVENT_LOG_MAX).read_to_end(&mut log).ok()?;
    (!log.is_empty()).then_some(log)
}
