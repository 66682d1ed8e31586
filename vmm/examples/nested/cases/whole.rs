//! Whole guests with every device, at work.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use holdfast_model::contract::vm::RunState;
use holdfast_model::contract::vm::{ConsoleConfig, DiskConfig, FileRef, JailConfig, NetConfig, TapRef, VhostRef};
use holdfast_vmm::control::{ControlClient, listen};

use super::jail;
use crate::guest::{Role, say};
use crate::host::{
    CONTROL, DISK, GUEST_TIMEOUT, INITRD, JAIL, KERNEL, Lines, Outcome, Scenario, config, disk, expect_code, open,
    overhead_kib, pipe, spawn_with, tap, text,
};
use crate::support::{check, configure, power_off};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "jailed_guest_with_vhost_net_serves_and_obeys_the_power_button", run: jailed },
    Scenario { name: "stand_alone_guest_with_user_space_net_on_two_vcpus", run: || user_space_net(None) },
    Scenario { name: "jailed_guest_with_user_space_net_on_two_vcpus", run: || user_space_net(JAIL) },
];

pub const ROLES: &[Role] = &[Role { name: "serve", play: serve }];

/// `docs/design.md`, budgets: VMM memory per app beyond guest memory.
const OVERHEAD_BUDGET_KIB: u64 = 3 * 1024;
/// What the guest sends over TCP.
const STREAM_BYTES: usize = 4 << 20;

fn jailed() -> Outcome {
    let tap = tap("tap0")?;
    let (console_reader, console_writer) = pipe()?;
    let (control, initrd) = (listen(CONTROL.as_ref()).map_err(text)?, open(INITRD, false)?);
    let files: Vec<OwnedFd> = vec![
        open("/dev/kvm", true)?.into(),
        open(KERNEL, false)?.into(),
        initrd.into(),
        disk()?.into(),
        tap.into(),
        open("/dev/vhost-net", true)?.into(),
        control,
        console_writer.into(),
    ];
    let mut config = config("jailed", "serve");
    (config.kernel, config.initrd) = (FileRef::Fd(5), Some(FileRef::Fd(6)));
    config.kvm = FileRef::Fd(4);
    config.disks = vec![DiskConfig::new("data", FileRef::Fd(7))];
    let mac = "02:00:00:00:00:02".parse().map_err(text)?;
    let vhost = Some(VhostRef::Fd(9));
    config.nets = vec![NetConfig { vhost, mtu: Some(1400), ..NetConfig::new(mac, TapRef::Fd(8)) }];
    config.control = Some(FileRef::Fd(10));
    config.console = Some(ConsoleConfig::to(FileRef::Fd(11)));
    config.jail = Some(JailConfig { uid: 1000, gid: 1000, pid_namespace: true });
    let listener = TcpListener::bind("0.0.0.0:7000").map_err(text)?;
    let tcp = serve_tcp(listener);
    let started = Instant::now();
    let (mut child, _errors) = spawn_with(&config, files)?;
    let lines = Lines::of(console_reader);
    lines.wait("guest: init")?;
    let boot = started.elapsed();
    let serial = lines.wait("guest: serial")?;
    if serial != "data" {
        return Err(format!("disk serial is {serial:?}"));
    }
    lines.wait("guest: disk ok")?;
    lines.wait("guest: rng ok")?;
    let network = lines.wait("guest: net ok")?;
    lines.wait("guest: waiting")?;
    let bytes = tcp.recv_timeout(GUEST_TIMEOUT).map_err(|_| "no TCP connection".to_string())??;
    if bytes != STREAM_BYTES {
        return Err(format!("{bytes} bytes arrived, expected {STREAM_BYTES}"));
    }
    jail::check(&child)?;
    let overhead = overhead_kib(&child, 64 << 20);
    let mut client = ControlClient::connect(CONTROL).map_err(text)?;
    client.pause().map_err(text)?;
    if client.ping().map_err(text)? != RunState::Paused {
        return Err("not paused".into());
    }
    client.resume().map_err(text)?;
    drop(client);
    let answer = echo_line("again\n").map_err(|e| format!("echo after resume: {e}"))?;
    if answer != "again\n" {
        return Err(format!("echo after resume: {answer:?}"));
    }
    let mut client = ControlClient::connect(CONTROL).map_err(text)?;
    let stats = client.stats().map_err(text)?;
    client.power_button().map_err(text)?;
    lines.wait("guest: button")?;
    expect_code(&mut child, 0)?;
    let image = std::fs::read(DISK).map_err(text)?;
    if image[4096..8192] != [0xa5; 4096] {
        return Err("what the guest wrote is not in the image".into());
    }
    if overhead > OVERHEAD_BUDGET_KIB {
        return Err(format!("{overhead} KiB beyond guest memory, budget {OVERHEAD_BUDGET_KIB} KiB"));
    }
    let (pio, mmio) = stats.vcpus.iter().fold((0, 0), |(p, m), v| (p + v.pio_exits, m + v.mmio_exits));
    Ok(format!("boot {} ms, exits {pio} pio {mmio} mmio, overhead {overhead} KiB, {network}", boot.as_millis()))
}

