//! One guest and another over bridges, as an app talks with what is outside: both paths, both directions, TCP in large
//! segments and frame by frame, UDP; what a byte costs the first guest's VM.
//!
//! The wrong way to compare the paths would be a guest for each: emulation slows down and speeds up with the machine below
//! it. Here one guest has a card for each path, flows go over them in turn, and a ratio is of neighbours. Nor may the host
//! itself be at the other end: a third to half of what the threads of the path did would be the host's TCP, which an app's
//! host has no part in.

use std::os::fd::OwnedFd;

use holdfast_model::contract::vm::{MacAddress, NetConfig, TapRef, VhostRef};

use super::{Flow, Guest, bridge, iperf_in, round_trip, tap_on, vhost, without_iperf};
use crate::host::{Outcome, cmdline_word, figure, text};
use crate::support::configure;

/// Longest Ethernet frame of an MTU of 1500 bytes.
const FRAME: f64 = 1514.0;
/// What iperf3 is told where the peer is to send.
const REVERSE: &str = "--reverse";

/// What is measured.
struct Kind {
    name: &'static str,
    /// What iperf3 is told.
    words: &'static [&'static str],
    size: Size,
}

/// What the cards carry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    /// TCP in segments of up to 64 KiB: what each byte costs.
    Segments,
    /// Frames of an MTU of 1500 bytes, for neither end leaves segmentation to its card: what each frame costs.
    Frames,
}

const KINDS: [Kind; 6] = [
    Kind { name: "TCP to guest", words: &["--time", "2", REVERSE], size: Size::Segments },
    Kind { name: "TCP from guest", words: &["--time", "2"], size: Size::Segments },
    Kind { name: "TCP to guest in 1514-byte frames", words: &["--time", "2", REVERSE], size: Size::Frames },
    Kind { name: "TCP from guest in 1514-byte frames", words: &["--time", "2"], size: Size::Frames },
    Kind { name: "UDP to guest", words: &["--udp", "--bitrate", "100M", "--time", "1", REVERSE], size: Size::Frames },
    Kind { name: "UDP from guest", words: &["--udp", "--bitrate", "100M", "--time", "1"], size: Size::Frames },
];

/// A card of the guest, 10.8.`number`.2, on a bridge where 10.8.`number`.3 is its peer's and 10.8.`number`.1 the host's.
struct Card {
    number: u8,
    through_vhost: bool,
    size: Size,
}

/// Beside each other: the two paths. One pair of cards for each size of what goes over them.
const CARDS: [[Card; 2]; 2] = [
    [
        Card { number: 0, through_vhost: false, size: Size::Segments },
        Card { number: 1, through_vhost: true, size: Size::Segments },
    ],
    [
        Card { number: 2, through_vhost: false, size: Size::Frames },
        Card { number: 3, through_vhost: true, size: Size::Frames },
    ],
];

impl Card {
    fn bridge(&self) -> String {
        format!("br-t{}", self.number)
    }

    fn tap(&self) -> String {
        format!("tap-t{}", self.number)
    }

    /// Bytes and frames that went this way over the tap.
    fn counted(&self, to_guest: bool) -> Result<[f64; 2], String> {
        let way = if to_guest { "tx" } else { "rx" };
        let read = |what: &str| {
            let path = format!("/sys/class/net/{}/statistics/{way}_{what}", self.tap());
            std::fs::read_to_string(&path).map_err(text)?.trim().parse::<f64>().map_err(text)
        };
        Ok([read("bytes")?, read("packets")?])
    }
}

/// What one flow over one card came to.
struct Measured {
    flow: Flow,
    /// MB over the tap in a second of the data path's CPU, and of the whole process's.
    per_cpu: [f64; 2],
    /// Mean bytes of a frame on the tap.
    frame: f64,
}

