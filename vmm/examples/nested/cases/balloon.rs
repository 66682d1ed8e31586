//! Memory that comes back from the guest. The wrong way to see it would be to ask the guest: these scenarios look at what
//! the host holds for it (`Rss` of the guest's RAM in the VMM's own map).

use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_model::contract::vm::MemoryStats;
use holdfast_model::contract::vm::{BalloonConfig, ConsoleConfig, FileRef, VsockConfig};
use holdfast_vmm::control::ControlClient;

use super::vsock::GUEST_PORT;
use crate::guest::{Role, say};
use crate::host::{
    CONTROL, JAIL, Lines, OVERHEAD_BUDGET_KIB, Outcome, Scenario, config, expect_code, open, overhead_kib, pipe,
    processes, spawn_with, text,
};
use crate::sockets::{Talk, connect, serve};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "balloon_reporting_alone_returns_what_the_guest_frees", run: reporting },
    Scenario { name: "balloon_takes_gives_back_and_yields_when_the_guest_runs_out", run: inflation },
];

pub const ROLES: &[Role] = &[Role { name: "balloon", play }];

const MEMORY_MIB: u32 = 256;
/// What the guest touches and frees.
const USED_MIB: u64 = 96;
const MIB: u64 = 1 << 20;
/// The guest's kernel collects for two seconds before it reports; emulation is slow.
const PATIENCE: Duration = Duration::from_secs(60);

struct Vm {
    child: Child,
    talk: Talk,
    client: ControlClient,
    _lines: (Lines, Lines),
}

impl Vm {
    fn start(name: &str, balloon: BalloonConfig) -> Result<Self, String> {
        let (reader, writer) = pipe()?;
        let mut config = config(name, "balloon");
        config.memory_mib = MEMORY_MIB;
        config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
        config.vsock = Some(VsockConfig { cid: 77, vhost: FileRef::Fd(5) });
        config.balloon = Some(balloon);
        config.control = Some(FileRef::Path(CONTROL.into()));
        config.jail = JAIL;
        let files: Vec<OwnedFd> = vec![writer.into(), open("/dev/vhost-vsock", true)?.into()];
        let (child, errors) = spawn_with(&config, files)?;
        let lines = Lines::of(reader);
        lines.wait("guest: listening")?;
        let talk = Talk::new(connect(libc::SOCK_STREAM, 77, GUEST_PORT).map_err(text)?);
        let client = ControlClient::connect(CONTROL).map_err(text)?;
        Ok(Self { child, talk, client, _lines: (lines, errors) })
    }

    fn ask(&mut self, line: &str) -> Outcome {
        match self.talk.ask(line) {
            Ok(reply) if reply.starts_with("FAILED") => Err(format!("guest: {line}: {reply}")),
            Ok(reply) => Ok(reply),
            Err(e) => Err(format!("guest: {line}: {e}")),
        }
    }

    /// MiB of programs' memory that the guest could still give.
    fn available(&mut self) -> Result<u64, String> {
        self.ask("available")?.parse().map_err(text)
    }

    fn memory(&mut self) -> Result<MemoryStats, String> {
        self.client.stats().map_err(text)?.memory.ok_or("stats hold no memory".into())
    }

