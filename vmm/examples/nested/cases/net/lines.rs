//! Other ways to plug a card: two guests, two queue pairs, a limit.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use holdfast_links::{tap as host_tap, unix};
use holdfast_model::contract::vm::Limits;
use holdfast_model::contract::vm::{LinkRef, NetConfig, NetLimits, TapRef, UnixRef, VhostRef};

use super::{Guest, HOST, bridge, interface, iperf, round_trip, tap, tap_on, vhost, without_iperf};
use crate::host::{Outcome, config, expect_code, spawn_with, text};
use crate::support::configure;

pub(super) fn two_guests() -> Outcome {
    if let Some(outcome) = without_iperf() {
        return outcome;
    }
    let mut ends = Vec::new();
    bridge("br-n")?;
    for name in ["tap-a", "tap-b"] {
        ends.push(tap_on("br-n", name)?);
    }
    let net = |mac| NetConfig { vhost: Some(VhostRef::Fd(6)), ..NetConfig::new(mac, TapRef::Fd(5)) };
    let bridge = between(vec![vec![ends.remove(0), vhost()?], vec![ends.remove(0), vhost()?]], net)?;
    let (one, other) = unix::pair().map_err(text)?;
    let unix = |mac| NetConfig { mtu: Some(65_521), ..NetConfig::linked(mac, LinkRef::Unix(UnixRef::Fd(5))) };
    let cable = between(vec![vec![one], vec![other]], unix)?;
    Ok(format!("bridge and vhost: {bridge} | unix cable: {cable}"))
}

/// Starts two guests; the second asks the first.
fn between(
    mut files: Vec<Vec<OwnedFd>>,
    net: impl Fn(holdfast_model::contract::vm::MacAddress) -> NetConfig,
) -> Result<String, String> {
    let _server = Guest::start("net-one", 2, &net, files.remove(0), 1, "")?;
    let client = Guest::start("net-two", 3, &net, files.remove(0), 1, "nested.peer=10.9.0.2")?;
    let mut rates = Vec::new();
    for _ in 0..2 {
        let words = client.lines.wait("guest: flow")?;
        let numbers: Vec<f64> = words.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [bytes, seconds] = numbers[..] else { return Err(words) };
        rates.push(format!("{:.0}", bytes / seconds / 1e6));
    }
    Ok(format!("{} MB/s", rates.join(" and ")))
}

/// Either end of a cable by path goes and comes back while the other stays, all of them jailed; a third is refused.
pub(super) fn cable_by_path() -> Outcome {
    if let Some(outcome) = without_iperf() {
        return outcome;
    }
    const PATH: &str = "/run/cable";
    let unix = |mac| NetConfig { mtu: Some(9000), ..NetConfig::linked(mac, LinkRef::Unix(UnixRef::Path(PATH.into()))) };
    let client = || Guest::start("net-client", 3, unix, vec![], 1, "nested.peer=10.9.0.2 nested.again=1");
    let server = || Guest::start("net-server", 2, unix, vec![], 1, "");
    let first_server = server()?;
    let first_client = client()?;
    let mut rates = vec![talk(&first_client)?];

    let mut third = config("third", "");
    third.nets = vec![unix("02:00:00:00:09:04".parse().map_err(text)?)];
    let (mut child, errors) = spawn_with(&third, vec![])?;
    let error = errors.wait("vmm third:")?;
    expect_code(&mut child, 21)?;
    for word in ["net0", PATH, "two VMs are plugged", "another path"] {
        if !error.contains(word) {
            return Err(format!("{word:?} is not in {error:?}"));
        }
    }

    drop(first_client);
    let second_client = client()?;
    rates.push(talk(&second_client)?);
    drop(first_server);
    let _second_server = server()?;
    rates.push(talk(&second_client)?);
    Ok(format!("{} MB/s", rates.join(", ")))
}

/// Until this guest has got something through; how fast it was.
fn talk(client: &Guest) -> Result<String, String> {
    client.lines.forget();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let words = client.lines.wait("guest: flow")?;
        let numbers: Vec<f64> = words.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match numbers[..] {
            [bytes, seconds] => return Ok(format!("{:.0}", bytes / seconds / 1e6)),
            _ if Instant::now() > deadline => return Err(words),
            _ => {}
        }
    }
}

pub(super) fn two_pairs() -> Outcome {
    if let Some(outcome) = without_iperf() {
        return outcome;
    }
    let mut notes = Vec::new();
    for (name, with_vhost) in [("tap-m", true), ("tap-n", false)] {
        host_tap::create(name, 1000, true).map_err(text)?;
        configure(name, HOST).map_err(text)?;
        let mut files = host_tap::attach(name, 2).map_err(text)?;
        if with_vhost {
            files.extend([vhost()?, vhost()?]);
        }
        let net = |mac| NetConfig {
            queue_pairs: 2,
            vhost: with_vhost.then(|| VhostRef::Fds(vec![7, 8])),
            ..NetConfig::new(mac, TapRef::Fds(vec![5, 6]))
        };
        let mut guest = Guest::start("net-pairs", 2, net, files, 2, "")?;
        let flow = iperf("10.9.0.2", &["--time", "2", "--parallel", "8"])?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let interrupts = loop {
            let words = guest.lines.wait("guest: interrupts")?;
            let counts: Vec<u64> = words.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            match counts[..] {
                [first, second] if first > 0 && second > 0 => break words,
                _ if Instant::now() > deadline => return Err(format!("interrupts of the receive queues: {words}")),
                _ => {}
            }
        };
        if guest.child.try_wait().map_err(text)?.is_some() {
            return Err("the VM ended".into());
        }
        let path = if with_vhost { "vhost" } else { "user" };
        notes.push(format!("{path}: {:.0} MB/s, interrupts of the receive queues {interrupts}", flow.rate()));
        drop(guest);
        interface(name, libc::SIOCSIFFLAGS, 0)?;
    }
    Ok(notes.join(" | "))
}

pub(super) fn limited() -> Outcome {
    if let Some(outcome) = without_iperf() {
        return outcome;
    }
    const LIMIT: u64 = 1_000_000;
    let files = vec![tap("tap-l")?];
    let limits = Limits { bytes_per_second: Some(LIMIT), burst_bytes: Some(100_000), ..Limits::default() };
    let net = |mac| NetConfig {
        limits: Some(NetLimits { receive: limits, transmit: limits }),
        ..NetConfig::new(mac, TapRef::Fd(5))
    };
    let _guest = Guest::start("net-limit", 2, net, files, 1, "")?;
    round_trip("10.9.0.2", 20)?;
    let mut notes = Vec::new();
    for (way, words) in [("to", &["--time", "3"][..]), ("from", &["--time", "3", "--reverse"])] {
        let flow = iperf("10.9.0.2", words)?;
        // Payload is less than the frames that are counted; the burst and a queue of frames come on top.
        let most = (LIMIT as f64 * flow.seconds + 400_000.0) * 1.2;
        if flow.bytes > most {
            return Err(format!("{way} the guest: {} bytes in {} s", flow.bytes, flow.seconds));
        }
        notes.push(format!("{way} {:.2} MB/s", flow.rate()));
    }
    Ok(format!("limit 1 MB/s: {}", notes.join(", ")))
}
