//! Sockets between guest and host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};

use holdfast_model::contract::vm::{ConsoleConfig, FileRef, VmConfig, VsockConfig};
use holdfast_vmm::control::ControlClient;

use crate::guest::{Role, say};
use crate::host::{CONTROL, JAIL, Lines, Outcome, Scenario, config, expect_code, open, pipe, spawn_with, text};
use crate::sockets::{HOST, Talk, accept, checksum, connect, listen, pattern, serve};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "vsock_carries_streams_and_packets_both_ways_across_a_pause", run: both_ways },
    Scenario { name: "vsock_ends_connections_with_the_guest_and_frees_the_cid", run: resets },
];

pub const ROLES: &[Role] = &[Role { name: "vsock", play }];

/// Where the host listens.
const HOST_PORT: u32 = 5000;
/// Where the guest takes commands, and where it echoes packets.
pub const GUEST_PORT: u32 = 6000;
const PACKET_PORT: u32 = 6001;
/// Each way.
const BULK: usize = 4 << 20;

/// A jailed VM with `cid`, its vhost-vsock inherited, console lines and control socket.
fn start(name: &str, cid: u32) -> Result<(Child, Lines, Lines), String> {
    let (reader, writer) = pipe()?;
    let mut config: VmConfig = config(name, "vsock");
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    config.vsock = Some(VsockConfig { cid, vhost: FileRef::Fd(5) });
    config.control = Some(FileRef::Path(CONTROL.into()));
    config.jail = JAIL;
    let files: Vec<OwnedFd> = vec![writer.into(), open("/dev/vhost-vsock", true)?.into()];
    let (child, errors) = spawn_with(&config, files)?;
    Ok((child, Lines::of(reader), errors))
}

fn talk_to(cid: u32) -> Result<Talk, String> {
    let stream = connect(libc::SOCK_STREAM, cid, GUEST_PORT).map_err(|e| format!("connect to cid {cid}: {e}"))?;
    Ok(Talk::new(stream))
}