    /// MiB of the guest's RAM that the host holds.
    fn resident(&self) -> u64 {
        let held = |id: &u32| {
            let maps = std::fs::read_to_string(format!("/proc/{id}/smaps")).unwrap_or_default();
            let (mut is_guest, mut kib) = (false, 0);
            for line in maps.lines() {
                let range = line.split(' ').next().and_then(|range| range.split_once('-'));
                if let Some((Ok(from), Ok(to))) =
                    range.map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16)))
                {
                    is_guest = to - from >= u64::from(MEMORY_MIB) * MIB;
                }
                if let Some(rest) = line.strip_prefix("Rss:").filter(|_| is_guest) {
                    kib += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
                }
            }
            kib
        };
        processes(&self.child).iter().map(held).sum::<u64>() / 1024
    }

    /// Waits until `done` says so, and says what was seen last when it does not.
    fn wait(&mut self, what: &str, done: impl Fn(&mut Self) -> Result<bool, String>) -> Result<Duration, String> {
        let started = Instant::now();
        while !done(self)? {
            if started.elapsed() > PATIENCE {
                let (resident, memory) = (self.resident(), self.memory()?);
                return Err(format!("not within {PATIENCE:?}: {what}; {resident} MiB resident, {memory:?}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(started.elapsed())
    }

    fn end(mut self) -> Result<(), String> {
        self.talk.say("off").map_err(text)?;
        expect_code(&mut self.child, 0)
    }
}

fn reporting() -> Outcome {
    let mut vm = Vm::start("reporting", BalloonConfig::default())?;
    let idle = vm.resident();
    vm.ask(&format!("touch {USED_MIB}"))?;
    let busy = vm.resident();
    if busy < USED_MIB {
        return Err(format!("{busy} MiB resident although the guest has touched {USED_MIB}"));
    }
    let before = vm.memory()?.reported_bytes;
    vm.ask("free")?;
    let took = vm.wait("resident memory falls", |vm| Ok(vm.resident() + USED_MIB * 3 / 4 <= busy))?;
    let after = vm.resident();
    let reported = (vm.memory()?.reported_bytes - before) / MIB;
    if reported < USED_MIB * 3 / 4 {
        return Err(format!("{reported} MiB were reported, expected most of {USED_MIB}"));
    }
    // What was given back can be had again, and reads as the guest left it: fresh.
    vm.ask(&format!("touch {USED_MIB}"))?;
    vm.ask("free")?;
    // The guest's own figures, fresher with each question.
    vm.wait("the guest's figures come", |vm| Ok(vm.memory()?.guest.is_some_and(|guest| guest.free_bytes.is_some())))?;
    let guest = vm.memory()?.guest.unwrap_or_default();
    let total = guest.total_bytes.unwrap_or(0) / MIB;
    if !(u64::from(MEMORY_MIB) / 2..u64::from(MEMORY_MIB)).contains(&total) || guest.available_bytes.is_none() {
        return Err(format!("the guest says {guest:?}"));
    }
    vm.client.pause().map_err(text)?;
    vm.memory()?;
    vm.client.resume().map_err(text)?;
    let overhead = overhead_kib(&vm.child, u64::from(MEMORY_MIB) * MIB);
    vm.end()?;
    if overhead > OVERHEAD_BUDGET_KIB {
        return Err(format!("{overhead} KiB beyond guest memory, budget {OVERHEAD_BUDGET_KIB} KiB"));
    }
    Ok(format!(
        "resident {idle} MiB idle, {busy} with {USED_MIB} touched, {after} after they were freed ({} ms); reported \
         {reported} MiB; overhead {overhead} KiB",
        took.as_millis()
    ))
}

fn inflation() -> Outcome {
    const TARGET_MIB: u32 = 160;
    let target = u64::from(TARGET_MIB);
    let mut vm = Vm::start("inflation", BalloonConfig { free_page_reporting: false, deflate_on_oom: true })?;
    vm.ask(&format!("touch {USED_MIB}"))?;
    vm.ask("free")?;
    let held = vm.resident();
    let free = vm.available()?;
    vm.client.balloon(TARGET_MIB).map_err(text)?;
    let full = move |vm: &mut Vm| Ok(vm.memory()?.balloon_bytes == target * MIB);
    let inflated = vm.wait("the balloon is full", full)?;
    let (squeezed, left) = (vm.resident(), vm.available()?);
    if left + target * 3 / 4 > free || squeezed + USED_MIB / 2 > held {
        return Err(format!("full balloon: available {free} -> {left} MiB, resident {held} -> {squeezed} MiB"));
    }
    // Wrong targets are refused and change nothing.
    match vm.client.balloon(MEMORY_MIB) {
        Err(e) if e.to_string().contains("expected at most 224") => {}
        other => return Err(format!("a target of all memory: {other:?}")),
    }
    vm.client.balloon(0).map_err(text)?;
    vm.wait("the balloon is empty", |vm| Ok(vm.memory()?.balloon_bytes == 0))?;
    let back = vm.available()?;
    if back + 8 < free {
        return Err(format!("empty balloon: {back} MiB available, before it was {free}"));
    }
    // The guest needs more than the balloon leaves it: the balloon yields, no program ends.
    vm.client.balloon(TARGET_MIB).map_err(text)?;
    vm.wait("the balloon is full again", full)?;
    let need = vm.available()? + 24;
    vm.ask(&format!("touch {need}"))?;
    let yielded = TARGET_MIB as u64 - vm.memory()?.balloon_bytes / MIB;
    if yielded == 0 {
        return Err(format!("the guest touched {need} MiB and the balloon is still full"));
    }
    vm.end()?;
    Ok(format!(
        "balloon of {target} MiB in {} ms: available {free} -> {left} -> {back} MiB, resident {held} -> {squeezed} MiB; \
         {yielded} MiB yielded to a guest that needed {need}",
        inflated.as_millis()
    ))
}

fn play() {
    match serve(GUEST_PORT, answer) {
        Ok(()) => say("listening"),
        Err(e) => say(&format!("cannot listen: {e}")),
    }
}

/// Memory the guest holds on command.
static HELD: Mutex<Vec<u8>> = Mutex::new(Vec::new());

fn answer(line: &str, talk: &mut Talk) -> io::Result<String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    match word {
        "touch" => {
            let bytes = rest.parse::<usize>().map_err(io::Error::other)? << 20;
            let mut fresh = vec![0u8; bytes];
            for at in (0..bytes).step_by(4096) {
                // Memory that came back from the host must be as fresh as any.
                if fresh[at] != 0 {
                    return Err(io::Error::other(format!("byte {at} of new memory is not zero")));
                }
                fresh[at] = 0xa5;
            }
            *held = fresh;
            Ok("touched".into())
        }
        "free" => {
            *held = Vec::new();
            Ok("freed".into())
        }
        "available" => {
            let info = std::fs::read_to_string("/proc/meminfo")?;
            let kib = info.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
            let kib: u64 = kib.unwrap_or_default().parse().map_err(io::Error::other)?;
            Ok((kib >> 10).to_string())
        }
        _ => super::vsock::answer(line, talk),
    }
}
