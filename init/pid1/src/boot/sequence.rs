//! The order of the boot. Each step leaves a line with its time on the console; a step that fails either goes on with
//! less and says so (no TPM, no watchdog, no SITE) or gives the slot up, with the reason in STATE.
#![forbid(unsafe_code)]

use super::cmdline::Cmdline;
use super::console::Console;
use super::disk::{self, Disk};
use super::power::PowerButton;
use super::slot::{self, Open};
use super::state::{Begin, State, StateError, Way};
use super::tpm::Tpm;
use super::watchdog::Watchdogs;
use super::{crash, facts, halt, mounts};
use crate::supervisor::{Cause, Down, DownKind, Platform};
use holdfast_format::pcr::{PCR_SITE, PCR_UKI, phase};
use holdfast_format::site;
use holdfast_model::boot::{BootFacts, Partitions};
use holdfast_model::observed::BootReason;
use holdfast_model::slot::Slot;
use holdfast_slots::efivars::{EFIVARS, EfiVars, GLOBAL};
use holdfast_slots::firmware::EfiBoot;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a machine that can boot nothing shows why before it tries again.
const NOTHING_BOOTS_DELAY: Duration = Duration::from_secs(60);

/// The booted machine.
#[derive(Debug)]
pub struct Machine {
    console: Console,
    watchdogs: Watchdogs,
    tpm: Tpm,
    state: Option<State>,
    slot: Option<Open>,
    running: Option<Slot>,
    button: Option<PowerButton>,
    warnings: Vec<String>,
}

/// Boots to the point where `node` can be started. Comes back only with everything in place.
pub fn boot() -> Machine {
    let mut machine = earliest();
    machine.measure(PCR_UKI, phase::ENTER_PID1, phase::ENTER_PID1.as_bytes());
    machine.console.stage("measured", if machine.tpm.is_there() { "enter-pid1 into PCR 11" } else { "no TPM" });

    match facts::prepare() {
        Ok(missing) if missing.is_empty() => {}
        Ok(missing) => machine.warn(format!("the UKI carries no {}: the vault cannot be opened", missing.join(", "))),
        Err(error) => machine.give_up(&format!("{}: {error}", facts::DIR)),
    }
    let cmdline = match Cmdline::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default()) {
        Ok(cmdline) => cmdline,
        Err(error) => machine.give_up(&error.to_string()),
    };
    let disk = machine.find_disk();
    let parts = disk.partitions.clone();
    let loaded = EfiBoot::new(disk.table()).ok().and_then(|firmware| firmware.running());
    let running = match slot::running(loaded, &parts, &cmdline) {
        Ok(slot) => slot,
        Err(error) => machine.give_up(&error.to_string()),
    };
    let begin = machine.read_state(&disk, running, &cmdline);
    machine.read_site(&parts);
    machine.open_slot(running, &parts, &cmdline);
    machine.enter_slot();
    machine.button = PowerButton::find();
    machine.write_facts(running, &cmdline, parts, begin);
    machine
}

/// Devices, watchdog, console, mounts: what must work before anything can be said.
fn earliest() -> Machine {
    let devices = mounts::devices();
    let watchdogs = Watchdogs::arm();
    crash::install();
    let mut machine = Machine {
        console: Console::open(),
        watchdogs,
        tpm: Tpm::open(),
        state: None,
        slot: None,
        running: None,
        button: None,
        warnings: Vec::new(),
    };
    match devices.and_then(|()| mounts::all()) {
        Ok(absent) => {
            machine.console = Console::open();
            let detail = if absent.is_empty() { String::new() } else { format!("without {}", absent.join(", ")) };
            machine.console.stage("mounted", &detail);
        }
        Err(error) => machine.give_up(&error.to_string()),
    }
    machine.watchdogs.learn_names();
    let dog = machine.watchdogs.name();
    machine.console.stage("watchdog", if dog.is_empty() { "none" } else { &dog });
    // Lines of ours in the kernel log must not be dropped just when there are many; ctrl-alt-del comes as SIGINT.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    let _ = nix::sys::reboot::set_cad_enabled(false);
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 65536, 65536);
    machine
}

impl Machine {
    fn warn(&mut self, text: String) {
        self.console.say(&format!("pid1: warning: {text}"));
        self.warnings.push(text);
    }

    fn measure(&mut self, pcr: u32, what: &str, data: &[u8]) {
        if let Err(error) = self.tpm.measure(pcr, what, data) {
            self.warn(format!("{error}; going on without measurements"));
        }
    }

