//! Disks: what a guest gives back, how fast it may go, who may have the image, and what is there after a kill.
//!
//! The wrong way to see this would be to ask the guest: what it reads may come from its own cache. The image file is looked at
//! from outside.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Child;
use std::time::{Duration, Instant};

use holdfast_model::contract::vm::Limits;
use holdfast_model::contract::vm::{ConsoleConfig, DiskConfig, FileRef, VmConfig};

use crate::guest::{Role, say};
use crate::host::{DISK, JAIL, Lines, Outcome, Scenario, config, expect_code, open, pipe, processes, spawn_with, text};
use crate::support::{check, power_off};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "discard_gives_blocks_back_and_write_zeroes_leaves_zeros", run: discard },
    Scenario { name: "limited_disk_keeps_its_rate_over_two_seconds", run: limited },
    Scenario { name: "disk_in_use_is_refused_and_free_again_after_a_kill", run: locked },
    Scenario { name: "flushed_writes_are_in_the_image_after_a_kill", run: killed },
];

pub const ROLES: &[Role] = &[
    Role { name: "discard", play: play_discard },
    Role { name: "limited", play: play_limited },
    Role { name: "journal", play: play_journal },
];

const MIB: u64 = 1 << 20;

/// A VM that says its lines on descriptor 4, and the other end of that.
fn vm(name: &str, role: &str, disks: Vec<DiskConfig>) -> Result<(VmConfig, Lines, File), String> {
    let (reader, writer) = pipe()?;
    let mut config = config(name, role);
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    config.jail = JAIL;
    config.disks = disks;
    Ok((config, Lines::of(reader), writer))
}

fn disk(id: &str) -> DiskConfig {
    DiskConfig::new(id, FileRef::Path(DISK.into()))
}

/// A disk whose every byte is `FILLER`.
fn filled(mib: u64) -> Result<File, String> {
    std::fs::write(DISK, vec![FILLER; (mib * MIB) as usize]).map_err(text)?;
    open(DISK, true)
}

const FILLER: u8 = 0xee;
/// Ranges of the disk in MiB: what becomes of them.
const DISCARDED: (u64, u64) = (1, 2);
const ZEROED: (u64, u64) = (4, 1);
const UNMAPPED: (u64, u64) = (6, 1);

fn discard() -> Outcome {
    let image = filled(8)?;
    let (config, lines, writer) = vm("discard", "discard", vec![disk("data")])?;
    let before = image.metadata().map_err(text)?.blocks();
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    let queue = lines.wait("guest: queue")?;
    // discard_max_bytes, write_zeroes_max_bytes, physical_block_size
    let expected = format!("{} {} 4096", MIB << 10, MIB << 10);
    if queue != expected {
        return Err(format!("the guest's disk has {queue:?}, expected {expected:?}"));
    }
    let told = lines.wait("guest: discarded")?;
    if told != "ok" {
        return Err(told);
    }
    expect_code(&mut child, 0)?;
    let freed = before.saturating_sub(image.metadata().map_err(text)?.blocks()) * 512;
    // Zeroing without unmap keeps its blocks.
    let wanted = (DISCARDED.1 + UNMAPPED.1) * MIB;
    if freed != wanted {
        return Err(format!("{freed} bytes came back to the host, expected {wanted}"));
    }
    let content = std::fs::read(DISK).map_err(text)?;
    for (n, part) in (0u64..).zip(content.chunks(MIB as usize)) {
        let zero = [DISCARDED, ZEROED, UNMAPPED].iter().any(|(from, len)| (*from..from + len).contains(&n));
        let expected = if zero { 0 } else { FILLER };
        if part.iter().any(|byte| *byte != expected) {
            return Err(format!("MiB {n} is not {expected:#x} throughout"));
        }
    }
    Ok(format!("{} KiB came back", freed >> 10))
}

fn play_discard() {
    let limit = |name: &str| {
        std::fs::read_to_string(format!("/sys/block/vda/queue/{name}")).unwrap_or_default().trim().to_string()
    };
    let names = ["discard_max_bytes", "write_zeroes_max_bytes", "physical_block_size"];
    say(&format!("queue {}", names.map(limit).join(" ")));
    match discard_some() {
        Ok(()) => say("discarded ok"),
        Err(e) => say(&format!("discarded {e}")),
    }
    power_off()
}

