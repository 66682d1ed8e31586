//! Network cards: how fast and at what cost, between whom, with several queues, and what is wrong with a configuration.
//!
//! The wrong way to see this would be to believe the card's own counters: bytes are counted by iperf3 at the far end, CPU
//! time by the kernel of the machine that the VM runs on.

mod faults;
mod guest;
mod lines;
mod throughput;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use holdfast_links::tap as host_tap;
use holdfast_model::contract::vm::{ConsoleConfig, FileRef, MacAddress, NetConfig};

use crate::guest::Role;
use crate::host::{INITRD, JAIL, Lines, Outcome, Scenario, config, pipe, spawn_with, text};
use crate::support::{check, ifreq};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "net_vhost_and_user_space_carry_iperf3_both_ways", run: throughput::guest_and_guest },
    Scenario { name: "net_two_guests_on_a_bridge_and_on_a_unix_cable", run: lines::two_guests },
    Scenario { name: "net_cable_by_path_outlives_either_end", run: lines::cable_by_path },
    Scenario { name: "net_two_vcpus_use_two_queue_pairs", run: lines::two_pairs },
    Scenario { name: "net_limit_holds_frames_back_without_losing_them", run: lines::limited },
    Scenario { name: "net_misused_vhost_ring_ends_its_vm_with_a_reason", run: faults::misused_rings },
    Scenario { name: "net_unusable_cable_is_one_named_error", run: faults::unusable_cables },
];

pub const ROLES: &[Role] =
    &[Role { name: "net", play: guest::play }, Role { name: "net-misuse", play: guest::misuse_rings }];

/// Where the test has put Debian's iperf3 with its libraries, as an archive for guests.
const IPERF_ARCHIVE: &str = "/iperf.cpio";
const IPERF: &str = "/usr/bin/iperf3";
/// A guest's port that sends every byte back.
const ECHO_PORT: u16 = 7002;
/// A guest's port that runs the iperf3 client: a line of its arguments there, what it says back.
const ASK_PORT: u16 = 7003;
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// Bytes in a second and how long it ran, of one direction.
#[derive(Debug, Clone, Copy)]
struct Flow {
    bytes: f64,
    seconds: f64,
    lost_percent: f64,
}

impl Flow {
    fn rate(self) -> f64 {
        self.bytes / self.seconds / 1e6
    }
}

/// A running guest.
struct Guest {
    child: Child,
    lines: Lines,
}

impl Guest {
    /// A jailed guest that plays "net" at 10.9.0.`last` on a card with `files` as descriptors 5 and up.
    fn start(
        name: &str,
        last: u8,
        net: impl FnOnce(MacAddress) -> NetConfig,
        files: Vec<OwnedFd>,
        vcpus: u8,
        words: &str,
    ) -> Result<Self, String> {
        let nets = vec![net(MacAddress([2, 0, 0, 0, 9, last]))];
        Self::start_with(name, nets, files, vcpus, &format!("nested.address=10.9.0.{last} {words}"))
    }

    /// The same with several cards, whose addresses are among the words.
    fn start_with(
        name: &str,
        nets: Vec<NetConfig>,
        files: Vec<OwnedFd>,
        vcpus: u8,
        words: &str,
    ) -> Result<Self, String> {
        let (reader, writer) = pipe()?;
        let mut config = config(name, "net");
        config.cmdline = format!("{} {words}", config.cmdline);
        config.vcpus = vcpus;
        config.initrd = Some(FileRef::Path(initrd()?.into()));
        config.nets = nets;
        config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
        config.jail = JAIL;
        let mut all: Vec<OwnedFd> = vec![writer.into()];
        all.extend(files);
        let (child, _errors) = spawn_with(&config, all)?;
        let guest = Self { child, lines: Lines::of(reader) };
        guest.lines.wait("guest: ready")?;
        Ok(guest)
    }

    /// CPU seconds: of the threads that run the guest, and of all others (device thread, vhost workers).
    fn cpu(&self) -> (f64, f64) {
        let (mut vcpus, mut others) = (0.0, 0.0);
        for process in crate::host::processes(&self.child) {
            for task in std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                let Some((head, rest)) = stat.rsplit_once(')') else { continue };
                // After the name: state, then 10 numbers, then user and system ticks of 10 ms.
                let ticks =
                    |n: usize| rest.split_whitespace().nth(n).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
                let seconds = (ticks(11) + ticks(12)) / 100.0;
                if head.contains("vcpu") { vcpus += seconds } else { others += seconds }
            }
        }
        (vcpus, others)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An initial ramdisk with iperf3, if that is here.
fn initrd() -> Result<&'static str, String> {
    const BOTH: &str = "/run/net-initrd";
    if !std::path::Path::new(IPERF_ARCHIVE).exists() {
        return Ok(INITRD);
    }
    if !std::path::Path::new(BOTH).exists() {
        let mut archive = std::fs::read(INITRD).map_err(text)?;
        // The kernel unpacks one archive after the other.
        archive.resize(archive.len().next_multiple_of(512), 0);
        archive.extend(std::fs::read(IPERF_ARCHIVE).map_err(text)?);
        std::fs::write(BOTH, archive).map_err(text)?;
        std::fs::create_dir_all("/tmp").map_err(text)?;
    }
    Ok(BOTH)
}

