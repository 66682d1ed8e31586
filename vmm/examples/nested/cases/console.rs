//! Consoles seen from both sides: ports with names, clients that come late, input, floods, and what a pause does to them.
//!
//! The wrong way to see input would be the terminal's echo: what counts is what a program in the guest has read.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_model::contract::vm::RunState;
use holdfast_model::contract::vm::WindowSize;
use holdfast_model::contract::vm::{ConsoleConfig, FileRef, PortConfig, SerialConfig};
use holdfast_vmm::control::ControlClient;

use crate::guest::{Role, say};
use crate::host::{
    CONTROL, GUEST_TIMEOUT, JAIL, Lines, Outcome, Scenario, config, expect_code, pipe, processes, spawn_with, text,
};
use crate::script::{Function, Op, Script};
use crate::support::{check, power_off};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "console_ports_echo_and_late_clients_see_what_was_and_type", run: ports },
    Scenario { name: "console_flood_that_nobody_reads_stalls_nothing", run: flood },
    Scenario { name: "console_on_the_serial_port_takes_input", run: serial },
    Scenario { name: "console_and_vcpus_stand_still_while_paused", run: paused },
    Scenario { name: "console_emergency_writes_come_out_without_a_driver", run: emergency },
];

pub const ROLES: &[Role] = &[Role { name: "console", play: obey_console }, Role { name: "serial", play: obey_serial }];

const PORT: &str = "org.example.echo";

/// A jailed VM with a console whose output goes to the reader that is returned, and the port [`PORT`] behind a socket.
fn start(role: &str) -> Result<(Child, Lines, File, UnixStream), String> {
    let (reader, writer) = pipe()?;
    let (ours, theirs) = UnixStream::pair().map_err(text)?;
    let mut config = config("console", role);
    config.jail = JAIL;
    config.control = Some(FileRef::Path(CONTROL.into()));
    let mut console = ConsoleConfig::to(FileRef::Fd(4));
    let (named, bare) = (FileRef::Fd(5), PortConfig { name: "bare".into(), output: None, input: None });
    console.ports = vec![bare, PortConfig { name: PORT.into(), output: Some(named.clone()), input: Some(named) }];
    config.console = Some(console);
    let (child, errors) = spawn_with(&config, vec![writer.into(), OwnedFd::from(theirs)])?;
    ours.set_read_timeout(Some(GUEST_TIMEOUT)).map_err(text)?;
    Ok((child, errors, reader, ours))
}

fn client() -> Result<ControlClient, String> {
    ControlClient::connect(CONTROL).map_err(text)
}

/// A stream to a console, as a writer and the lines that come.
fn attach(name: &str, replay: bool) -> Result<(UnixStream, Lines), String> {
    let (stream, found, _) = client()?.attach(Some(name), replay).map_err(text)?;
    if found != name {
        return Err(format!("attached to {found}, wanted {name}"));
    }
    let lines = Lines::of(stream.try_clone().map_err(text)?);
    Ok((stream, lines))
}

fn type_in(mut stream: impl Write, line: &str) -> Result<(), String> {
    writeln!(stream, "{line}").map_err(text)
}