fn discard_some() -> io::Result<()> {
    // linux/fs.h
    const BLKDISCARD: libc::Ioctl = 0x1277 as libc::Ioctl;
    const BLKZEROOUT: libc::Ioctl = 0x127f as libc::Ioctl;
    let disk = OpenOptions::new().read(true).write(true).open("/dev/vda")?;
    for (number, (from, len)) in [(BLKDISCARD, DISCARDED), (BLKZEROOUT, ZEROED)] {
        let range = [from * MIB, len * MIB];
        // SAFETY: reads two numbers.
        check(unsafe { libc::ioctl(disk.as_raw_fd(), number, &range) })?;
    }
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (from, len) = ((UNMAPPED.0 * MIB) as i64, (UNMAPPED.1 * MIB) as i64);
    // SAFETY: numbers only.
    check(unsafe { libc::fallocate(disk.as_raw_fd(), mode, from, len) })?;
    disk.sync_all()?;
    let mut block = vec![1; MIB as usize];
    for (from, _) in [DISCARDED, ZEROED, UNMAPPED] {
        disk.read_exact_at(&mut block, from * MIB)?;
        if block.iter().any(|byte| *byte != 0) {
            return Err(io::Error::other(format!("MiB {from} does not read as zeros")));
        }
    }
    Ok(())
}

/// Bytes a second, and of the burst.
const RATE: u64 = MIB;
const BURST: u64 = 256 << 10;
/// Bytes of one read.
const PIECE: usize = 64 << 10;

fn limited() -> Outcome {
    filled(8)?;
    std::fs::copy(DISK, "/run/free.img").map_err(text)?;
    let limits = Limits { bytes_per_second: Some(RATE), burst_bytes: Some(BURST), ..Limits::default() };
    let free = DiskConfig::new("free", FileRef::Path("/run/free.img".into()));
    let disks = vec![DiskConfig { limits: Some(limits), ..disk("limited") }, free];
    let (config, lines, writer) = vm("limited", "limited", disks)?;
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    let rate_of = |word: &str| -> Result<(u64, u64), String> {
        let line = lines.wait(&format!("guest: {word}"))?;
        let (bytes, micros) = line.split_once(' ').ok_or(line.clone())?;
        Ok((bytes.parse().map_err(|_| line.clone())?, micros.parse().map_err(|_| line.clone())?))
    };
    let (limited, limited_us) = rate_of("limited")?;
    let (free, free_us) = rate_of("free")?;
    expect_code(&mut child, 0)?;
    let _ = std::fs::remove_file("/run/free.img");
    // What a limiter promises in this time, and one read more, whose end may be seen a little before.
    let most = BURST + RATE * limited_us / 1_000_000 + PIECE as u64;
    // Half of it shows that it does not promise by standing still.
    let least = most / 2;
    if !(least..=most).contains(&limited) {
        return Err(format!("{limited} bytes in {limited_us} us, expected {least} to {most}"));
    }
    let (limited, free) = (limited * 1000 / limited_us, free * 1000 / free_us);
    if free < 2 * limited {
        return Err(format!("{limited} KB/s with the limit, {free} KB/s without: it was not the limit"));
    }
    Ok(format!("{limited} KB/s of {} with the limit, {free} KB/s without", RATE / 1000))
}

fn play_limited() {
    for (word, path, time) in [("limited", "/dev/vda", 2000), ("free", "/dev/vdb", 500)] {
        match read_for(path, Duration::from_millis(time)) {
            Ok((bytes, took)) => say(&format!("{word} {bytes} {}", took.as_micros())),
            Err(e) => say(&format!("{word} {e}")),
        }
    }
    power_off()
}

/// Reads past the cache for `time`: bytes, and how long it was in truth.
fn read_for(path: &str, time: Duration) -> io::Result<(u64, Duration)> {
    let disk = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let buffer = Aligned::new(PIECE)?;
    let (started, mut bytes) = (Instant::now(), 0);
    while started.elapsed() < time {
        // SAFETY: the buffer has PIECE bytes.
        let got = unsafe { libc::pread(disk.as_raw_fd(), buffer.0, PIECE, (bytes % (4 * MIB)) as libc::off_t) };
        bytes += u64::try_from(got).map_err(|_| io::Error::last_os_error())?;
    }
    Ok((bytes, started.elapsed()))
}

/// Memory that a disk can be read into directly. Never freed: the guest ends soon.
struct Aligned(*mut libc::c_void);

impl Aligned {
    fn new(bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(memory)) }
    }
}

