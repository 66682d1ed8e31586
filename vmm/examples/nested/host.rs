//! PID 1 of the emulated machine: runs the scenarios, and what they need to start VMs and to look at them from outside.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use holdfast_model::contract::vm::{FileRef, JailConfig, VmConfig, default_cmdline};

use crate::cases;
use crate::support::{check, configure, ifreq, mount, power_off};

pub const CONTROL: &str = "/run/control";
pub const DISK: &str = "/run/disk.img";
pub const KERNEL: &str = "/guest-kernel";
pub const INITRD: &str = "/guest-initrd";
pub const GUEST_TIMEOUT: Duration = Duration::from_secs(60);
pub const JAIL: Option<JailConfig> = Some(JailConfig { uid: 1000, gid: 1000, pid_namespace: true });

pub type Outcome = Result<String, String>;

/// One scenario: its name says what is true when it passes. `Ok` carries a note for the log.
pub struct Scenario {
    pub name: &'static str,
    pub run: fn() -> Outcome,
}

/// Names the scenarios that `words` ask for ([`cases::wanted`]), behind the number of the machine they run on.
pub fn list(words: &str) {
    for (machine, name, _) in cases::wanted(words) {
        println!("{machine} {name}");
    }
}

/// The argument that has this program run the scenario named next.
pub const SCENARIO: &str = "--scenario";

/// Runs the scenarios of one subject (of all, when none is given) that are asked for on the command line.
pub fn main() -> ! {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
        mount(kind, target);
    }
    // The firmware has left a line without its end.
    println!();
    let machine = cmdline_word("nested.group=");
    for (number, name, _) in cases::wanted(&cmdline_word("nested.only=")) {
        if machine.is_empty() || number.to_string() == machine {
            let ended = Command::new("/proc/self/exe").args([SCENARIO, &name]).status();
            if !ended.as_ref().is_ok_and(std::process::ExitStatus::success) {
                println!("nested: FAILED {name}: its process ended early: {ended:?}");
            }
            end_all_processes();
        }
    }
    println!("nested: done");
    power_off()
}

/// Runs one scenario, in a process of its own: what a failed one still holds (taps, ports, threads that wait for a guest)
/// goes with that process, and the next one finds none of it.
pub fn play(wanted: &str) {
    let Some((_, name, run)) = cases::wanted(wanted).find(|(_, name, _)| name == wanted) else {
        return println!("nested: FAILED {wanted}: there is no such scenario");
    };
    let started = Instant::now();
    match run() {
        Ok(note) => println!("nested: ok {name} ({:.1} s) {note}", started.elapsed().as_secs_f32()),
        Err(reason) => println!("nested: FAILED {name}: {reason}"),
    }
}

/// Kills every process but this one, and waits until they are gone with all that they held.
fn end_all_processes() {
    // SAFETY: numbers only; the caller is left out, and kernel threads take no signals.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    // SAFETY: no status is asked for.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
}

/// The value of a word of this machine's command line; words may be quoted.
pub fn cmdline_word(name: &str) -> String {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let quoted = line.split('"').find_map(|part| part.strip_prefix(name));
    let plain = line.split_whitespace().find_map(|part| part.strip_prefix(name));
    quoted.or(plain).unwrap_or_default().trim().to_string()
}

/// Prints the value of one run of a figure; `cargo xtask bench vmm` collects them.
pub fn figure(name: &str, value: f64, unit: &str) {
    println!("nested: figure\t{name}\t{value:.3}\t{unit}");
}

/// A VM of the guest kernel with both of our programs, playing `role`.
pub fn config(name: &str, role: &str) -> VmConfig {
    let mut config = VmConfig::new(name, FileRef::Path(KERNEL.into()));
    config.initrd = Some(FileRef::Path(INITRD.into()));
    let words = format!("nested.role={role}");
    config.cmdline = match cmdline_word("nested.guest=") {
        replaced if replaced.contains("console=") => format!("{replaced} {words}"),
        added => format!("{} {words} {added}", default_cmdline()),
    };
    config
}

/// A fresh disk image of 1 MiB whose first sector is known to the guest.
pub fn disk() -> Result<File, String> {
    let mut image = vec![0u8; 1 << 20];
    image[..512].fill(0x5a);
    std::fs::write(DISK, image).map_err(text)?;
    open(DISK, true)
}

pub fn tap(name: &str) -> Result<File, String> {
    tap_at(name, [10, 9, 0, 1])
}

/// A tap whose end on the host has this address in a /24.
pub fn tap_at(name: &str, address: [u8; 4]) -> Result<File, String> {
    let file = open("/dev/net/tun", true)?;
    let mut request = ifreq(name);
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request.data[..2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) }).map_err(text)?;
    configure(name, Ipv4Addr::from(address)).map_err(|e| format!("{name}: {e}"))?;
    Ok(file)
}

