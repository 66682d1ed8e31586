//! What the kernel tells about the machine: DMI, memory, processors, clocks, disk space, interface counters.

use holdfast_model::gauges::InterfaceCounters;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Monotonic time since boot, the clock of all deadlines.
#[must_use]
pub fn now() -> Duration {
    let t =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
    Duration::new(u64::try_from(t.tv_sec()).unwrap_or(0), u32::try_from(t.tv_nsec()).unwrap_or(0))
}

/// Unix seconds, or 0 while the clock is plainly not set (before 2025).
#[must_use]
pub fn wall_seconds() -> i64 {
    seconds_of(std::time::SystemTime::now())
}

/// Unix seconds of a time, or 0 when the clock that gave it was plainly not set (before 2025).
#[must_use]
pub fn seconds_of(wall: std::time::SystemTime) -> i64 {
    let seconds =
        wall.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    if seconds < 1_735_689_600 { 0 } else { seconds }
}

/// Unix seconds of the device's boot; 0 while the clock is not known.
#[must_use]
pub fn boot_time_seconds() -> i64 {
    match wall_seconds() {
        0 => 0,
        s => s - i64::try_from(now().as_secs()).unwrap_or(0),
    }
}

/// One line of a small file, trimmed; empty when it cannot be read.
#[must_use]
pub fn line(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// A DMI field (`product_serial`, `sys_vendor`, ...); empty when the firmware gives none.
#[must_use]
pub fn dmi(field: &str) -> String {
    line(Path::new("/sys/class/dmi/id").join(field))
}

/// Total and used bytes of memory; used = total - available.
#[must_use]
pub fn memory() -> (u64, u64) {
    meminfo(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn meminfo(text: &str) -> (u64, u64) {
    let field = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    };
    let total = field("MemTotal:");
    (total, total.saturating_sub(field("MemAvailable:")))
}

/// Logical processors that run.
#[must_use]
pub fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// CPU time of all processors since boot that was not idle, nanoseconds.
#[must_use]
pub fn cpu_total_ns() -> u64 {
    cpu_stat(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

fn cpu_stat(text: &str) -> u64 {
    // user nice system idle iowait irq softirq steal, in hundredths of a second.
    let fields: Vec<u64> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).map(|f| f.parse().unwrap_or(0)).collect();
    let busy: u64 = fields.iter().enumerate().filter(|(n, _)| !matches!(n, 3 | 4) && *n < 8).map(|(_, v)| v).sum();
    busy * 10_000_000
}

/// Total and used bytes of the file system at `path`.
#[must_use]
pub fn storage(path: &Path) -> (u64, u64) {
    match nix::sys::statvfs::statvfs(path) {
        Ok(s) => {
            let unit = s.fragment_size();
            (s.blocks() * unit, (s.blocks() - s.blocks_free()) * unit)
        }
        Err(_) => (0, 0),
    }
}

/// Counters of an interface; zeros when it is not there.
#[must_use]
pub fn counters(interface: &str) -> InterfaceCounters {
    let folder = Path::new("/sys/class/net").join(interface).join("statistics");
    let read = |name: &str| line(folder.join(name)).parse().unwrap_or(0);
    InterfaceCounters {
        rx_bytes: read("rx_bytes"),
        rx_packets: read("rx_packets"),
        rx_drops: read("rx_dropped"),
        rx_errors: read("rx_errors"),
        tx_bytes: read("tx_bytes"),
        tx_packets: read("tx_packets"),
        tx_drops: read("tx_dropped"),
        tx_errors: read("tx_errors"),
    }
}

/// Memory in use and CPU time in nanoseconds of a unit's cgroup.
#[must_use]
pub fn cgroup_usage(folder: &Path) -> (u64, u64) {
    let memory = line(folder.join("memory.current")).parse().unwrap_or(0);
    let cpu = line(folder.join("cpu.stat"))
        .lines()
        .find_map(|l| l.strip_prefix("usage_usec ")?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1000;
    (memory, cpu)
}

/// Resident bytes of a process; 0 when it is gone.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|t| {
            t.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        })
        .unwrap_or(0)
        * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert_eq!(meminfo("MemTotal:        1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n"), (1_024_000, 614_400));
    }

    #[test]
    fn idle_and_iowait_are_not_busy() {
        assert_eq!(cpu_stat("cpu  1 2 3 1000 500 4 5 6 7 8\n"), 21 * 10_000_000);
    }
}
