//! From process start to the guest, memory beside the guest's, and the way out.

use std::time::Duration;

use holdfast_payload::{Setup, process};
use holdfast_vmm::ControlClient;
use serde_json::json;

use crate::{Bench, Outcome, figures, privileged};

const RUNS: usize = 21;

pub fn measure(bench: &Bench) -> Outcome {
    let size = std::fs::metadata(&bench.vmm)?.len();
    figures::note("program, stripped", size as f64 / f64::from(1 << 20), "MiB");
    for _ in 0..RUNS {
        one(bench, false)?;
        if privileged() {
            one(bench, true)?;
        }
    }
    Ok(())
}

fn one(bench: &Bench, jailed: bool) -> Outcome {
    let control = bench.folder.join("control");
    let setup = Setup::new(&bench.vmm, "ticks console_echo rng=8");
    let setup = setup.field("control", json!({"path": control}));
    let (mut machine, kind) =
        if jailed { (setup.jailed().start()?, "jailed") } else { (setup.start()?, "without jail") };
    let (ticks, line) = machine.wait("up");
    let per_ms = machine.number("ticks_per_ms") as f64;
    let line = line.duration_since(machine.started);
    // The payload counts from its first instruction to its first line.
    let inside = Duration::from_secs_f64(ticks.parse::<f64>().unwrap_or(0.0) / per_ms / 1000.0);
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let memory = process::memory(machine.id(), machine.guest_bytes());
    let stats = ControlClient::connect(&control)
        .and_then(|mut client| client.stats())
        .map_err(|e| std::io::Error::other(e.to_string()))?;
    machine.type_line("go on")?;
    let (_, last) = machine.wait("rng.word");
    let ended = machine.finish();
    let note = |what: &str, value: f64, unit: &str| figures::note(&format!("{what}, {kind}"), value, unit);
    note("own set-up before the first KVM_RUN (CPU)", stats.setup_cpu_us as f64 / 1000.0, "ms");
    note("process start to the first guest instruction", ms(line.saturating_sub(inside)), "ms");
    note("process start to the first console line", ms(line), "ms");
    note("power-off to the end of the process", ms(ended.at.duration_since(last)), "ms");
    note("memory beyond guest RAM (PSS)", memory.beyond_kib as f64 / 1024.0, "MiB");
    Ok(())
}