/// Lines that a guest prints, as they come.
pub struct Lines(Receiver<String>);

impl Lines {
    pub fn of(reader: impl Read + Send + 'static) -> Self {
        let (sender, lines) = channel();
        let started = Instant::now();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_string();
                println!("{:7.2} guest| {line}", started.elapsed().as_secs_f32());
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }

    /// What is still to come until the writer has ended.
    pub fn rest(&self) -> Vec<String> {
        let deadline = Instant::now() + GUEST_TIMEOUT;
        let next = || self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
        std::iter::from_fn(next).collect()
    }

    /// The rest of the first line that starts with `word`.
    pub fn wait(&self, word: &str) -> Outcome {
        let deadline = Instant::now() + GUEST_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.0.recv_timeout(left).map_err(|_| format!("guest did not say {word:?}"))?;
            if let Some(rest) = line.strip_prefix(word) {
                return Ok(rest.trim().to_string());
            }
        }
    }

    /// Passes over what was said so far.
    pub fn forget(&self) {
        while self.0.try_recv().is_ok() {}
    }

    /// What was said and not waited for, once nobody speaks any more.
    pub fn remaining(&self) -> String {
        let mut all = Vec::new();
        while let Ok(line) = self.0.recv_timeout(Duration::from_millis(500)) {
            all.push(line);
        }
        all.join(" | ")
    }
}

/// Starts `/vmm --config-fd 3` with `files` as descriptors 4 and up.
pub fn spawn_with(config: &VmConfig, files: Vec<OwnedFd>) -> Result<(Child, Lines), String> {
    let (reader, mut writer) = pipe()?;
    writer.write_all(&holdfast_model::contract::write(config).map_err(text)?).map_err(text)?;
    drop(writer);
    let mut sources: Vec<OwnedFd> = vec![reader.into()];
    sources.extend(files);
    // Out of the way of the numbers they will get.
    let moved: Vec<RawFd> = sources
        .iter()
        // SAFETY: duplicates a number.
        .map(|fd| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100) })
        .collect();
    let mut command = Command::new("/vmm");
    command.args(["--config-fd", "3"]);
    let targets = moved.clone();
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for (target, fd) in (3..).zip(&targets) {
                check(libc::dup2(*fd, target))?;
            }
            Ok(())
        })
    };
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("/vmm: {e}"))?;
    for fd in moved {
        // SAFETY: our own duplicates.
        unsafe { libc::close(fd) };
    }
    let stderr = child.stderr.take().ok_or("no stderr")?;
    Ok((child, Lines::of(stderr)))
}

pub fn exit_code(child: &mut Child) -> Result<i32, String> {
    let deadline = Instant::now() + GUEST_TIMEOUT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().map_err(text)? {
            return status.code().ok_or(format!("vmm ended by {status}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    Err("vmm did not end".into())
}

pub fn expect_code(child: &mut Child, code: i32) -> Result<(), String> {
    match exit_code(child)? {
        found if found == code => Ok(()),
        found => Err(format!("exit code {found}, expected {code}")),
    }
}

/// The processes of a VM: the one we started and, in a pid namespace, its child.
pub fn processes(child: &Child) -> Vec<u32> {
    let id = child.id();
    let children = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let child = entry.file_name().to_string_lossy().parse().ok()?;
        // pid (name) state parent ...
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        (parent == id).then_some(child)
    });
    std::iter::once(id).chain(children).collect()
}

/// What a VM may take beyond its guest's RAM, whatever the guest has (docs/design.md §6), KiB.
pub const OVERHEAD_BUDGET_KIB: u64 = 3 * 1024;

/// Proportional memory of the VM's processes beyond guest memory, KiB.
pub fn overhead_kib(child: &Child, guest_bytes: u64) -> u64 {
    let mut sum = 0;
    for id in processes(child) {
        let maps = std::fs::read_to_string(format!("/proc/{id}/smaps")).unwrap_or_default();
        let (mut is_guest, mut kib) = (false, 0);
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            if let Some((Ok(from), Ok(to))) =
                range.map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16)))
            {
                is_guest = to - from >= guest_bytes;
            }
            if let Some(rest) = line.strip_prefix("Pss:")
                && !is_guest
            {
                kib += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
            }
        }
        sum += kib;
    }
    sum
}

pub fn pipe() -> Result<(File, File), String> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }).map_err(text)?;
    // SAFETY: fresh descriptors, owned by nobody else.
    Ok(unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) })
}

pub fn open(path: &str, write: bool) -> Result<File, String> {
    OpenOptions::new().read(true).write(write).open(path).map_err(|e| format!("{path}: {e}"))
}

pub fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}
