//! Frames between the guest and a tap through the VMM, both ways. The path through vhost-net needs a host that has it: the
//! nested test measures that beside this one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holdfast_payload::tap::{Cable, Frames};
use holdfast_payload::{Machine, Setup, process};

use crate::figures::note;
use crate::{Bench, Outcome, privileged};

const RUNS: usize = 5;
const FRAME: u64 = 1514;
/// Of one run.
const TIME: Duration = Duration::from_secs(1);

pub fn measure(bench: &Bench) -> Outcome {
    if !privileged() {
        eprintln!("bench: net: taps need root");
        return Ok(());
    }
    let ms = TIME.as_millis();
    for _ in 0..RUNS {
        one(bench, "guest to tap", "net_send", &format!("{FRAME},{ms}"))?;
        one(bench, "tap to guest", "net_count", &format!("{ms}"))?;
    }
    Ok(())
}

/// Lets the guest follow `word`, which sends frames or counts those that come.
fn one(bench: &Bench, way: &str, word: &str, arguments: &str) -> Outcome {
    let Cable { tap, host } = Cable::new()?;
    let mut machine = Setup::new(&bench.vmm, &format!("{word}={arguments} console_echo")).tap(tap).start()?;
    machine.wait(&format!("{word}.begin"));
    let stop = AtomicBool::new(word == "net_send");
    let [us, frames, cpu] = std::thread::scope(|scope| {
        scope.spawn(|| flood(&host, &stop));
        let counted = counted(&mut machine, word);
        stop.store(true, Ordering::Relaxed);
        counted
    });
    machine.type_line("go on")?;
    let gib = frames * FRAME as f64 / f64::from(1 << 30);
    note(&format!("frames of {FRAME} bytes, {way}"), frames / us * 1000.0, "thousand/s");
    note(&format!("bytes, {way} through the VMM"), gib / cpu, "GiB/CPU s");
    Ok(())
}

/// Microseconds and frames as the guest counts them, and the CPU seconds of the VMM meanwhile.
fn counted(machine: &mut Machine, word: &str) -> [f64; 3] {
    let before = process::cpu_beside_vcpus(machine.id());
    let us = machine.number(&format!("{word}.us")) as f64;
    let frames = machine.number(&format!("{word}.frames")) as f64;
    [us, frames, (process::cpu_beside_vcpus(machine.id()) - before) as f64 / 1e9]
}

/// Sends more frames than a guest can take, until it is told to stop, or nobody can be there to tell.
fn flood(host: &Frames, stop: &AtomicBool) {
    let mut frame = [0x5a; FRAME as usize];
    // Broadcast, from an address of nobody, of IEEE 802's type for local experiments.
    frame[..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    let started = Instant::now();
    while !stop.load(Ordering::Relaxed) && started.elapsed() < 10 * TIME {
        // One that finds the tap full is lost: the guest counts those that come.
        let _ = host.send(&frame);
    }
}
