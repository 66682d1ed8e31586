//! Frames from the guest through the VMM into a tap. The path through vhost-net needs a host that has it: the nested
//! test measures that.

use holdfast_payload::tap::Cable;
use holdfast_payload::{Setup, process};

use crate::figures::note;
use crate::{Bench, Outcome, privileged};

const RUNS: usize = 5;
const FRAME: u64 = 1514;

pub fn measure(bench: &Bench) -> Outcome {
    if !privileged() {
        eprintln!("bench: net: taps need root");
        return Ok(());
    }
    for _ in 0..RUNS {
        let cable = Cable::new()?;
        let words = format!("net_send={FRAME},1000 console_echo");
        let mut machine = Setup::new(&bench.vmm, &words).tap(cable.tap).start()?;
        machine.wait("net_send.begin");
        let before = process::cpu_beside_vcpus(machine.id());
        let us = machine.number("net_send.us") as f64;
        let frames = machine.number("net_send.frames") as f64;
        let cpu = (process::cpu_beside_vcpus(machine.id()) - before) as f64 / 1e9;
        machine.type_line("go on")?;
        let gib = frames * FRAME as f64 / f64::from(1 << 30);
        note("frames of 1514 bytes, guest to tap", frames / us * 1000.0, "thousand/s");
        note("bytes, guest to tap through the VMM", gib / cpu, "GiB/CPU s");
    }
    Ok(())
}
