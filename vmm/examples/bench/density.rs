//! A hundred VMs on one machine: what the first and the last cost, what all hold, how fast all go.

use std::time::Instant;

use holdfast_payload::{Machine, Setup, process};

use crate::figures::{median, note};
use crate::{Bench, Outcome};

const VMS: usize = 100;
const PART: usize = 10;

pub fn measure(bench: &Bench) -> Outcome {
    let mut machines = Vec::new();
    let (mut cpu, mut wall) = (Vec::new(), Vec::new());
    for n in 0..VMS {
        let mut setup = Setup::new(&bench.vmm, "wait");
        setup.name = format!("payload{n}");
        let mut machine = setup.start()?;
        let (_, up) = machine.wait("waiting");
        wall.push(up.duration_since(machine.started).as_secs_f64() * 1000.0);
        cpu.push(process::cpu(machine.id()) as f64 / 1e6);
        machines.push(machine);
    }
    let memory = machines.iter().map(|machine| process::memory(machine.id(), machine.guest_bytes()));
    let (guest, beyond) = memory.fold((0, 0), |(guest, beyond), m| (guest + m.guest_kib, beyond + m.beyond_kib));
    let pressed = Instant::now();
    machines.iter().for_each(Machine::press_button);
    let ended: Vec<_> = machines.into_iter().map(Machine::finish).collect();
    let stopped = ended.iter().map(|ended| ended.at).max().unwrap_or(pressed).duration_since(pressed);
    if let Some(wrong) = ended.iter().find(|ended| ended.code != Some(0)) {
        return Err(std::io::Error::other(format!("a VM ended with {:?}: {}", wrong.code, wrong.errors)));
    }
    for (what, values) in [("CPU", &cpu), ("wall time", &wall)] {
        let (first, last) = (median(&values[..PART]), median(&values[VMS - PART..]));
        note(&format!("{VMS} VMs: {what} of a start, first {PART}"), first, "ms");
        note(&format!("{VMS} VMs: {what} of a start, last {PART}"), last, "ms");
        note(&format!("{VMS} VMs: {what} of a start, last to first"), last / first, "");
    }
    let mib = |kib: u64| kib as f64 / 1024.0 / VMS as f64;
    note(&format!("{VMS} VMs: guest RAM touched, each"), mib(guest), "MiB");
    note(&format!("{VMS} VMs: memory beyond guest RAM (PSS), each"), mib(beyond), "MiB");
    note(&format!("{VMS} VMs: power button to all ended"), stopped.as_secs_f64(), "s");
    Ok(())
}