fn ports() -> Outcome {
    let (mut child, _errors, reader, mut port) = start("console")?;
    let lines = Lines::of(reader);
    lines.wait("guest: obeying")?;

    // The port, both ways.
    port.write_all(b"hello port").map_err(text)?;
    let mut got = [0; 10];
    port.read_exact(&mut got).map_err(|e| format!("no echo from the port: {e}"))?;
    if &got != b"HELLO PORT" {
        return Err(format!("port said {:?}", String::from_utf8_lossy(&got)));
    }

    // Late: first what was, then what comes; what is typed reaches a program.
    let (stream, late) = attach("console", true)?;
    late.wait("guest: obeying")?;
    type_in(&stream, "knock")?;
    late.wait("guest: read knock")?;
    lines.wait("guest: read knock")?;

    // Another one at the same time, without the past.
    let (second, beside) = attach("console", false)?;
    type_in(&second, "twice")?;
    for each in [&lines, &late, &beside] {
        each.wait("guest: read twice")?;
    }

    // The window's size, at first and after a change.
    type_in(&second, "size")?;
    let before = lines.wait("guest: size")?;
    client()?.resize(None, WindowSize { columns: 100, rows: 40 }).map_err(text)?;
    let deadline = Instant::now() + GUEST_TIMEOUT;
    let mut after = before.clone();
    while after == before && Instant::now() < deadline {
        type_in(&second, "size")?;
        after = lines.wait("guest: size")?;
    }
    if (before.as_str(), after.as_str()) != ("80x24", "100x40") {
        return Err(format!("window sizes are {before} and {after}, expected 80x24 and 100x40"));
    }
    for stream in [second, stream] {
        stream.shutdown(Shutdown::Both).map_err(text)?;
    }

    // Our own program as the client, its input a pipe.
    let vmm = |words: &[&str]| {
        let mut command = Command::new("/vmm");
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(|e| format!("/vmm: {e}"))
    };
    let mut attached = vmm(&["--attach", CONTROL, "--no-replay"])?;
    type_in(attached.stdin.as_mut().ok_or("no stdin")?, "program")?;
    Lines::of(attached.stdout.take().ok_or("no stdout")?).wait("guest: read program")?;
    // SAFETY: our own child.
    check(unsafe { libc::kill(attached.id() as i32, libc::SIGTERM) }).map_err(text)?;
    expect_code(&mut attached, 12)?;
    let stats = vmm(&["--control", CONTROL, "stats"])?.wait_with_output().map_err(text)?;
    let table = String::from_utf8_lossy(&stats.stdout).into_owned();
    if !["vCPU", "console", PORT, "bare"].iter().all(|word| table.contains(word)) {
        return Err(format!("--control stats printed {table:?}"));
    }

    // Coming and going leaves nothing behind.
    let inner = *processes(&child).last().ok_or("no process")?;
    let fds = || std::fs::read_dir(format!("/proc/{inner}/fd")).map_or(0, Iterator::count);
    let mut control = client()?;
    let deadline = Instant::now() + GUEST_TIMEOUT;
    while control.stats().map_err(text)?.consoles.iter().any(|(_, console)| console.attached > 0) {
        if Instant::now() > deadline {
            return Err("clients that have gone are still attached".into());
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let before = fds();
    for n in 0..20 {
        let name = ["console", "bare", PORT][n % 3];
        drop(client()?.attach(Some(name), true).map_err(text)?);
    }
    while fds() != before {
        if Instant::now() > deadline {
            return Err(format!("{} descriptors after 20 attachments, {before} before", fds()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let (stream, _) = attach("console", false)?;
    type_in(&stream, "off")?;
    expect_code(&mut child, 0)?;
    Ok(format!("{before} descriptors"))
}

fn flood() -> Outcome {
    let (mut child, _errors, mut reader, _port) = start("console")?;
    let mut console = loop {
        match client().and_then(|mut client| client.attach(None, true).map_err(text)) {
            Ok((stream, ..)) => break stream,
            Err(_) if child.try_wait().map_err(text)?.is_none() => std::thread::sleep(Duration::from_millis(20)),
            Err(e) => return Err(e),
        }
    };
    console.set_read_timeout(Some(GUEST_TIMEOUT)).map_err(text)?;
    let (mut seen, mut buf) = (String::new(), [0; 256]);
    while !seen.contains("guest: obeying") {
        let got = console.read(&mut buf).map_err(|e| format!("{seen:?}, then {e}"))?;
        seen.push_str(&String::from_utf8_lossy(&buf[..got]));
    }
    let (mut bare, ..) = client()?.attach(Some("bare"), true).map_err(text)?;
    // From here on nobody reads anything; the guest writes 2 MiB to the console and to the port, and powers off.
    type_in(&console, "flood")?;
    expect_code(&mut child, 0)?;
    // What fitted into the stalled readers' buffers is the beginning of what was written.
    let mut head = [0; 4096];
    bare.read_exact(&mut head).map_err(text)?;
    if head != [b'f'; 4096] {
        return Err("the port's stream does not begin with what the guest wrote".into());
    }
    reader.read_exact(&mut head).map_err(text)?;
    if !String::from_utf8_lossy(&head).contains("guest: obeying") {
        return Err("the console's output does not begin with what the guest wrote".into());
    }
    Ok(String::new())
}

fn serial() -> Outcome {
    let (reader, writer) = pipe()?;
    let mut config = config("serial", "serial");
    config.cmdline = config.cmdline.replace("8250.nr_uarts=0 ", "").replace("console=hvc0", "console=ttyS0");
    config.jail = JAIL;
    config.control = Some(FileRef::Path(CONTROL.into()));
    config.serial = Some(SerialConfig::to(FileRef::Fd(4)));
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    let lines = Lines::of(reader);
    lines.wait("serial: obeying")?;
    let (stream, late) = attach("serial", true)?;
    late.wait("serial: obeying")?;
    // Longer than the chip's FIFO.
    let line = "0123456789".repeat(20);
    type_in(&stream, &line)?;
    let got = lines.wait("serial: read")?;
    if got != line {
        return Err(format!("the guest read {got:?}"));
    }
    late.wait("serial: read")?;
    type_in(&stream, "off")?;
    expect_code(&mut child, 0)?;
    Ok(String::new())
}

fn paused() -> Outcome {
    let (mut child, _errors, reader, _port) = start("console")?;
    let lines = Lines::of(reader);
    lines.wait("guest: obeying")?;
    let (stream, _) = attach("console", false)?;
    type_in(&stream, "tick")?;
    lines.wait("guest: tick 3")?;
    let mut client = client()?;
    let running = client.stats().map_err(text)?;
    client.pause().map_err(text)?;
    let first = client.stats().map_err(text)?;
    type_in(&stream, "while paused")?;
    std::thread::sleep(Duration::from_millis(700));
    let second = client.stats().map_err(text)?;
    let cpu = |stats: &holdfast_model::contract::vm::Stats| stats.vcpus.iter().map(|v| v.cpu_ns).sum::<u64>();
    if second.state != RunState::Paused || cpu(&running) == 0 {
        return Err(format!("state {:?}, {} ns of CPU time", second.state, cpu(&running)));
    }
    // A thread that goes to sleep takes its last steps after it has said so.
    let slept = cpu(&second) - cpu(&first) < 50_000_000;
    if !slept || (&first.devices, &first.consoles) != (&second.devices, &second.consoles) {
        return Err(format!("something moved while paused: {first:?}, then {second:?}"));
    }
    client.resume().map_err(text)?;
    lines.wait("guest: read while paused")?;
    lines.wait("guest: tick")?;
    let after = client.stats().map_err(text)?;
    if cpu(&after) <= cpu(&second) || after.consoles[0].1.out_bytes <= second.consoles[0].1.out_bytes {
        return Err(format!("nothing moved after the pause: {second:?}, then {after:?}"));
    }
    type_in(&stream, "off")?;
    expect_code(&mut child, 0)?;
    Ok(String::new())
}

/// What a guest writes that never sets the device up: bytes at `emerg_wr` (virtio 1.3 §5.3.4), then power off.
fn emergency() -> Outcome {
    const IMAGE: &str = "/run/emergency.elf";
    let (mut reader, writer) = pipe()?;
    let (mut script, console) = (Script::default(), Function { number: 1 });
    console.enable(&mut script);
    for byte in b"no driver\n" {
        script.put(Op::Write32, console.bar() + 0x2008, u64::from(*byte));
    }
    script.power_off();
    script.save(IMAGE)?;
    let mut config = config("emergency", "");
    config.kernel = FileRef::Path(IMAGE.into());
    config.jail = JAIL;
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    expect_code(&mut child, 0)?;
    let mut seen = String::new();
    reader.read_to_string(&mut seen).map_err(text)?;
    if seen != "no driver\n" {
        return Err(format!("the console's output is {seen:?}"));
    }
    Ok(String::new())
}

/// Echoes the port in capitals, and does what is typed at the console.
fn obey_console() {
    let echo = wait_for(|| port_named(PORT)).and_then(|path| OpenOptions::new().read(true).write(true).open(path).ok());
    std::thread::spawn(move || {
        let Some(mut port) = echo else { return say("no port") };
        let mut buf = [0; 256];
        while let Ok(got @ 1..) = port.read(&mut buf) {
            buf[..got].make_ascii_uppercase();
            let _ = port.write_all(&buf[..got]);
        }
    });
    let Some(console) = wait_for(|| File::open("/dev/hvc0").ok()) else { return };
    say("obeying");
    let size = console.as_raw_fd();
    for line in BufReader::new(&console).lines().map_while(Result::ok) {
        match line.as_str() {
            "size" => say(&format!("size {}", window_size(size))),
            "tick" => drop(std::thread::spawn(|| {
                for n in 0.. {
                    say(&format!("tick {n}"));
                    std::thread::sleep(Duration::from_millis(100));
                }
            })),
            "flood" => {
                for path in ["/dev/hvc0".into(), port_named("bare").unwrap_or_default()] {
                    let flooded =
                        OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(&[b'f'; 2 << 20]));
                    if flooded.is_err() {
                        return;
                    }
                }
                power_off();
            }
            "off" => power_off(),
            other => say(&format!("read {other}")),
        }
    }
}

/// Does what is typed at the serial port, and answers there.
fn obey_serial() {
    let Ok(port) = OpenOptions::new().read(true).write(true).open("/dev/ttyS0") else { return };
    let _ = writeln!(&port, "serial: obeying");
    for line in BufReader::new(&port).lines().map_while(Result::ok) {
        if line == "off" {
            power_off();
        }
        let _ = writeln!(&port, "serial: read {line}");
    }
}

fn wait_for<T>(found: impl Fn() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let thing = found();
        if thing.is_some() || Instant::now() > deadline {
            return thing;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The device file of the port that the host has given this name.
fn port_named(name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir("/sys/class/virtio-ports").ok()?;
    let entry = entries
        .flatten()
        .find(|entry| std::fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim() == name))?;
    Some(PathBuf::from("/dev").join(entry.file_name()))
}

fn window_size(fd: i32) -> String {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: writes one structure.
    unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) };
    format!("{}x{}", size.ws_col, size.ws_row)
}