fn both_ways() -> Outcome {
    let listener = listen(libc::SOCK_STREAM, HOST_PORT).map_err(text)?;
    let (mut child, lines, _errors) = start("sockets", 42)?;
    // Guest to host: the guest sends a pattern, the host answers with its sum.
    let mut from_guest = Talk::new(accept(&listener).map_err(text)?);
    let greeting = from_guest.hear().map_err(|e| format!("greeting: {e}"))?;
    if greeting != "hello from 42" {
        return Err(format!("guest says {greeting:?}, expected its context id"));
    }
    let started = Instant::now();
    let mut bulk = vec![0; BULK];
    from_guest.stream().read_exact(&mut bulk).map_err(|e| format!("bulk from the guest: {e}"))?;
    let up = rate(started);
    from_guest.say(&checksum(&bulk).to_string()).map_err(text)?;
    lines.wait("guest: sums agree")?;
    lines.wait("guest: listening")?;
    // Host to guest.
    let mut talk = talk_to(42)?;
    if talk.ask("echo across").map_err(text)? != "across" {
        return Err("the guest does not echo".into());
    }
    let bulk = pattern(BULK, 77);
    let started = Instant::now();
    talk.say(&format!("sum {BULK}")).map_err(text)?;
    talk.stream().get_mut().write_all(&bulk).map_err(|e| format!("bulk to the guest: {e}"))?;
    let sum = talk.hear().map_err(text)?;
    let down = rate(started);
    if sum != checksum(&bulk).to_string() {
        return Err(format!("the guest counts {sum}"));
    }
    packets_keep_their_borders()?;
    // A paused guest answers nothing and loses nothing.
    let mut client = ControlClient::connect(CONTROL).map_err(text)?;
    client.pause().map_err(text)?;
    talk.say("echo while paused").map_err(text)?;
    let (sender, answer) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || sender.send((talk.hear(), talk)));
    if answer.recv_timeout(Duration::from_millis(400)).is_ok() {
        return Err("a paused guest answers".into());
    }
    client.resume().map_err(text)?;
    let (heard, mut talk) =
        answer.recv_timeout(Duration::from_secs(20)).map_err(|_| "no answer after the resume".to_string())?;
    let _ = waiting.join();
    if heard.map_err(text)? != "while paused" {
        return Err("the answer after the resume is not ours".into());
    }
    // Another address: old connections end in the guest, its listeners stay.
    client.vsock_cid(43).map_err(text)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut moved = loop {
        match talk_to(43).and_then(|mut talk| talk.ask("cid").map(|cid| (cid, talk)).map_err(text)) {
            Ok((cid, talk)) if cid == "43" => break talk,
            other if Instant::now() > deadline => {
                return Err(format!("after the change: {:?}", other.map(|(cid, _)| cid)));
            }
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    is_cut(talk.ask("echo old"), "a connection to the old address")?;
    moved.say("off").map_err(text)?;
    expect_code(&mut child, 0)?;
    Ok(format!("up {up:.0} MB/s, down {down:.0} MB/s"))
}

/// The other end has hung up; neither does it answer, nor does the connection hang.
fn is_cut(heard: io::Result<String>, what: &str) -> Result<(), String> {
    match heard {
        Ok(word) => Err(format!("{what} goes on: {word:?}")),
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Err(format!("{what} is stuck")),
        Err(_) => Ok(()),
    }
}

fn rate(since: Instant) -> f32 {
    BULK as f32 / since.elapsed().as_secs_f32() / 1e6
}

/// Sequenced packets come back one by one, as long as they were.
fn packets_keep_their_borders() -> Result<(), String> {
    let mut socket = connect(libc::SOCK_SEQPACKET, 42, PACKET_PORT).map_err(|e| format!("seqpacket: {e}"))?;
    let sent: Vec<Vec<u8>> = [1, 1000, 40_000, 5].iter().map(|len| pattern(*len, 5)).collect();
    for packet in &sent {
        socket.write_all(packet).map_err(text)?;
    }
    let mut buf = vec![0; 1 << 17];
    for packet in &sent {
        let got = socket.read(&mut buf).map_err(text)?;
        if buf[..got] != packet[..] {
            return Err(format!("a packet of {} bytes came back as {got}", packet.len()));
        }
    }
    Ok(())
}

fn resets() -> Outcome {
    let (mut child, lines, _errors) = start("first", 42)?;
    lines.wait("guest: listening")?;
    // The address is taken while the first lives.
    let (mut second, _lines, errors) = start("second", 42)?;
    let refusal = errors.wait("vmm second:")?;
    expect_code(&mut second, 21)?;
    if !refusal.contains("vsock: cid 42 belongs to another VM") {
        return Err(format!("refused with {refusal:?}"));
    }
    // A driver that lets go of the device and takes it again: the old connection ends, new ones come.
    let mut old = talk_to(42)?;
    old.ask("echo x").map_err(text)?;
    old.say("rebind").map_err(text)?;
    lines.wait("guest: bound again")?;
    is_cut(old.ask("echo y"), "the connection of a driver that is gone")?;
    let mut talk = talk_to(42)?;
    if talk.ask("echo again").map_err(text)? != "again" {
        return Err("no echo after the driver came back".into());
    }
    // A reboot: who waits on a connection learns of it.
    let waiting = std::thread::spawn(move || (talk.hear(), Instant::now()));
    let mut other = talk_to(42)?;
    other.say("reboot").map_err(text)?;
    expect_code(&mut child, 10)?;
    let ended = Instant::now();
    let (heard, at) = waiting.join().map_err(|_| "the waiting thread panicked".to_string())?;
    is_cut(heard, "the connection to a guest that is gone")?;
    let late = at.saturating_duration_since(ended);
    if late > Duration::from_secs(5) {
        return Err(format!("the connection ended {late:?} after its guest"));
    }
    // And the address is free again.
    let (mut third, lines, _errors) = start("third", 42)?;
    lines.wait("guest: listening")?;
    let mut talk = talk_to(42)?;
    let word = talk.ask("echo third").map_err(text)?;
    talk.say("off").map_err(text)?;
    expect_code(&mut third, 0)?;
    if word == "third" { Ok(refusal) } else { Err(format!("the third guest says {word:?}")) }
}

fn play() {
    match to_host() {
        Ok(()) => say("sums agree"),
        // Most scenarios do not listen.
        Err(e) => say(&format!("host does not answer: {e}")),
    }
    match listen(libc::SOCK_SEQPACKET, PACKET_PORT).and_then(|packets| Ok((packets, serve(GUEST_PORT, answer)?))) {
        Ok((packets, ())) => {
            std::thread::spawn(move || echo_packets(&packets));
            say("listening");
        }
        Err(e) => say(&format!("cannot listen: {e}")),
    }
}

fn to_host() -> io::Result<()> {
    let mut talk = Talk::new(connect(libc::SOCK_STREAM, HOST, HOST_PORT)?);
    talk.say(&format!("hello from {}", own_cid()?))?;
    let bulk = pattern(BULK, 3);
    talk.stream().get_mut().write_all(&bulk)?;
    let sum = talk.hear()?;
    if sum == checksum(&bulk).to_string() { Ok(()) } else { Err(io::Error::other(format!("host counts {sum}"))) }
}

/// The guest's own context id (linux/vm_sockets.h: `IOCTL_VM_SOCKETS_GET_LOCAL_CID`).
fn own_cid() -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let device = File::open("/dev/vsock")?;
    let mut cid = 0u32;
    // SAFETY: the kernel writes one u32.
    crate::support::check(unsafe { libc::ioctl(device.as_raw_fd(), 0x7b9, &raw mut cid) })?;
    Ok(cid)
}

fn echo_packets(listener: &OwnedFd) {
    while let Ok(mut socket) = accept(listener) {
        let mut buf = vec![0; 1 << 17];
        while let Ok(got @ 1..) = socket.read(&mut buf) {
            if socket.write_all(&buf[..got]).is_err() {
                break;
            }
        }
    }
}

/// What a guest does on command.
pub fn answer(line: &str, talk: &mut Talk) -> io::Result<String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "echo" => Ok(rest.to_string()),
        "cid" => Ok(own_cid()?.to_string()),
        "sum" => {
            let mut bulk = vec![0; rest.parse().map_err(io::Error::other)?];
            talk.stream().read_exact(&mut bulk)?;
            Ok(checksum(&bulk).to_string())
        }
        "rebind" => rebind(),
        "reboot" => {
            // SAFETY: numbers only.
            unsafe { libc::reboot(libc::RB_AUTOBOOT) };
            Ok(String::new())
        }
        "off" => crate::support::power_off(),
        _ => Err(io::Error::other("no such command")),
    }
}

/// Has the guest's driver let go of the device and take it again.
fn rebind() -> io::Result<String> {
    let driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
    let names = std::fs::read_dir(driver)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let device = names.into_iter().find(|name| name.starts_with("virtio")).ok_or(io::ErrorKind::NotFound)?;
    std::fs::write(format!("{driver}/unbind"), &device)?;
    std::fs::write(format!("{driver}/bind"), &device)?;
    say("bound again");
    Ok(String::new())
}
