//! Each entry of the seccomp table is used, and nothing beside it: VMs under load, every call of every thread recorded.
//!
//! That a VM works behind its filter would be the wrong way to see it: that shows only that the table is large enough.

use std::collections::BTreeSet;
use std::fs;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use holdfast_model::contract::vm::{
    BalloonConfig, ConsoleConfig, DiskConfig, FileRef, JailConfig, NetConfig, SerialConfig, TapRef, VhostRef, VmConfig,
    VsockConfig,
};
use holdfast_vmm::control::ControlClient;
use holdfast_vmm::jail::seccomp::{Allowance, NOT_BY_LOAD, allowances};

use crate::guest::{Role, say};
use crate::host::{
    CONTROL, DISK, GUEST_TIMEOUT, JAIL, Lines, Outcome, Scenario, config, disk, expect_code, open, pipe, processes,
    spawn_with, tap, tap_at, text,
};
use crate::record::{record, text_of};
use crate::script::{Function, Op, Script};
use crate::support::{check, configure, power_off};

pub const SCENARIOS: &[Scenario] =
    &[Scenario { name: "each_entry_of_the_seccomp_table_is_used_and_nothing_else", run: compare }];

pub const ROLES: &[Role] = &[Role { name: "exercise", play: exercise }];

const IMAGE: &str = "/run/filter.elf";
const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

