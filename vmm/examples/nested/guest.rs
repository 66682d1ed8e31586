//! PID 1 of the guest: plays the role that the command line names.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::cases;
use crate::support::mount;

/// What a guest does after its start; when it returns, the guest sleeps for ever.
pub struct Role {
    pub name: &'static str,
    pub play: fn(),
}

pub fn main() -> ! {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, target);
    }
    say("init");
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let wanted = cmdline.split_whitespace().find_map(|w| w.strip_prefix("nested.role=")).unwrap_or_default();
    match cases::ROLES.iter().copied().flatten().find(|role| role.name == wanted) {
        Some(role) => (role.play)(),
        None => say(&format!("no role {wanted:?}")),
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Prints a line that the host waits for.
pub fn say(line: &str) {
    static CONSOLE: Mutex<Option<File>> = Mutex::new(None);
    let mut console = CONSOLE.lock().unwrap_or_else(PoisonError::into_inner);
    if console.is_none() {
        *console = OpenOptions::new().write(true).open("/dev/hvc0").ok();
    }
    if let Some(console) = console.as_mut() {
        let _ = writeln!(console, "guest: {line}");
    }
}

/// A device's BAR 0, mapped.
pub struct Registers(*mut u8);

impl Registers {
    /// Writes a 16-bit register.
    pub fn write(&self, offset: usize, value: u16) {
        // SAFETY: within the mapping, aligned; device registers have no other owner that we respect here.
        unsafe { self.0.add(offset).cast::<u16>().write_volatile(value) }
    }

    /// Writes an 8-bit register.
    pub fn write_u8(&self, offset: usize, value: u8) {
        // SAFETY: as above.
        unsafe { self.0.add(offset).write_volatile(value) }
    }

    /// Writes a 32-bit register.
    pub fn write_u32(&self, offset: usize, value: u32) {
        // SAFETY: as above.
        unsafe { self.0.add(offset).cast::<u32>().write_volatile(value) }
    }
}

/// Hands the registers of each PCI device with this id to `with`.
pub fn registers(id: &str, with: impl Fn(Registers)) {
    for entry in std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten() {
        let device = std::fs::read_to_string(entry.path().join("device")).unwrap_or_default();
        if device.trim() != id {
            continue;
        }
        let path = entry.path().join("resource0");
        let Ok(bar) = OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open(path) else {
            continue;
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping of the device's registers.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), 0x8000, protection, libc::MAP_SHARED, bar.as_raw_fd(), 0) };
        if map != libc::MAP_FAILED {
            with(Registers(map.cast()));
        }
    }
}