    fn find_disk(&mut self) -> Disk {
        let mut disk: Disk = match disk::find() {
            Ok(disk) => disk,
            Err(error) => self.give_up(&error.to_string()),
        };
        self.console.stage("disk", &disk.partitions.disk);
        if !disk.others.is_empty() {
            self.warn(format!("{} also carry the Holdfast layout and are not used", disk.others.join(", ")));
        }
        match disk.mend() {
            Ok(Some(done)) => self.console.say(&format!("pid1: {}: {done}", disk.partitions.disk)),
            Ok(None) => {}
            Err(error) => self.warn(format!("{}: partition table: {error}", disk.partitions.disk)),
        }
        crash::remember_state(&disk.partitions.state);
        disk
    }

    /// Records this boot and obeys what the slots' rules decide.
    fn read_state(&mut self, disk: &Disk, running: Slot, cmdline: &Cmdline) -> Begin {
        let kernel_log = take_pstore(Path::new("/sys/fs/pstore"));
        let opened = State::open(Path::new(&disk.partitions.state), Some(disk.table()))
            .and_then(|mut state| Ok((state.begin(running, cmdline, &kernel_log)?, state)));
        let begin = match opened {
            Ok((begin, state)) => {
                self.state = Some(state);
                begin
            }
            Err(error) => {
                self.warn(format!("{error}; booting without a record"));
                Begin::default()
            }
        };
        if let Some(reason) = &begin.leave {
            self.console.say(&format!("pid1: leaving slot {running}: {reason}"));
            halt::end(&mut self.console, DownKind::Reboot);
        }
        for note in &begin.notes {
            self.warn(note.clone());
        }
        for (what, text) in [("last boot", &begin.previous_end), ("fallback", &begin.fallback_reason)] {
            if !text.is_empty() {
                self.console.say(&format!("pid1: {what}: {text}"));
            }
        }
        let kind = if begin.trial { ", on trial" } else { "" };
        let detail = format!("slot {running}, version {}{kind}, boot {}", cmdline.version, begin.boot_count);
        self.console.stage("state", &detail);
        begin
    }

    fn read_site(&mut self, parts: &Partitions) {
        let found = File::open(&parts.site).map_err(site::SiteError::from).and_then(|partition| site::read(&partition));
        match found {
            Ok(Some(found)) => {
                self.measure(PCR_SITE, "site", &found.document);
                if let Err(error) = facts::write_site(&found.document) {
                    self.warn(format!("{}/site.json: {error}", facts::DIR));
                }
                self.console.stage("site", &format!("controller {}", found.site.server));
            }
            Ok(None) => self.warn("SITE is empty: this machine knows no controller".into()),
            Err(error) => self.warn(error.to_string()),
        }
    }

    fn open_slot(&mut self, running: Slot, parts: &Partitions, cmdline: &Cmdline) {
        let begin = Instant::now();
        let opened = slot::open(running, parts, cmdline).and_then(|open| match open.verify_all(cmdline.root.blocks) {
            Ok(()) => Ok(open),
            Err(error) => {
                open.close();
                Err(error)
            }
        });
        match opened.and_then(|open| open.mount().map(|()| open)) {
            Ok(open) => (self.slot, self.running) = (Some(open), Some(running)),
            Err(error) => self.slot_failed(running, &error.to_string()),
        }
        let mib = (cmdline.root.blocks * 4096) >> 20;
        self.console.stage("verified", &format!("OS-{running}, {mib} MiB in {} ms", begin.elapsed().as_millis()));
    }

    fn enter_slot(&mut self) {
        if let Err(error) = mounts::move_to(slot::MOUNT_POINT) {
            self.give_up(&error.to_string());
        }
        self.console.stage("root", "the slot is the root");
    }

    fn write_facts(&mut self, running: Slot, cmdline: &Cmdline, partitions: Partitions, begin: Begin) {
        let variable = EfiVars::new(Path::new(EFIVARS)).read("SecureBoot", GLOBAL);
        let secure_boot = variable.is_ok_and(|value| value.as_deref() == Some(&[1]));
        let facts = BootFacts {
            slot: running,
            version: cmdline.version.clone(),
            epoch: cmdline.epoch,
            boot_count: begin.boot_count,
            partitions,
            tpm: self.tpm.is_there(),
            secure_boot,
            watchdog: self.watchdogs.name(),
            stages: self.console.stages().to_vec(),
            measurements: self.tpm.measurements().to_vec(),
            previous_end: begin.previous_end,
            previous_reason: begin.previous_reason,
            fallback_reason: begin.fallback_reason,
            warnings: self.warnings.clone(),
        };
        if let Err(error) = facts::write_facts(&facts) {
            self.give_up(&format!("{}/facts.json: {error}", facts::DIR));
        }
    }

