//! Guests that write nonsense to every device for a bounded time, beside one that minds its own business.
//!
//! A round is a seed: the same seed makes the same guest (`NESTED_SEED` picks the first). It may end by itself (exit codes
//! 0 and 10), be ended for what it did (11, with a sentence that says what) or live until its time is up (12). Anything
//! else, a crash of the VMM above all, fails the test.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use holdfast_model::contract::vm::{
    BalloonConfig, ConsoleConfig, DiskConfig, FileRef, NetConfig, SerialConfig, TapRef, VhostRef, VmConfig, VsockConfig,
};
use holdfast_vmm::control::ControlClient;

use crate::guest::{Role, say};
use crate::host::{
    CONTROL, JAIL, Lines, Outcome, Scenario, cmdline_word, config, exit_code, expect_code, open, pipe, spawn_with, tap,
    tap_at, text,
};
use crate::script::{COMMON, Function, MEMORY, MEMORY_END, Op, Ring, STATUS, Script};
use crate::support::{configure, power_off};

pub const SCENARIOS: &[Scenario] =
    &[Scenario { name: "storms_of_nonsense_end_only_the_guest_that_makes_them", run: storms }];

pub const ROLES: &[Role] = &[Role { name: "innocent", play: innocent }];

/// First seed when none is asked for.
const SEED: u64 = 1;
/// Rounds, and the time for all of them.
const ROUNDS: u64 = 150;
const TIME: Duration = Duration::from_secs(60);
/// What one round may take before it is stopped.
const ROUND_TIME: Duration = Duration::from_millis(1500);
const IMAGE: &str = "/run/storm.elf";
const STORM_CONTROL: &str = "/run/storm";
const STORM_DISK: &str = "/run/storm.img";

fn storms() -> Outcome {
    let (reader, writer) = pipe()?;
    let mut beside = config("beside", "innocent");
    beside.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    beside.control = Some(FileRef::Path(CONTROL.into()));
    beside.jail = JAIL;
    beside.nets = vec![NetConfig::new("02:00:00:00:00:09".parse().map_err(text)?, TapRef::Fd(5))];
    let (mut innocent, _errors) = spawn_with(&beside, vec![writer.into(), tap("tap0")?.into()])?;
    let lines = Lines::of(reader);
    lines.wait("guest: innocent")?;
    std::fs::write(STORM_DISK, vec![0; 1 << 20]).map_err(text)?;

    let first = cmdline_word("nested.seed=").parse().unwrap_or(SEED);
    println!("nested: seeds from {first}");
    let (started, mut ends, mut reasons, mut rounds) = (Instant::now(), BTreeMap::new(), BTreeMap::new(), 0u64);
    for seed in first..first + ROUNDS {
        if started.elapsed() > TIME {
            break;
        }
        let (code, reason) = round(seed).map_err(|e| format!("seed {seed}: {e}"))?;
        *ends.entry(code).or_insert(0) += 1;
        if code == 11 {
            // Numbers aside, so that like is counted with like.
            let kind: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
            *reasons.entry(kind).or_insert(0) += 1;
        }
        rounds += 1;
        if rounds.is_multiple_of(10) {
            still_there(rounds).map_err(|e| format!("the guest beside, after seed {seed}: {e}"))?;
        }
    }
    still_there(rounds).map_err(|e| format!("the guest beside, in the end: {e}"))?;
    ControlClient::connect(CONTROL).map_err(text)?.power_button().map_err(text)?;
    expect_code(&mut innocent, 0)?;
    for (reason, count) in &reasons {
        println!("storm: {count:3} {reason}");
    }
    if rounds < 20 || reasons.len() < 8 {
        return Err(format!("{rounds} rounds with {} different reasons are no storm: {ends:?}", reasons.len()));
    }
    Ok(format!("{rounds} rounds from seed {first}, by exit code {ends:?}, {} different reasons", reasons.len()))
}