fn locked() -> Outcome {
    filled(1)?;
    let first_of = |name: &str| -> Result<(Child, Lines), String> {
        let (config, lines, writer) = vm(name, "ignore", vec![disk("data")])?;
        let (child, _errors) = spawn_with(&config, vec![writer.into()])?;
        lines.wait("guest: ignoring")?;
        Ok((child, lines))
    };
    let (mut first, _lines) = first_of("first")?;
    let (config, _, writer) = vm("second", "ignore", vec![DiskConfig { read_only: true, ..disk("data") }])?;
    let (mut second, errors) = spawn_with(&config, vec![writer.into()])?;
    let reason = errors.wait("vmm second: disk data: cannot lock /run/disk.img:")?;
    expect_code(&mut second, 21)?;
    if first.try_wait().map_err(text)?.is_some() {
        return Err("the first VM ended with the second".into());
    }
    // Its kernel objects live on for a moment; who comes at once must not be refused for that.
    kill(&mut first)?;
    let (mut third, _lines) = first_of("third")?;
    kill(&mut third)?;
    Ok(reason)
}

/// Ends a VM without a word.
fn kill(child: &mut Child) -> Result<(), String> {
    for id in processes(child).into_iter().rev() {
        // SAFETY: a process of ours, not yet reaped.
        check(unsafe { libc::kill(id as i32, libc::SIGKILL) }).map_err(text)?;
    }
    child.wait().map(drop).map_err(text)
}

const BLOCK: usize = 4096;
/// Blocks of the disk, and of each generation.
const BLOCKS: u64 = 256;
const EACH: u64 = 8;

/// Blocks that a generation writes: seven is prime to the number of blocks, so that they wander all over the disk.
fn blocks_of(generation: u64) -> impl Iterator<Item = u64> {
    (0..EACH).map(move |n| (generation * EACH + n) * 7 % BLOCKS)
}

/// A block as generation `generation` writes it: number, generation, filler, checksum.
fn pattern(number: u64, generation: u64) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK);
    block.extend(number.to_le_bytes());
    block.extend(generation.to_le_bytes());
    let mut state = number << 32 ^ generation ^ 0x9e37_79b9_7f4a_7c15;
    while block.len() < BLOCK - 8 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        block.extend(state.to_le_bytes());
    }
    let sum = checksum(&block);
    block.extend(sum.to_le_bytes());
    block
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn killed() -> Outcome {
    let mut notes = Vec::new();
    for (round, confirmed) in [1u64, 9, 40].into_iter().enumerate() {
        std::fs::write(DISK, vec![0; BLOCKS as usize * BLOCK]).map_err(text)?;
        let (config, lines, writer) = vm(&format!("journal{round}"), "journal", vec![disk("data")])?;
        let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
        lines.wait(&format!("guest: flushed {confirmed} "))?;
        kill(&mut child)?;
        // It may have got further before it died, and the last line may be cut.
        let last = lines
            .rest()
            .iter()
            .filter_map(|line| line.strip_prefix("guest: flushed ")?.strip_suffix(" generations")?.parse().ok())
            .fold(confirmed, u64::max);
        verify(last)?;
        notes.push(last.to_string());
    }
    Ok(format!("killed after generation {}", notes.join(", ")))
}

/// Every block that generations up to `confirmed` wrote is there, and whole; so are those of all generations that were complete
/// before the newest began.
fn verify(confirmed: u64) -> Result<(), String> {
    let image = std::fs::read(DISK).map_err(text)?;
    let blocks = || (0u64..).zip(image.chunks(BLOCK));
    let generation_of = |number: u64, block: &[u8]| {
        let generation = block[8..16].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        (block == pattern(number, generation)).then_some(generation)
    };
    let newest = blocks().filter_map(|(number, block)| generation_of(number, block)).max().unwrap_or(0);
    if newest < confirmed {
        return Err(format!("generation {confirmed} was confirmed, the newest in the image is {newest}"));
    }
    let complete = confirmed.max(newest.saturating_sub(1));
    for (number, found) in blocks() {
        let expected = (1..=complete).rev().find(|generation| blocks_of(*generation).any(|b| b == number));
        let under_way = (complete + 1..=newest + 1).any(|generation| blocks_of(generation).any(|b| b == number));
        let good = match expected {
            Some(generation) => found == pattern(number, generation),
            None => found.iter().all(|byte| *byte == 0),
        };
        if !good && !under_way {
            let found = generation_of(number, found);
            return Err(format!("block {number}: expected generation {expected:?} of {complete}, found {found:?}"));
        }
    }
    Ok(())
}

fn play_journal() {
    let written = || -> io::Result<()> {
        let disk = OpenOptions::new().read(true).write(true).open("/dev/vda")?;
        for generation in 1.. {
            for number in blocks_of(generation) {
                disk.write_all_at(&pattern(number, generation), number * BLOCK as u64)?;
            }
            disk.sync_all()?;
            say(&format!("flushed {generation} generations"));
        }
        Ok(())
    };
    if let Err(e) = written() {
        say(&format!("journal {e}"));
    }
}