fn user_space_net(jail: Option<JailConfig>) -> Outcome {
    let (reader, writer) = pipe()?;
    let tap = tap("tap1")?;
    let mut config = config("alone", "serve");
    config.vcpus = 2;
    config.jail = jail;
    disk()?;
    config.disks = vec![DiskConfig::new("data", FileRef::Path(DISK.into()))];
    let mac = "02:00:00:00:00:03".parse().map_err(text)?;
    config.nets = vec![NetConfig::new(mac, TapRef::Fd(4))];
    config.control = Some(FileRef::Path(CONTROL.into()));
    config.console = Some(ConsoleConfig::to(FileRef::Fd(5)));
    let tcp = serve_tcp(TcpListener::bind("0.0.0.0:7000").map_err(text)?);
    let (mut child, _errors) = spawn_with(&config, vec![tap.into(), writer.into()])?;
    let lines = Lines::of(reader);
    let cpus = lines.wait("guest: cpus")?;
    if cpus != "2" {
        return Err(format!("guest sees {cpus} CPUs"));
    }
    lines.wait("guest: disk ok")?;
    let network = lines.wait("guest: net ok")?;
    lines.wait("guest: waiting")?;
    let bytes = tcp.recv_timeout(GUEST_TIMEOUT).map_err(|_| "no TCP connection".to_string())??;
    if bytes != STREAM_BYTES {
        return Err(format!("{bytes} bytes arrived, expected {STREAM_BYTES}"));
    }
    // SAFETY: our own child.
    check(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }).map_err(text)?;
    lines.wait("guest: button")?;
    expect_code(&mut child, 0)?;
    Ok(network)
}

/// Answers one TCP connection: echoes a line, then counts bytes until the end.
fn serve_tcp(listener: TcpListener) -> Receiver<Result<usize, String>> {
    let (sender, result) = channel();
    std::thread::spawn(move || {
        let serve = || -> Result<usize, std::io::Error> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(GUEST_TIMEOUT))?;
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone()?);
            reader.read_line(&mut line)?;
            stream.write_all(line.as_bytes())?;
            let mut count = 0;
            let mut buf = vec![0; 1 << 16];
            loop {
                match reader.read(&mut buf)? {
                    0 => break,
                    n => count += n,
                }
            }
            stream.write_all(b"all\n")?;
            Ok(count)
        };
        let _ = sender.send(serve().map_err(text));
    });
    result
}

/// Has the guest at 10.9.0.2 echo a line.
pub fn echo_line(line: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&"10.9.0.2:7001".parse().unwrap(), Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer)
}

fn serve() {
    // SAFETY: asks for a number.
    say(&format!("cpus {}", unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }));
    say(&format!("serial {}", std::fs::read_to_string("/sys/block/vda/serial").unwrap_or_default().trim()));
    match use_disk() {
        Ok(()) => say("disk ok"),
        Err(e) => say(&format!("disk FAILED {e}")),
    }
    let mut random = [0u8; 64];
    match File::open("/dev/hwrng").and_then(|mut f| f.read_exact(&mut random)) {
        Ok(()) if random != [0; 64] => say("rng ok"),
        other => say(&format!("rng FAILED {other:?}")),
    }
    match use_network() {
        Ok(note) => say(&format!("net ok {note}")),
        Err(e) => say(&format!("net FAILED {e}")),
    }
    std::thread::spawn(echo);
    wait_for_button("waiting");
    power_off();
}

/// Says `ready`; returns when the power button is pressed after that.
pub fn wait_for_button(ready: &str) {
    // Opened before the host hears that it may press: the kernel keeps no key for those who open the device later.
    let mut events = File::open("/dev/input/event0");
    say(ready);
    // struct input_event: 16 bytes of time, type, code, value. KEY_POWER is 116.
    let mut event = [0u8; 24];
    while let Ok(file) = &mut events {
        if file.read_exact(&mut event).is_err() {
            break;
        }
        if u16::from_ne_bytes([event[16], event[17]]) == 1 && u16::from_ne_bytes([event[18], event[19]]) == 116 {
            say("button");
            return;
        }
    }
    say(&format!("no button: {events:?}"));
    loop {
        std::thread::park();
    }
}

/// Echoes one line to each who connects.
pub fn echo() {
    let Ok(listener) = TcpListener::bind("0.0.0.0:7001") else { return };
    for mut stream in listener.incoming().flatten() {
        let Ok(copy) = stream.try_clone() else { continue };
        let mut line = String::new();
        if BufReader::new(copy).read_line(&mut line).is_ok() {
            let _ = stream.write_all(line.as_bytes());
        }
    }
}

/// Checks the first sector of [`disk`], writes elsewhere, and finds its end.
pub fn use_disk() -> std::io::Result<()> {
    let disk = OpenOptions::new().read(true).write(true).open("/dev/vda")?;
    let mut first = [0u8; 512];
    disk.read_exact_at(&mut first, 0)?;
    if first != [0x5a; 512] {
        return Err(std::io::Error::other("wrong content"));
    }
    disk.write_all_at(&[0xa5; 4096], 4096)?;
    disk.sync_all()?;
    let past = disk.read_at(&mut first, 1 << 20)?;
    if past != 0 { Err(std::io::Error::other("reads past the end")) } else { Ok(()) }
}

fn use_network() -> std::io::Result<String> {
    configure("eth0", Ipv4Addr::new(10, 9, 0, 2))?;
    let mtu = std::fs::read_to_string("/sys/class/net/eth0/mtu")?;
    let mut stream = TcpStream::connect_timeout(&"10.9.0.1:7000".parse().unwrap(), Duration::from_secs(20))?;
    let started = Instant::now();
    stream.write_all(b"hello\n")?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let round_trip = started.elapsed();
    let started = Instant::now();
    stream.write_all(&vec![7u8; STREAM_BYTES])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    line.clear();
    reader.read_line(&mut line)?;
    let rate = STREAM_BYTES as f32 / started.elapsed().as_secs_f32() / 1e6;
    Ok(format!("mtu {} rtt {} us, {rate:.0} MB/s", mtu.trim(), round_trip.as_micros()))
}