    /// The running slot is unusable: on to the other one if the rules allow, else wait and try again.
    fn slot_failed(&mut self, running: Slot, reason: &str) -> ! {
        match self.state.as_mut().map(|state| state.slot_broken(running, reason)) {
            Some(Ok(Way::Other { text, patiently })) => {
                self.console.say(&format!("pid1: {text}"));
                if patiently {
                    self.console.say("pid1: both slots have failed several times in a row");
                    self.wait_before_reset();
                }
                halt::end(&mut self.console, DownKind::Reboot)
            }
            Some(Ok(Way::Nowhere(why))) => self.give_up(&format!("{reason}; {why}")),
            Some(Err(error)) => self.give_up(&format!("{reason}; no way to the other slot: {error}")),
            None => self.give_up(reason),
        }
    }

    /// Nothing more can be tried in this boot: shows why, then resets, because disks and cables do come back.
    fn give_up(&mut self, reason: &str) -> ! {
        self.console.say(&format!("pid1: cannot boot: {reason}"));
        self.record(|state| state.end(BootReason::Fatal, reason));
        self.wait_before_reset();
        halt::end(&mut self.console, DownKind::Reboot)
    }

    fn wait_before_reset(&mut self) {
        self.console.say(&format!("pid1: trying again in {} s", NOTHING_BOOTS_DELAY.as_secs()));
        let end = Instant::now() + NOTHING_BOOTS_DELAY;
        while Instant::now() < end {
            self.watchdogs.pet();
            self.console.flush();
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Writes to STATE if there is one; a failure is shown and stops nothing.
    fn record(&mut self, write: impl FnOnce(&mut State) -> Result<(), StateError>) {
        if let Some(Err(error)) = self.state.as_mut().map(write) {
            self.console.say(&format!("pid1: {error}"));
        }
    }

    /// Shows a line.
    pub fn say_line(&mut self, text: &str) {
        self.console.say(text);
    }

    /// After the supervisor has stopped every unit.
    pub fn end(mut self, down: &Down) -> ! {
        halt::quiesce(&mut self.console);
        halt::end(&mut self.console, down.kind)
    }
}

impl Platform for Machine {
    fn pet_watchdog(&mut self) {
        self.watchdogs.pet();
    }

    fn fault(&mut self) -> Option<String> {
        let fault = self.slot.as_ref()?.fault()?;
        // Told once: from here on the machine goes down.
        self.slot = None;
        if let (Some(state), Some(slot)) = (self.state.as_mut(), self.running)
            && let Err(error) = state.slot_broken(slot, &fault)
        {
            self.console.say(&format!("pid1: {error}"));
        }
        Some(fault)
    }

    fn going_down(&mut self, down: &Down) {
        let reason = match down.cause {
            Cause::Order => BootReason::RebootCommand,
            Cause::NoHeartbeat => BootReason::Watchdog,
            Cause::Fault => BootReason::Fatal,
        };
        self.record(|state| state.end(reason, &down.reason));
    }

    fn say(&mut self, text: &str) {
        self.console.say(text);
    }

    fn console(&self) -> Option<BorrowedFd<'_>> {
        self.console.waiting()
    }

    fn console_ready(&mut self) {
        self.console.flush();
    }

    fn kernel_log_tail(&mut self, max_bytes: usize) -> String {
        crate::kernel_log::tail(max_bytes)
    }

    fn power_button(&self) -> Option<BorrowedFd<'_>> {
        self.button.as_ref().map(AsFd::as_fd)
    }

    fn power_pressed(&mut self) -> bool {
        self.button.as_mut().is_some_and(PowerButton::pressed)
    }
}

/// What the previous kernel left when it died; taken out, because the place is small and holds one death only.
fn take_pstore(dir: &Path) -> String {
    let mut names: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    names.sort();
    let mut log = String::new();
    for path in names {
        if let Ok(data) = fs::read(&path) {
            if log.len() < 64 * 1024 {
                log.push_str(&String::from_utf8_lossy(&data));
                log.push('\n');
            }
            let _ = fs::remove_file(&path);
        }
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pstore_is_read_in_order_and_emptied() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("dmesg-efi-2"), "second").unwrap();
        fs::write(dir.path().join("dmesg-efi-1"), "first").unwrap();
        assert_eq!(take_pstore(dir.path()), "first\nsecond\n");
        assert_eq!(take_pstore(dir.path()), "");
        assert_eq!(take_pstore(Path::new("/does/not/exist")), "");
    }
}