/// Reads what `iperf3 --json` said.
fn flow(json: &[u8]) -> Result<Flow, String> {
    let report: serde_json::Value = serde_json::from_slice(json).map_err(text)?;
    let end = &report["end"];
    // The receiver's count; UDP has only one sum, with the loss.
    let sum = if end["sum_received"]["bytes"].is_number() { &end["sum_received"] } else { &end["sum"] };
    let number = |value: &serde_json::Value| value.as_f64();
    match (number(&sum["bytes"]), number(&sum["seconds"])) {
        (Some(bytes), Some(seconds)) if bytes > 0.0 => {
            Ok(Flow { bytes, seconds, lost_percent: number(&end["sum"]["lost_percent"]).unwrap_or(0.0) })
        }
        _ => Err(format!("iperf3: {}", report["error"])),
    }
}

/// Has the guest at `guest` run the iperf3 client.
fn iperf_in(guest: &str, words: &[&str]) -> Result<Flow, String> {
    let mut stream = TcpStream::connect(format!("{guest}:{ASK_PORT}")).map_err(|e| format!("{guest}: {e}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(text)?;
    let mut said = Vec::new();
    writeln!(stream, "{}", words.join(" ")).and_then(|()| stream.read_to_end(&mut said)).map_err(text)?;
    flow(&said)
}

/// Runs the iperf3 client here.
fn iperf(to: &str, words: &[&str]) -> Result<Flow, String> {
    let output = std::process::Command::new(IPERF)
        .args(["--json", "--client", to, "--connect-timeout", "5000"])
        .args(words)
        .output()
        .map_err(|e| format!("{IPERF}: {e}"))?;
    flow(&output.stdout)
}

/// Median time of a byte there and back, over `count` times, in microseconds.
fn round_trip(to: &str, count: usize) -> Result<f64, String> {
    let address = format!("{to}:{ECHO_PORT}").parse().map_err(text)?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(text)?;
    let mut times = Vec::new();
    for n in 0..count {
        let (sent, mut got) = ([n as u8], [0]);
        let started = Instant::now();
        stream.write_all(&sent).and_then(|()| stream.read_exact(&mut got)).map_err(text)?;
        times.push(started.elapsed());
        if got != sent {
            return Err(format!("byte {sent:?} came back as {got:?}"));
        }
    }
    times.sort_unstable();
    Ok(times[count / 2].as_secs_f64() * 1e6)
}

/// One `ioctl` on an interface by its name, with an integer.
fn interface(name: &str, request: u64, value: i32) -> Result<(), String> {
    let mut data = ifreq(name);
    data.data[..4].copy_from_slice(&value.to_ne_bytes());
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(text)?;
    // SAFETY: the kernel reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &mut data) }).map_err(|e| format!("{name}: {e}"))
}

fn up(name: &str) -> Result<(), String> {
    interface(name, libc::SIOCSIFFLAGS, libc::IFF_UP)
}

/// A bridge.
fn bridge(name: &str) -> Result<(), String> {
    /// Of linux/sockios.h.
    const SIOCBRADDBR: libc::c_ulong = 0x89a0;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(text)?;
    let made = ifreq(name);
    // SAFETY: the kernel reads a name of at most 16 bytes that ends with zero.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDBR as _, made.name.as_ptr()) })
        .map_err(|e| format!("{name}: {e}"))?;
    up(name)
}

/// A tap at a bridge.
fn tap_on(bridge: &str, name: &str) -> Result<OwnedFd, String> {
    /// Of linux/sockios.h.
    const SIOCBRADDIF: libc::c_ulong = 0x89a2;
    host_tap::create(name, 1000, false).map_err(text)?;
    up(name)?;
    let index = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).map_err(text)?;
    interface(bridge, SIOCBRADDIF, index.trim().parse().map_err(text)?)?;
    Ok(host_tap::attach(name, 1).map_err(text)?.remove(0))
}

fn vhost() -> Result<OwnedFd, String> {
    Ok(crate::host::open("/dev/vhost-net", true)?.into())
}

fn tap(name: &str) -> Result<OwnedFd, String> {
    crate::host::tap(name).map(File::into)
}

/// The fault of a scenario with iperf3 where it is missing: what was not measured is not passed.
fn without_iperf() -> Option<Outcome> {
    (!std::path::Path::new(IPERF).exists())
        .then(|| Err("iperf3 was not there when the test began: install Debian's package iperf3".into()))
}
