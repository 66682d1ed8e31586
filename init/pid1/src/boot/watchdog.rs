//! The hardware watchdogs: opened before anything can hang, petted by the supervisor, never closed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;

/// The machine resets this long after the last sign of life.
pub const TIMEOUT_SECONDS: i32 = 60;

/// `_IOWR('W', 6, int)` of linux/watchdog.h.
const WDIOC_SETTIMEOUT: libc::c_ulong = 0xC004_5706;

/// All watchdogs of this machine, armed.
#[derive(Debug, Default)]
pub struct Watchdogs {
    devices: Vec<File>,
    names: Vec<String>,
}

impl Watchdogs {
    /// Opens and arms each `/dev/watchdogN`.
    pub fn arm() -> Watchdogs {
        let mut dogs = Watchdogs::default();
        for number in 0..8 {
            let Ok(device) = OpenOptions::new().write(true).open(format!("/dev/watchdog{number}")) else {
                continue;
            };
            let mut timeout = TIMEOUT_SECONDS;
            // SAFETY: the request reads and writes one int, which lives across the call. A device with a fixed timeout
            // refuses, and keeps its own.
            unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_SETTIMEOUT, &mut timeout) };
            dogs.devices.push(device);
        }
        dogs
    }

    /// Reads the names once sysfs is there.
    pub fn learn_names(&mut self) {
        self.names = (0..8)
            .filter_map(|n| fs::read_to_string(format!("/sys/class/watchdog/watchdog{n}/identity")).ok())
            .map(|name| name.trim().to_owned())
            .collect();
    }

    /// Their names, joined; empty when there is none.
    pub fn name(&self) -> String {
        match (self.devices.len(), self.names.as_slice()) {
            (0, _) => String::new(),
            (_, []) => "unnamed".into(),
            (_, names) => names.join(", "),
        }
    }

    /// Starts their time anew.
    pub fn pet(&mut self) {
        for device in &mut self.devices {
            // Any byte but 'V', which would mean that the device may be closed.
            let _ = device.write_all(b"\0");
        }
    }
}
