//! Random 4 KiB reads: the guest through the VMM, and a plain io_uring loop on the same file, in turn.
//!
//! The guest spins by design, so the VMM's share is all of its threads but the vCPUs. Beside the loop a thread spins as
//! the guest does, so that both have a busy neighbour; its time does not count. Figures are reads for each second of CPU.
//!
//! The VMM opens images so that reads leave their access times alone. The loop reads as programs do, and in turn that way too:
//! the one ratio is what a guest's reads cost against a host program's, the other what the VMM itself adds.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holdfast_payload::pattern::mix;
use holdfast_payload::{Setup, process};
use io_uring::{IoUring, opcode, types};

use crate::figures::note;
use crate::{Bench, Outcome};

const RUNS: usize = 11;
const FILE_BYTES: u64 = 256 << 20;
const READ_BYTES: u64 = 4096;
const DEPTH: usize = 32;
const TIME: Duration = Duration::from_secs(2);

pub fn measure(bench: &Bench) -> Outcome {
    let path = bench.folder.join("bench.img");
    let mut file = File::create(&path)?;
    let chunk: Vec<u8> = (0..1u64 << 17).flat_map(|n| mix(n).to_le_bytes()).collect();
    for _ in 0..FILE_BYTES / chunk.len() as u64 {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    drop(file);
    for (kind, flags) in [("page cache", 0), ("O_DIRECT", libc::O_DIRECT)] {
        if std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&path).is_err() {
            eprintln!("bench: block: this file system has no {kind}");
            continue;
        }
        for _ in 0..RUNS {
            let (reads, cpu) = guest(bench, &path, flags, kind)?;
            let ours = reads / cpu;
            note(&format!("4 KiB random reads through the VMM, {kind}"), ours, "/CPU s");
            for (how, flag) in [("", 0), (" with O_NOATIME", libc::O_NOATIME)] {
                let (reads, cpu) = beside_a_spinning_thread(|| host(&path, flags | flag))?;
                let plain = reads / cpu;
                note(&format!("4 KiB random reads by plain io_uring{how}, {kind}"), plain, "/CPU s");
                note(&format!("ratio of the VMM to plain io_uring{how}, {kind}"), ours / plain, "");
            }
        }
    }
    std::fs::remove_file(path)
}

/// Reads done and CPU seconds spent by the VMM.
fn guest(bench: &Bench, path: &Path, flags: i32, kind: &str) -> std::io::Result<(f64, f64)> {
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let words = format!("blk_random={READ_BYTES},{DEPTH},{} console_echo", TIME.as_millis());
    let mut machine = Setup::new(&bench.vmm, &words).disk_file(OwnedFd::from(file)).start()?;
    machine.wait("blk_random.begin");
    let before = process::cpu_beside_vcpus(machine.id());
    let failed = machine.number("blk_random.failed");
    let us = machine.number("blk_random.us") as f64;
    let reads = machine.number("blk_random.done") as f64;
    let spent = process::cpu_beside_vcpus(machine.id()) - before;
    machine.type_line("go on")?;
    if failed > 0 {
        return Err(std::io::Error::other(format!("{failed} reads failed")));
    }
    note(&format!("4 KiB random reads through the VMM, {kind}, rate"), reads / us * 1e6, "/s");
    Ok((reads, spent as f64 / 1e9))
}

/// What `work` returns, and the CPU seconds of this process meanwhile but for a thread that spins.
fn beside_a_spinning_thread(work: impl FnOnce() -> std::io::Result<f64>) -> std::io::Result<(f64, f64)> {
    let stop = AtomicBool::new(false);
    let before = cpu(libc::CLOCK_PROCESS_CPUTIME_ID);
    let (done, spun) = std::thread::scope(|scope| {
        let spinner = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            cpu(libc::CLOCK_THREAD_CPUTIME_ID)
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        (done, spinner.join().unwrap_or(0))
    });
    Ok((done?, (cpu(libc::CLOCK_PROCESS_CPUTIME_ID) - before - spun) as f64 / 1e9))
}

/// Reads done by a loop that keeps as many in flight. It has what the VMM's own ring has: the file in the ring's table, and
/// completions found when the loop looks for them.
fn host(path: &Path, flags: i32) -> std::io::Result<f64> {
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut ring: IoUring = IoUring::builder().setup_coop_taskrun().build(DEPTH as u32)?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    // Aligned for O_DIRECT.
    let mut memory = vec![0u8; (DEPTH + 1) * READ_BYTES as usize];
    let start = memory.as_mut_ptr().align_offset(READ_BYTES as usize);
    let buffers = memory[start..].as_mut_ptr();
    let mut seed = 1u64;
    let mut read = |n: usize| {
        seed += 1;
        let offset = mix(seed) % (FILE_BYTES / READ_BYTES) * READ_BYTES;
        let buffer = buffers.wrapping_add(n * READ_BYTES as usize);
        opcode::Read::new(types::Fixed(0), buffer, READ_BYTES as u32).offset(offset).build().user_data(n as u64)
    };
    let end = Instant::now() + TIME;
    let mut done = 0u64;
    let mut free: Vec<usize> = (0..DEPTH).collect();
    loop {
        let more = Instant::now() < end;
        if !more && free.len() == DEPTH {
            return Ok(done as f64);
        }
        for n in free.drain(if more { 0.. } else { free.len().. }) {
            // SAFETY: the buffer is the read's own and outlives the ring's work: the loop ends when all reads are done.
            unsafe { ring.submission().push(&read(n)) }.map_err(std::io::Error::other)?;
        }
        ring.submit_and_wait(1)?;
        for completion in ring.completion() {
            if completion.result() != READ_BYTES as i32 {
                return Err(std::io::Error::other(format!("a read gave {}", completion.result())));
            }
            free.push(completion.user_data() as usize);
            done += 1;
        }
    }
}

/// A CPU time clock, in nanoseconds.
fn cpu(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one `timespec`.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