type Calls = Result<Vec<Allowance>, String>;
/// A name and a VM that works and ends.
type Load = (&'static str, fn() -> Calls);
/// A name and what a guest does with a device.
type Use = (&'static str, fn() -> std::io::Result<()>);

fn compare() -> Outcome {
    let loads: [Load; 7] = [
        ("work, control, console input, SIGTERM", whole),
        ("INTx, two vCPUs, no io_uring, no fast clock, deadline", plain),
        ("triple fault", || scripted(11, |script| script.put(Op::Read8, 0xffff_ffff_0000_0000, 0))),
        ("register fault", || {
            scripted(11, |script| {
                let function = Function { number: 1 };
                function.enable(script);
                script.put(Op::Write16, function.bar() + 0x18, 3);
            })
        }),
        ("pending bits, and the way to the BAR through configuration space", || {
            scripted(10, |script| {
                let function = Function { number: 1 };
                function.enable(script);
                // The configuration access capability (virtio 1.3 §4.1.4.9) is the last but one: its length, its data.
                script.push(Op::Write32, function.config() + 0x90, 4).push(Op::Read32, function.config() + 0x94, 0);
                script.push(Op::Read32, function.bar() + 0x5000, 0).reset();
            })
        }),
        ("power off", || {
            scripted(0, |script| {
                script.power_off();
            })
        }),
        ("killed from outside", killed),
    ];
    let mut seen = BTreeSet::new();
    for (name, load) in loads {
        let calls = load().map_err(|e| format!("{name}: {e}"))?;
        println!("filter: {name}: {} kinds of calls", calls.len());
        seen.extend(calls);
    }
    let table: BTreeSet<Allowance> = allowances().into_iter().collect();
    let excused = |a: &Allowance| NOT_BY_LOAD.iter().any(|(call, kinds, _)| a.call == *call && kinds.contains(&a.kind));
    let unused: Vec<_> = table.difference(&seen).filter(|a| !excused(a)).copied().collect();
    let foreign: Vec<_> = seen.difference(&table).copied().collect();
    match (unused.is_empty(), foreign.is_empty()) {
        (true, true) => Ok(format!("{} entries, {} used", table.len(), table.intersection(&seen).count())),
        _ => Err(format!(
            "in the table and never used: [{}]; used and not in the table: [{}]",
            text_of(&unused),
            text_of(&foreign)
        )),
    }
}

/// Records a VM from its start; `with` makes it work and end.
fn recorded(
    config: VmConfig,
    files: Vec<OwnedFd>,
    with: impl FnOnce(&mut std::process::Child, &Lines) -> Result<(), String>,
) -> Calls {
    let waits = config.jail.as_ref().is_some_and(|jail| jail.pid_namespace);
    let ((mut child, errors), recorder) = record(move || spawn_with(&config, files))?;
    let waiter = if waits { child.id() } else { 0 };
    let result = with(&mut child, &errors).map_err(|e| format!("{e}; vmm: {}", errors.remaining()));
    let _ = child.kill();
    let _ = child.wait();
    let calls = recorder.finish(waiter);
    result.and(calls)
}

/// Every device in its usual form, at work.
fn whole() -> Calls {
    let (output, output_end) = pipe()?;
    let (input, mut typed) = pipe()?;
    let serial = pipe()?;
    let mut config = config("whole", "exercise");
    config.cmdline = config.cmdline.replace("8250.nr_uarts=0 ", "");
    config.jail = JAIL;
    disk()?;
    config.disks = vec![DiskConfig::new("data", FileRef::Path(DISK.into()))];
    let mut kernel = NetConfig::new("02:00:00:00:03:01".parse().map_err(text)?, TapRef::Fd(4));
    kernel.vhost = Some(VhostRef::Fd(5));
    let user = NetConfig::new("02:00:00:00:03:02".parse().map_err(text)?, TapRef::Fd(6));
    config.nets = vec![kernel, user];
    let mut console = ConsoleConfig::to(FileRef::Fd(7));
    console.input = Some(FileRef::Fd(8));
    config.console = Some(console);
    config.serial = Some(SerialConfig::to(FileRef::Fd(9)));
    config.control = Some(FileRef::Path(CONTROL.into()));
    config.vsock = Some(VsockConfig { cid: 40, vhost: FileRef::Fd(10) });
    config.balloon = Some(BalloonConfig::default());
    let files: Vec<OwnedFd> = vec![
        tap("tap0")?.into(),
        open("/dev/vhost-net", true)?.into(),
        tap_at("tap1", [10, 9, 1, 1])?.into(),
        output_end.into(),
        input.into(),
        serial.1.into(),
        open("/dev/vhost-vsock", true)?.into(),
    ];
    let (lines, _serial) = (Lines::of(output), Lines::of(serial.0));
    recorded(config, files, |child, _| {
        work(&lines)?;
        typed.write_all(b"typed\n").map_err(text)?;
        lines.wait("guest: heard typed")?;
        let mut client = ControlClient::connect(CONTROL).map_err(text)?;
        for _ in 0..2 {
            client.pause().and_then(|()| client.resume()).map_err(text)?;
        }
        let (mut stream, ..) = client.attach(Some("console"), true).map_err(text)?;
        stream.read_exact(&mut [0]).map_err(text)?;
        drop(stream);
        client.vsock_cid(41).and_then(|()| client.balloon(8)).map_err(text)?;
        // The guest hands over a few pages at a time.
        let deadline = Instant::now() + GUEST_TIMEOUT;
        while client
            .stats()
            .map_err(text)?
            .devices
            .iter()
            .all(|(name, stats)| name != "balloon" || stats.out_bytes == 0)
        {
            if Instant::now() > deadline {
                return Err("the balloon does not grow".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(client);
        // SAFETY: our own child.
        check(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }).map_err(text)?;
        lines.wait("guest: button")?;
        expect_code(child, 0)
    })
}

/// The slower ways: an interrupt line, plain reads and writes, a clock that the vDSO cannot read.
fn plain() -> Calls {
    let clock = fs::read_to_string(CLOCK).map_err(|e| format!("{CLOCK}: {e}"))?;
    fs::write("/proc/sys/kernel/io_uring_disabled", "2").map_err(|e| format!("io_uring_disabled: {e}"))?;
    let slow = ["hpet", "acpi_pm"].iter().find(|name| fs::write(CLOCK, name).is_ok()).ok_or("no slow clock")?;
    let result = plain_load().map_err(|e| format!("with clock {slow}: {e}"));
    fs::write(CLOCK, clock.trim()).map_err(|e| format!("{CLOCK}: {e}"))?;
    fs::write("/proc/sys/kernel/io_uring_disabled", "0").map_err(text)?;
    result
}

fn plain_load() -> Calls {
    let (output, output_end) = pipe()?;
    let mut config = config("plain", "exercise");
    config.cmdline.push_str(" pci=nomsi");
    config.vcpus = 2;
    config.jail = Some(JailConfig { uid: 1000, gid: 1000, pid_namespace: false });
    disk()?;
    config.disks = vec![DiskConfig::new("data", FileRef::Path(DISK.into()))];
    let mut kernel = NetConfig::new("02:00:00:00:03:01".parse().map_err(text)?, TapRef::Fd(4));
    kernel.vhost = Some(VhostRef::Fd(5));
    let mut user = NetConfig::new("02:00:00:00:03:02".parse().map_err(text)?, TapRef::Fds(vec![6, 8]));
    user.queue_pairs = 2;
    config.nets = vec![kernel, user];
    config.console = Some(ConsoleConfig::to(FileRef::Fd(7)));
    config.control = Some(FileRef::Path(CONTROL.into()));
    // A tap with a queue for each pair.
    holdfast_links::tap::create("tap-pairs", 1000, true).map_err(text)?;
    configure("tap-pairs", Ipv4Addr::new(10, 9, 1, 1)).map_err(text)?;
    let mut pairs = holdfast_links::tap::attach("tap-pairs", 2).map_err(text)?.into_iter();
    let mut pair = || pairs.next().ok_or("a tap without its queues");
    let files: Vec<OwnedFd> =
        vec![tap("tap0")?.into(), open("/dev/vhost-net", true)?.into(), pair()?, output_end.into(), pair()?];
    let lines = Lines::of(output);
    recorded(config, files, |child, _| {
        work(&lines)?;
        // Sooner than any guest powers itself off.
        ControlClient::connect(CONTROL).and_then(|mut c| c.stop(Duration::from_millis(1))).map_err(text)?;
        expect_code(child, 12)
    })
}

/// Answers the guest on both networks until it has done everything.
fn work(lines: &Lines) -> Result<(), String> {
    let listener = TcpListener::bind("0.0.0.0:7000").map_err(text)?;
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept()?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            stream.write_all(&all)?;
        }
        Ok(())
    });
    lines.wait("guest: exercised")?;
    // Both connections were answered, else the guest would not have said so.
    server.join().map_err(|_| "the server panicked".to_string())?.map_err(text)
}

/// A guest without a kernel that is expected to end with `code`.
fn scripted(code: i32, write: fn(&mut Script)) -> Calls {
    let mut script = Script::default();
    write(&mut script);
    script.push(Op::Halt, 0, 0).save(IMAGE)?;
    let mut config = VmConfig::new("scripted", FileRef::Path(IMAGE.into()));
    (config.memory_mib, config.jail) = (32, JAIL);
    recorded(config, vec![], |child, _| expect_code(child, code))
}

/// The VM is killed under its waiting parent, which says so.
fn killed() -> Calls {
    Script::default().push(Op::Halt, 0, 0).save(IMAGE)?;
    let mut config = VmConfig::new("killed", FileRef::Path(IMAGE.into()));
    (config.memory_mib, config.jail, config.control) = (32, JAIL, Some(FileRef::Path(CONTROL.into())));
    recorded(config, vec![], |child, errors| {
        // It answers, so its filters are closed.
        let mut answered = Err(String::new());
        for _ in 0..200 {
            answered = ControlClient::connect(CONTROL).and_then(|mut c| c.ping()).map_err(text);
            if answered.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        answered?;
        let [_, inner] = processes(child)[..] else { return Err("expected two processes".into()) };
        // SAFETY: a process of ours.
        check(unsafe { libc::kill(inner as i32, libc::SIGKILL) }).map_err(text)?;
        errors.wait("vmm: ended by signal 9")?;
        expect_code(child, 25)
    })
}

/// Uses every device, resets and uses them again, and says so.
fn exercise() {
    let mut failed = Vec::new();
    for pass in ["first", "second"] {
        let uses: [Use; 3] = [("disk", use_disk), ("rng", use_rng), ("net", use_nets)];
        for (what, go) in uses {
            say(&format!("{pass} use of {what}"));
            failed.extend(go().err().map(|e| format!("{pass} {what}: {e}")));
        }
        if pass == "first" {
            failed.extend(reset_devices().err().map(|e| format!("reset: {e}")));
        }
    }
    if let Ok(mut serial) = OpenOptions::new().write(true).open("/dev/ttyS0") {
        let _ = serial.write_all(b"serial\n");
    }
    if !failed.is_empty() {
        say(&format!("FAILED {failed:?}"));
    }
    std::thread::spawn(|| {
        let mut line = String::new();
        let console = OpenOptions::new().read(true).open("/dev/hvc0").map(std::io::BufReader::new);
        if console.is_ok_and(|mut c| std::io::BufRead::read_line(&mut c, &mut line).is_ok()) {
            say(&format!("heard {}", line.trim()));
        }
    });
    super::whole::wait_for_button(if failed.is_empty() { "exercised" } else { "of no use" });
    power_off();
}

fn use_disk() -> std::io::Result<()> {
    let disk = OpenOptions::new().read(true).write(true).open("/dev/vda")?;
    disk.write_all_at(&[0x77; 8192], 65_536)?;
    disk.sync_all()?;
    let mut back = [0; 8192];
    disk.read_exact_at(&mut back, 65_536)?;
    if back != [0x77; 8192] {
        return Err(std::io::Error::other("reads what was not written"));
    }
    // BLKDISCARD and BLKZEROOUT (linux/fs.h) of the same bytes.
    for request in [0x1277, 0x127f] {
        let range = [65_536u64, 8192];
        // SAFETY: the kernel reads two numbers.
        check(unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&disk), request, &range) })?;
    }
    Ok(())
}