/// Starts a VM for `seed` and sees how it ends.
fn round(seed: u64) -> Result<(i32, String), String> {
    let (config, files) = everything(seed)?;
    storm(seed, functions(&config)).save(IMAGE)?;
    let (mut child, errors) = spawn_with(&config, files)?;
    let started = Instant::now();
    let ended = loop {
        if child.try_wait().map_err(text)?.is_some() {
            break true;
        }
        if started.elapsed() > ROUND_TIME {
            break false;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if !ended {
        // One that does not answer is ending already, or does not end: both show next.
        let _ = ControlClient::connect(STORM_CONTROL).and_then(|mut c| c.stop(Duration::ZERO));
    }
    let code = exit_code(&mut child)?;
    match code {
        0 => Ok((code, String::new())),
        10..=12 => {
            let reason = errors.wait("vmm storm:").map_err(|_| format!("exit code {code} without a word"))?;
            if reason.is_empty() { Err(format!("exit code {code} without a reason")) } else { Ok((code, reason)) }
        }
        code => Err(format!("exit code {code}: {}", errors.remaining())),
    }
}

/// A VM with every device that there is, twice where that makes a difference.
fn everything(seed: u64) -> Result<(VmConfig, Vec<OwnedFd>), String> {
    let mut config = VmConfig::new("storm", FileRef::Path(IMAGE.into()));
    (config.memory_mib, config.jail) = (32, JAIL);
    let image = || FileRef::Path(STORM_DISK.into());
    let mut still = DiskConfig::new("still", image());
    still.read_only = true;
    config.disks = vec![DiskConfig::new("data", image()), still];
    // One of the two at a time: an image has one writer.
    config.disks.swap_remove(if seed.is_multiple_of(4) { 0 } else { 1 });
    let mac = |n: u8| format!("02:00:00:00:01:{n:02x}").parse().map_err(text);
    let mut kernel = NetConfig::new(mac(1)?, TapRef::Fd(4));
    kernel.vhost = Some(VhostRef::Fd(5));
    config.nets = vec![kernel, NetConfig::new(mac(2)?, TapRef::Fd(6))];
    config.console = Some(ConsoleConfig::to(FileRef::Fd(7)));
    config.serial = Some(SerialConfig::to(FileRef::Fd(8)));
    config.control = Some(FileRef::Path(STORM_CONTROL.into()));
    config.vsock = Some(VsockConfig { cid: 50, vhost: FileRef::Fd(9) });
    config.balloon = Some(BalloonConfig::default());
    let (mut reader, writer) = pipe()?;
    // What such a guest prints is nonsense too.
    std::thread::spawn(move || {
        let mut sink = [0; 4096];
        while reader.read(&mut sink).is_ok_and(|n| n > 0) {}
    });
    let serial = writer.try_clone().map_err(text)?;
    let files: Vec<OwnedFd> = vec![
        tap_at("tap1", [10, 9, 1, 1])?.into(),
        open("/dev/vhost-net", true)?.into(),
        tap_at("tap2", [10, 9, 2, 1])?.into(),
        writer.into(),
        serial.into(),
        open("/dev/vhost-vsock", true)?.into(),
    ];
    Ok((config, files))
}

/// How many virtio functions a VM of `config` has: device numbers 1 to this.
fn functions(config: &VmConfig) -> u64 {
    let one_each = [config.console.is_some(), config.rng, config.vsock.is_some(), config.balloon.is_some()];
    (config.disks.len() + config.nets.len()) as u64 + one_each.into_iter().map(u64::from).sum::<u64>()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// True once in `n` times.
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Addresses that are mostly good, else at an edge, in a device, or anywhere.
    fn address(&mut self, ring: &Ring) -> u64 {
        match self.below(24) {
            0 => MEMORY_END - self.below(64),
            1 => self.number(),
            2 => 0xc000_0000 + self.below(0x8_0000),
            3 => MEMORY + self.below(MEMORY_END - MEMORY),
            4 => ring.table + 16 * self.below(ring.size),
            _ => ring.buffers + self.below(0x7000),
        }
    }
}

/// What a storm is about; each gets further when it leaves the rest in peace.
#[derive(Clone, Copy, PartialEq)]
enum Temper {
    /// Devices brought up well, then rings of nonsense.
    Rings,
    /// Registers of the transport.
    Registers,
    /// Configuration space, BARs, MSI-X.
    Config,
    /// All of it, ports and interrupt controllers too.
    All,
}

/// The nonsense of `seed` for a VM with this many functions.
fn storm(seed: u64, functions: u64) -> Script {
    let mut random = Random(seed);
    let mut script = Script::default();
    let temper =
        [Temper::Rings, Temper::Rings, Temper::Registers, Temper::Config, Temper::All][random.below(5) as usize];
    // In most rounds one device has all the attention: a device that ends the VM early hides the others.
    let all: Vec<Function> = (1..=functions).map(|number| Function { number }).collect();
    let chosen = if random.once_in(3) { all.clone() } else { vec![all[random.below(functions) as usize]] };
    let mut rings = Vec::new();
    for function in &chosen {
        function.enable(&mut script);
        rings.push(bring_up(&mut random, &mut script, *function));
    }
    let start = script.here();
    for _ in 0..400 + random.below(1200) {
        let which = random.below(chosen.len() as u64) as usize;
        let (function, rings) = (chosen[which], &rings[which]);
        let ring = rings[random.below(rings.len() as u64) as usize];
        let subject = match temper {
            Temper::All => random.below(8),
            // Mostly the one subject; sometimes a device starts anew.
            _ if random.once_in(60) => 7,
            Temper::Rings => 0,
            Temper::Registers => 2,
            Temper::Config => 3 + random.below(2),
        };
        match subject {
            0 | 1 => ring_nonsense(&mut random, &mut script, function, &ring),
            2 => register_nonsense(&mut random, &mut script, function),
            3 => config_nonsense(&mut random, &mut script, function),
            4 => msix_nonsense(&mut random, &mut script, function),
            5 => port_nonsense(&mut random, &mut script),
            6 => chip_nonsense(&mut random, &mut script),
            _ => {
                bring_up(&mut random, &mut script, function);
            }
        }
    }
    // The same list over devices in another state, then the end.
    let counter = MEMORY_END - 0x1000;
    let mut whole = Script::default();
    let before = whole.here();
    whole.put(Op::Write64, counter, 2 + random.below(3));
    let moved = whole.here() - before;
    whole.append(&script);
    whole.push(Op::Repeat, counter, start + moved).power_off();
    whole
}

/// Brings a function up, mostly well, on rings that hold something already.
fn bring_up(random: &mut Random, script: &mut Script, function: Function) -> Vec<Ring> {
    // Of 64 entries is the smallest queue; sizes that are too large end the VM, so they are rare.
    let sizes = [16, 16, 32, 64, 64, 256];
    let rings: Vec<Ring> = (0..6)
        .map(|index| {
            let size = if random.once_in(40) { random.below(0x1_0000) } else { sizes[random.below(5) as usize] };
            let mut ring = function.ring(index, size.max(1));
            if random.once_in(60) {
                let address = random.address(&ring);
                (ring.table, ring.avail, ring.used) = (address & !15, ring.avail, ring.used);
            }
            ring
        })
        .collect();
    for ring in rings.iter().filter(|ring| ring.size <= 256) {
        for n in 0..ring.size.min(16) {
            descriptor(random, script, ring, n);
            script.push(Op::Write16, ring.avail + 4 + 2 * n, random.below(ring.size + 1));
        }
        let index = random.below(ring.size.min(16));
        script.push(Op::Write16, ring.avail + 2, index).push(Op::Write16, ring.used + 2, 0);
    }
    // EVENT_IDX and INDIRECT_DESC, or what comes; features that were not offered are refused.
    let features = match random.below(8) {
        0 => random.number() & 0xffff_ffff,
        1 | 2 => 0,
        n => (n & 1) << 28 | (n >> 1 & 1) << 29,
    };
    function.bring_up(script, features, &rings);
    if random.once_in(2) {
        // MSI-X on, some vectors open.
        script.push(Op::Write16, function.config() + 0x40 + 2, 0x8000);
        for vector in 0..3 {
            let entry = function.bar() + 0x4000 + 16 * vector;
            script.push(Op::Write32, entry, 0xfee0_0000).push(Op::Write32, entry + 8, 0x40 + vector);
            script.push(Op::Write32, entry + 12, 0);
        }
    }
    rings.into_iter().filter(|ring| ring.size <= 256).collect()
}

/// A descriptor that is nearly right, over a buffer that holds nearly a request.
fn descriptor(random: &mut Random, script: &mut Script, ring: &Ring, n: u64) {
    let (addr, mut flags) = (random.address(ring), [0, 1, 1, 2, 3, 3][random.below(6) as usize]);
    let len = match random.below(12) {
        0 => random.number() & 0xffff_ffff,
        1 => 0,
        2 => 16 * (1 + random.below(8)),
        _ => [1, 8, 12, 16, 512, 1024, 4096, 1526][random.below(8) as usize],
    };
    if random.once_in(16) {
        flags = random.below(8);
    }
    let next = if random.once_in(12) { random.below(0x1_0000) } else { (n + 1 + random.below(2)) % ring.size };
    ring.descriptor(script, n, addr, len, flags, next);
    if (MEMORY..MEMORY_END - 64).contains(&addr) {
        // A block request's type and sector, a frame's header, a control message: small numbers all.
        let small = if random.once_in(6) { random.number() } else { random.below(16) };
        script.push(Op::Write64, addr & !7, small).push(Op::Write64, (addr & !7) + 8, random.below(4096));
    }
}

fn ring_nonsense(random: &mut Random, script: &mut Script, function: Function, ring: &Ring) {
    match random.below(10) {
        0..4 => {
            let n = random.below(ring.size);
            descriptor(random, script, ring, n);
        }
        4 | 5 => {
            let head = if random.once_in(20) { random.below(0x1_0000) } else { random.below(ring.size) };
            script.push(Op::Write16, ring.avail + 4 + 2 * random.below(ring.size), head);
        }
        6 => {
            // Mostly a little ahead of where an honest driver would be.
            let index = if random.once_in(30) { random.below(0x1_0000) } else { random.below(ring.size) };
            script.push(Op::Write16, ring.avail + 2, index);
        }
        7 => script.put(Op::Write16, ring.avail, random.below(4)),
        8 => script.put(Op::Spin, 0, 1 + random.below(20_000)),
        _ => {}
    }
    script.push(Op::Write16, function.doorbell(ring.index), ring.index);
}

fn register_nonsense(random: &mut Random, script: &mut Script, function: Function) {
    let (mut offset, op) = COMMON[random.below(COMMON.len() as u64) as usize];
    let mut value = random.number();
    match offset {
        // Sizes and statuses that end the VM at once leave nothing to see.
        0x18 if !random.once_in(20) => value = 1 << random.below(7),
        0x1c if !random.once_in(20) => value = 1,
        0x14 if !random.once_in(20) => value = [0, 1, 3, 0xb, 0xf, 0x8f][random.below(6) as usize],
        0x16 => value = random.below(8),
        _ => {}
    }
    match random.below(12) {
        // Any width anywhere in the BAR.
        0 => offset = random.below(0x8000),
        // Device configuration.
        1 => offset = 0x2000 + random.below(0x40),
        2 => {
            let op = [Op::Read8, Op::Read16, Op::Read32, Op::Read64][random.below(4) as usize];
            script.push(op, function.bar() + random.below(0x8000), 0);
            return;
        }
        3 => {
            script.push(Op::Read8, function.bar() + 0x1000, 0);
            return;
        }
        4 => script.put(STATUS.1, function.bar() + STATUS.0, 0),
        _ => {}
    }
    script.push(op, function.bar() + offset, value);
}

fn config_nonsense(random: &mut Random, script: &mut Script, function: Function) {
    let op = [Op::Write8, Op::Write16, Op::Write32][random.below(3) as usize];
    match random.below(8) {
        // The BAR: elsewhere, over another's, over memory, gone.
        0 => {
            let bar = [0xc000_8000, 0xc000_0000 + 0x8000 * random.below(8), 0x100_0000, random.number()];
            script.push(Op::Write32, function.config() + 0x10, bar[random.below(4) as usize]);
        }
        1 => script.put(Op::Write16, function.config() + 4, random.below(8)),
        2 => script.put(Op::Read32, function.config() + 4 * random.below(1024), 0),
        // Another device, another function, another bus.
        3 => script.put(op, 0xe000_0000 + random.below(0x10_0000), random.number()),
        // The way to the BAR through configuration space: offset, length, data.
        4 => {
            for at in (0x40..0xa0).step_by(4) {
                script.push(Op::Write32, function.config() + at, [0x14, 0x18, 4, 1, 2][random.below(5) as usize]);
            }
        }
        _ => script.put(op, function.config() + random.below(256), random.number()),
    }
}

fn msix_nonsense(random: &mut Random, script: &mut Script, function: Function) {
    let table = function.bar() + 0x4000;
    match random.below(6) {
        0 => script.put(Op::Read64, function.bar() + 0x5000, 0),
        // The capability's control word, wherever it is.
        1 => script.put(Op::Write16, function.config() + 0x42 + 2 * random.below(0x40), random.number()),
        2 => script.put(Op::Write32, table + 16 * random.below(4) + 12, random.below(2)),
        3 => script.put(Op::Write64, table + 8 * random.below(64), random.number()),
        4 => script.put(Op::Write32, table + 16 * random.below(4) + 8, random.number()),
        _ => script.put(Op::Write32, table + 4 * random.below(0x400), random.number()),
    }
}

fn port_nonsense(random: &mut Random, script: &mut Script) {
    let op = [Op::Out8, Op::Out16, Op::Out32][random.below(3) as usize];
    match random.below(6) {
        0 => script.put(Op::Out32, 0xcf8, 0x8000_0000 | random.below(0x1_0000)),
        1 => script.put(op, 0xcfc + random.below(4), random.number()),
        2 => script.put(op, 0x3f8 + random.below(8), random.number()),
        // Not S5 and not the reset register, which end the round.
        3 => script.put(op, 0x600 + random.below(4), random.number()),
        4 => script.put([Op::In8, Op::In16, Op::In32][random.below(3) as usize], random.below(0x1_0000), 0),
        _ => script.put(Op::Out8, 0x70 + random.below(0x500), random.number()),
    }
}

fn chip_nonsense(random: &mut Random, script: &mut Script) {
    match random.below(8) {
        0 => script.put(Op::Write32, 0xfec0_0000 + 16 * random.below(2), random.below(64)),
        1 => script.put(Op::Write32, 0xfee0_0000 + 16 * random.below(64), random.number()),
        2 => script.put(Op::Write32, 0xc000_0000 + 4 * random.below(0x800_0000), random.number()),
        3 => script.put(Op::Read64, 0xc000_0000 + 8 * random.below(0x400_0000), 0),
        4 if random.once_in(10) => script.put(Op::Wrmsr, random.number() & 0xffff_ffff, random.number()),
        5 if random.once_in(10) => script.put(Op::Write64, random.below(0x1_0000), random.number()),
        _ => script.put(Op::Write64, MEMORY + 8 * random.below(0x10_0000), random.number()),
    }
}

/// The guest beside answers over its network, and its VMM over the control socket.
fn still_there(rounds: u64) -> Result<(), String> {
    let line = format!("round {rounds}\n");
    let answer = super::whole::echo_line(&line).map_err(text)?;
    if answer != line {
        return Err(format!("answered {answer:?} to {line:?}"));
    }
    ControlClient::connect(CONTROL).map_err(text)?.ping().map(drop).map_err(text)
}

fn innocent() {
    if let Err(e) = configure("eth0", std::net::Ipv4Addr::new(10, 9, 0, 2)) {
        say(&format!("no network: {e}"));
    }
    std::thread::spawn(super::whole::echo);
    super::whole::wait_for_button("innocent");
    power_off();
}