pub(super) fn guest_and_guest() -> Outcome {
    if let Some(outcome) = without_iperf() {
        return outcome;
    }
    for card in CARDS.iter().flatten() {
        bridge(&card.bridge())?;
        configure(&card.bridge(), [10, 8, card.number, 1].into()).map_err(text)?;
    }
    let _peer = start("net-peer", 3, |card| (format!("tap-p{}", card.number), true))?;
    let guest = start("net-paths", 2, |card| (card.tap(), card.through_vhost))?;
    let mut note = String::new();
    for Card { number, through_vhost, .. } in &CARDS[0] {
        let path = if *through_vhost { "vhost-net" } else { "user space" };
        note += &format!("median round trip {:.0} us ({path}), ", round_trip(&format!("10.8.{number}.2"), 200)?);
    }
    // TCP in large segments, both ways: MB for a CPU second of the data path.
    let (mut user_sum, mut vhost_sum) = (0.0, 0.0);
    for _ in 0..cmdline_word("nested.runs=").parse().unwrap_or(1) {
        for kind in &KINDS {
            let [user, vhost] = CARDS.iter().find(|[card, _]| card.size == kind.size).ok_or("no card")?;
            let [user, vhost] = [measure(&guest, user, kind)?, measure(&guest, vhost, kind)?];
            let (name, ratio) = (kind.name, vhost.per_cpu[0] / user.per_cpu[0]);
            figure(&format!("{name}, bytes for each CPU second, user space"), user.per_cpu[0], "MB/CPU s");
            figure(&format!("{name}, bytes for each CPU second, vhost-net"), vhost.per_cpu[0], "MB/CPU s");
            figure(&format!("{name}, bytes for each CPU second, vhost-net to user space"), ratio, "");
            note += &format!("| {name}: user space {user}, vhost-net {vhost}, data path {ratio:.2}x ");
            if kind.size == Size::Segments {
                user_sum += user.per_cpu[0];
                vhost_sum += vhost.per_cpu[0];
            }
        }
    }
    // How much cheaper vhost is, is for a real processor to say; that it is not dearer holds even in emulation.
    if vhost_sum > user_sum * 0.8 { Ok(note) } else { Err(note) }
}

/// A guest at 10.8.x.`last` with a card on each bridge: tap, and whether through vhost.
fn start(name: &str, last: u8, tap: impl Fn(&Card) -> (String, bool)) -> Result<Guest, String> {
    let (mut files, mut nets, mut addresses, mut frame_by_frame) = (Vec::<OwnedFd>::new(), vec![], vec![], vec![]);
    // 4 is the console's.
    let mut fds = 5..;
    for card in CARDS.iter().flatten() {
        let number = card.number;
        let (tap, through_vhost) = tap(card);
        files.push(tap_on(&card.bridge(), &tap)?);
        let tap = TapRef::Fd(fds.next().unwrap_or_default());
        let mut net = NetConfig::new(MacAddress([2, 0, 0, last, 10, number]), tap);
        if through_vhost {
            files.push(vhost()?);
            net.vhost = fds.next().map(VhostRef::Fd);
        }
        nets.push(net);
        addresses.push(format!("10.8.{number}.{last}"));
        if card.size == Size::Frames {
            frame_by_frame.push(format!("eth{number}"));
        }
    }
    let words = format!("nested.address={} nested.frames={}", addresses.join(","), frame_by_frame.join(","));
    Guest::start_with(name, nets, files, 1, &words)
}

/// Lets one flow go over one card.
fn measure(guest: &Guest, card: &Card, kind: &Kind) -> Result<Measured, String> {
    let to_guest = kind.words.contains(&REVERSE);
    let peer = format!("10.8.{}.3", card.number);
    let words: Vec<&str> = ["--client", &peer, "--connect-timeout", "5000"].iter().chain(kind.words).copied().collect();
    let (counted, cpu) = (card.counted(to_guest)?, guest.cpu());
    let flow = iperf_in("10.8.0.2", &words)?;
    let (after, cpu_after) = (card.counted(to_guest)?, guest.cpu());
    let bytes = after[0] - counted[0];
    let frame = bytes / (after[1] - counted[1]).max(1.0);
    if (frame > FRAME) != (card.size == Size::Segments) {
        return Err(format!("{}: frames of {frame:.0} bytes on {}", kind.name, card.tap()));
    }
    if flow.bytes > bytes {
        return Err(format!("{}: {} bytes received, {bytes} went over {}", kind.name, flow.bytes, card.tap()));
    }
    let (data, vcpus) = (cpu_after.1 - cpu.1, cpu_after.0 - cpu.0);
    let cost = |seconds: f64| bytes / seconds.max(0.01) / 1e6;
    Ok(Measured { flow, per_cpu: [cost(data), cost(data + vcpus)], frame })
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Flow { lost_percent, .. }, [data, all]) = (self.flow, self.per_cpu);
        let (rate, frame) = (self.flow.rate(), self.frame);
        write!(
            f,
            "{rate:.0} MB/s {lost_percent:.0} % lost in {frame:.0}-byte frames ({data:.0} MB per data-path CPU s, "
        )?;
        write!(f, "{all:.0} per process CPU s)")
    }
}