fn use_rng() -> std::io::Result<()> {
    let mut bytes = [0; 64];
    fs::File::open("/dev/hwrng")?.read_exact(&mut bytes)
}

fn use_nets() -> std::io::Result<()> {
    for (card, address, host) in [("eth0", [10, 9, 0, 2], "10.9.0.1:7000"), ("eth1", [10, 9, 1, 2], "10.9.1.1:7000")] {
        configure(card, Ipv4Addr::from(address))?;
        // The second pass shows that the card works again by its link alone: the server has answered all it will.
        if fs::metadata("/run-second").is_ok() {
            continue;
        }
        let mut stream =
            TcpStream::connect_timeout(&host.parse().map_err(std::io::Error::other)?, Duration::from_secs(20))?;
        stream.write_all(&vec![3; 1 << 18])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        if back.len() != 1 << 18 {
            return Err(std::io::Error::other(format!("{card}: {} bytes came back", back.len())));
        }
    }
    fs::write("/run-second", "")
}

/// Takes the drivers from all devices but the console, and gives them back: each device is reset and brought up again.
fn reset_devices() -> std::io::Result<()> {
    for entry in fs::read_dir("/sys/bus/virtio/devices")?.flatten() {
        let name = entry.file_name();
        let driver = fs::read_link(entry.path().join("driver"))?;
        let driver = format!("/sys/bus/virtio/drivers/{}", driver.file_name().unwrap_or_default().to_string_lossy());
        if driver.ends_with("console") {
            continue;
        }
        say(&format!("resets {}", name.to_string_lossy()));
        fs::write(format!("{driver}/unbind"), name.as_encoded_bytes())?;
        fs::write(format!("{driver}/bind"), name.as_encoded_bytes())?;
    }
    Ok(())
}
