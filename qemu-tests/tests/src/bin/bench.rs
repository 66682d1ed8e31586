//! `cargo xtask bench`: boot times, memory, sizes; measured from outside, with machine and method named.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::Parser;
use holdfast_harness::machine::accelerator;
use holdfast_scenarios::memory;
use holdfast_scenarios::world::{boot_limit, soon};
use holdfast_scenarios::{Artefacts, World, webapp};
use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::time::Instant;

#[derive(Parser)]
#[command(about = "Measures the device")]
struct Args {
    /// Boots to measure.
    #[arg(default_value_t = 3)]
    runs: u32,
}

/// Figures by name, one value for each run, and their unit.
type Figures = BTreeMap<(&'static str, &'static str), Vec<f64>>;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let artefacts = Artefacts::first()?;
    let mut figures = Figures::new();
    for n in 1..=args.runs.max(1) {
        eprintln!("boot {n} of {}", args.runs.max(1));
        let mut world = World::builder(&format!("bench-{n}")).build()?;
        measure(&mut world, &mut figures).map_err(|e| anyhow::anyhow!("{e:#}\n{}", world.describe()))?;
    }
    println!("{}", machine());
    println!(
        "method: a fresh device for each boot (Secure Boot, TPM, 1536 MiB, one processor where it is emulated); times of the boot from its console, by the device's \
         clock; times of the app by this machine's clock; memory from /proc/PID/smaps in the device"
    );
    println!("{:44} {:>10} {:>10} {:>10}", "", "min", "median", "max");
    for ((name, unit), mut values) in figures {
        values.sort_by(f64::total_cmp);
        let (min, max) = (values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(0.0));
        println!("{:44} {min:>10.2} {:>10.2} {max:>10.2}", format!("{name} [{unit}]"), median(&values));
    }
    for (what, path) in [("disk image", &artefacts.image), ("update payload", &artefacts.update)] {
        println!("{what:44} {:>10.2} MiB", mib(stored_bytes(path)?));
    }
    if let Ok(sizes) = std::fs::read_to_string(xtask::workspace::out().join("sizes.txt")) {
        println!("{sizes}");
    }
    Ok(())
}

fn measure(world: &mut World, figures: &mut Figures) -> Result<()> {
    let mut note = |name, unit, value: f64| figures.entry((name, unit)).or_default().push(value);
    let on = Instant::now();
    world.power_on()?;
    world.wait_console("pid1: mounted", boot_limit())?;
    note("a  power on to PID 1", "s", on.elapsed().as_secs_f64());
    world.wait_online(boot_limit())?;
    let pid1 = world.wait_console("pid1: mounted", soon())?.at;
    let root = world.wait_console("pid1: root", soon())?.at;
    let config = world.wait_console("node: config ", soon())?.at;
    note("b  kernel entry to PID 1", "s", pid1.as_secs_f64());
    note("c  PID 1 to the OS slot as root", "s", (root - pid1).as_secs_f64());
    note("d  PID 1 to the first accepted config", "s", (config - pid1).as_secs_f64());

    let idle = world.host_memory(soon())?;
    note("f  memory of all host processes, idle", "MiB", mib(memory::total(&idle)));
    for (label, name) in [("g  memory of PID 1", "init"), ("h  memory of node", "node")] {
        if let Some(process) = idle.iter().find(|p| p.name == name) {
            note(label, "MiB", mib(process.bytes()));
        }
    }

    let ordered = Instant::now();
    world.deploy_webapp(boot_limit())?;
    note("e  app ordered to its first answer", "s", ordered.elapsed().as_secs_f64());
    let busy = world.host_memory(soon())?;
    let vmm = busy.iter().find(|p| p.guest_bytes > 0).context("no process holds a guest's memory")?;
    note("i  memory of a VMM beyond its guest's", "MiB", mib(vmm.bytes()));
    note("j  guest memory touched by the app's VM", "MiB", mib(vmm.guest_bytes));
    anyhow::ensure!(world.app_info(webapp::NAME)?.is_some(), "the app was never reported");
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Middle of sorted values.
fn median(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    match values {
        [] => 0.0,
        _ if values.len().is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// What a sparse file takes on disk.
fn stored_bytes(path: &std::path::Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    format!(
        "machine: {} x {}, load {}; {}; executed by {:?}",
        std::thread::available_parallelism().map_or(1, usize::from),
        model.trim_start_matches([' ', '\t', ':']),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
        String::from_utf8_lossy(&qemu).lines().next().unwrap_or_default(),
        accelerator()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_values_lies_between() {
        assert_eq!([median(&[]), median(&[1.0]), median(&[1.0, 3.0]), median(&[1.0, 2.0, 9.0])], [0.0, 1.0, 2.0, 2.0]);
    }
}
