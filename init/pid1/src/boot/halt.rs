//! The very end: nothing runs, everything is written, then the reset.
#![forbid(unsafe_code)]

use super::console::Console;
use super::mounts;
use crate::supervisor::DownKind;
use crate::supervisor::reap::{self, Whose};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Longest wait for killed processes to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Kills what is left, unmounts, closes mapped devices. The hardware watchdog stays armed: if this hangs, it resets.
pub fn quiesce(console: &mut Console) {
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let deadline = Instant::now() + KILL_DEADLINE;
    while Instant::now() < deadline
        && nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) != Err(nix::errno::Errno::ECHILD)
    {
        while let Some((pid, _)) = reap::peek(Whose::Any) {
            reap::reap(pid);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    nix::unistd::sync();
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for at in mounts::of_block_devices(&table) {
        if let Err(errno) = mounts::unmount(&at) {
            console.say(&format!("pid1: unmounting {at}: {errno}"));
        }
    }
    if let Ok(control) = holdfast_dm::Control::open() {
        // The root's own device refuses, being in use; the rest must not.
        for device in control.list().unwrap_or_default() {
            if let Err(error) = control.remove(&device.name)
                && device.name != "slot"
            {
                console.say(&format!("pid1: {error}"));
            }
        }
    }
    nix::unistd::sync();
}

/// Resets or powers off. Does not return: if the kernel refuses, the watchdog is no longer petted.
pub fn end(console: &mut Console, kind: DownKind) -> ! {
    console.say(match kind {
        DownKind::Reboot => "pid1: resetting the machine",
        DownKind::PowerOff => "pid1: powering off",
    });
    console.drain();
    nix::unistd::sync();
    let mode = match kind {
        DownKind::Reboot => RebootMode::RB_AUTOBOOT,
        DownKind::PowerOff => RebootMode::RB_POWER_OFF,
    };
    let Err(errno) = reboot(mode);
    console.say(&format!("pid1: the kernel refuses to end ({errno}); waiting for the watchdog"));
    console.drain();
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}
