//! What a boot costs, and machines of several CPUs.
//!
//! The wrong way to see the cost would be a clock: emulation, and whatever else runs on the machine, decide it. Exits are
//! the same on every machine, so they have a budget here; the time is only printed.

use std::time::{Duration, Instant};

use holdfast_vmm::config::{ConsoleConfig, FileRef, HostCpus};
use holdfast_vmm::control::ControlClient;

use crate::guest::{Role, say};
use crate::host::{
    CONTROL, Lines, Outcome, Scenario, cmdline_word, config, expect_code, figure, overhead_kib, pipe, processes,
    spawn_with, text,
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "boot_of_one_vcpu_stays_within_its_budget_of_exits", run: boot },
    Scenario { name: "four_pinned_vcpus_are_online_and_work", run: four_vcpus },
];

pub const ROLES: &[Role] = &[Role { name: "idle", play: || say("idle") }, Role { name: "all_cpus", play: all_cpus }];

/// Port and memory accesses that reach the VMM before the guest's first program, with console and entropy device.
const EXIT_BUDGET: u64 = 600;

/// As often as `nested.runs=` says, for figures; once without.
fn boot() -> Outcome {
    for _ in 1..cmdline_word("nested.runs=").parse().unwrap_or(1) {
        one_boot()?;
    }
    one_boot()
}

fn one_boot() -> Outcome {
    let (reader, writer) = pipe()?;
    let mut config = config("boot", "idle");
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    config.control = Some(FileRef::Path(CONTROL.into()));
    config.trace.exits = true;
    let started = Instant::now();
    let (mut child, errors) = spawn_with(&config, vec![writer.into()])?;
    let lines = Lines::of(reader);
    lines.wait("guest: init")?;
    let boot = started.elapsed();
    lines.wait("guest: idle")?;
    let beyond = overhead_kib(&child, u64::from(config.memory_mib) << 20);
    let mut client = ControlClient::connect(CONTROL).map_err(text)?;
    let stats = client.stats().map_err(text)?;
    client.stop(Duration::ZERO).map_err(text)?;
    errors.wait("  vCPU")?;
    expect_code(&mut child, 12)?;
    let vcpu = stats.vcpus.first().ok_or("no vCPU in stats")?;
    let (ports, memory) = (vcpu.pio_exits, vcpu.mmio_exits);
    if ports + memory > EXIT_BUDGET {
        return Err(format!("{ports} port and {memory} memory exits, budget {EXIT_BUDGET}: {:x?}", vcpu.hottest));
    }
    if vcpu.hottest.is_empty() || vcpu.all_exits < ports + memory {
        return Err(format!("these counts cannot be: {vcpu:?}"));
    }
    for (name, value, unit) in [
        ("process start to the first user program", boot.as_secs_f64() * 1000.0, "ms"),
        ("memory beyond guest RAM (PSS)", beyond as f64 / 1024.0, "MiB"),
        ("port accesses in a boot", ports as f64, "exits"),
        ("memory-mapped accesses in a boot", memory as f64, "exits"),
        ("all exits in a boot", vcpu.all_exits as f64, "exits"),
        ("own set-up before the first KVM_RUN (CPU)", stats.setup_cpu_us as f64 / 1000.0, "ms"),
    ] {
        figure(name, value, unit);
    }
    Ok(format!(
        "boot {} ms, set-up {} us CPU, exits {ports} port {memory} memory of {} in all",
        boot.as_millis(),
        stats.setup_cpu_us,
        vcpu.all_exits
    ))
}

fn four_vcpus() -> Outcome {
    let (reader, writer) = pipe()?;
    let mut config = config("four", "all_cpus");
    config.vcpus = 4;
    config.cpus = vec![HostCpus::One(0), HostCpus::AnyOf(vec![0]), HostCpus::One(0), HostCpus::One(0)];
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    config.control = Some(FileRef::Path(CONTROL.into()));
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    let lines = Lines::of(reader);
    let online = lines.wait("guest: online")?;
    if online != "0-3" {
        return Err(format!("guest has CPUs {online:?}, expected 0-3"));
    }
    let worked = lines.wait("guest: worked on")?;
    if worked != "0 1 2 3" {
        return Err(format!("work was done on CPUs {worked:?}"));
    }
    let mut pinned = 0;
    for id in processes(&child) {
        for task in std::fs::read_dir(format!("/proc/{id}/task")).map_err(text)?.flatten() {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let tied = status.lines().any(|line| line == "Cpus_allowed_list:\t0");
            pinned += usize::from(status.starts_with("Name:\tvcpu") && tied);
        }
    }
    if pinned != 4 {
        return Err(format!("{pinned} of 4 vCPU threads are tied to CPU 0"));
    }
    let mut client = ControlClient::connect(CONTROL).map_err(text)?;
    let stats = client.stats().map_err(text)?;
    client.stop(Duration::ZERO).map_err(text)?;
    expect_code(&mut child, 12)?;
    let idle: Vec<u64> = stats.vcpus.iter().map(|vcpu| vcpu.halt_exits).collect();
    if idle.contains(&0) {
        return Err(format!("a vCPU never went idle: {idle:?}"));
    }
    Ok(format!("halts {idle:?}"))
}

/// Counts on every CPU, one after the other, and says where it was.
fn all_cpus() {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    say(&format!("online {}", online.trim()));
    let worked: Vec<String> = (0..4).filter_map(|cpu| std::thread::spawn(move || work_on(cpu)).join().ok()?).collect();
    say(&format!("worked on {}", worked.join(" ")));
}

/// Moves this thread to `cpu`; the number of the CPU that it then runs on.
fn work_on(cpu: usize) -> Option<String> {
    holdfast_vmm::vcpu::affinity::pin(&[cpu]).ok()?;
    // SAFETY: asks for a number.
    Some(unsafe { libc::sched_getcpu() }.to_string())
}
