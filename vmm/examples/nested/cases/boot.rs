//! What a boot costs, and machines of several CPUs.
//!
//! The wrong way to see the cost would be a clock: emulation, and whatever else runs on the machine, decide it. Exits are
//! the same on every machine, so they have a budget here; the time is only printed.

use std::time::{Duration, Instant};

use holdfast_model::contract::vm::PageSize;
use holdfast_model::contract::vm::{ConsoleConfig, DiskConfig, FileRef, HostCpus};
use holdfast_vmm::control::ControlClient;

use crate::guest::{Role, say};
use crate::host::{
    CONTROL, JAIL, Lines, OVERHEAD_BUDGET_KIB, Outcome, Scenario, cmdline_word, config, disk, expect_code, figure,
    overhead_kib, pipe, processes, spawn_with, text,
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "boot_of_one_vcpu_stays_within_its_budget_of_exits", run: boot },
    Scenario { name: "four_pinned_vcpus_are_online_and_work", run: four_vcpus },
    Scenario { name: "guest_runs_in_huge_pages_of_the_hosts_reserve", run: huge_pages },
    Scenario { name: "guest_reaches_pci_by_ports", run: pci_by_ports },
];

pub const ROLES: &[Role] = &[
    Role { name: "idle", play: || say("idle") },
    Role { name: "all_cpus", play: all_cpus },
    Role { name: "fill", play: fill },
    Role { name: "pci", play: pci },
];

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
    let beyond = overhead_kib(&child, u64::from(config.memory_mib) << 20);
    if beyond > OVERHEAD_BUDGET_KIB {
        return Err(format!("{beyond} KiB beyond guest RAM, budget {OVERHEAD_BUDGET_KIB}"));
    }
    figure("memory beyond guest RAM with 4 vCPUs (PSS)", beyond as f64 / 1024.0, "MiB");
    let mut client = ControlClient::connect(CONTROL).map_err(text)?;
    let stats = client.stats().map_err(text)?;
    client.stop(Duration::ZERO).map_err(text)?;
    expect_code(&mut child, 12)?;
    let idle: Vec<u64> = stats.vcpus.iter().map(|vcpu| vcpu.halt_exits).collect();
    if idle.contains(&0) {
        return Err(format!("a vCPU never went idle: {idle:?}"));
    }
    Ok(format!("halts {idle:?}, {beyond} KiB beyond guest RAM"))
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

/// What the guest fills, and so takes of the reserve at least.
const FILLED: usize = 48 << 20;
const RESERVE: &str = "/proc/sys/vm/nr_hugepages";

fn huge_pages() -> Outcome {
    let (reader, writer) = pipe()?;
    let mut config = config("huge", "fill");
    (config.hugepages, config.jail) = (PageSize::Huge2M, JAIL);
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    config.control = Some(FileRef::Path(CONTROL.into()));
    let pages = u64::from(config.memory_mib) / 2;
    std::fs::write(RESERVE, pages.to_string()).map_err(|e| format!("{RESERVE}: {e}"))?;
    if meminfo("HugePages_Free:")? != pages {
        return Err(format!("the host does not reserve {pages} huge pages"));
    }
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    let lines = Lines::of(reader);
    lines.wait("guest: filled")?;
    let taken = pages - meminfo("HugePages_Free:")?;
    let mut mapped = 0;
    for id in processes(&child) {
        let maps = std::fs::read_to_string(format!("/proc/{id}/smaps")).unwrap_or_default();
        let kib = |line: &str| line.strip_prefix("Private_Hugetlb:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
        mapped += maps.lines().filter_map(kib).sum::<u64>() / 2048;
    }
    ControlClient::connect(CONTROL).map_err(text)?.stop(Duration::ZERO).map_err(text)?;
    expect_code(&mut child, 12)?;
    if taken < FILLED as u64 >> 21 || taken > pages || mapped != taken {
        return Err(format!(
            "{taken} huge pages taken from the reserve of {pages}, {mapped} of them in the VM's memory"
        ));
    }
    let back = meminfo("HugePages_Free:")?;
    std::fs::write(RESERVE, "0").map_err(|e| format!("{RESERVE}: {e}"))?;
    if back != pages {
        return Err(format!("{back} of {pages} huge pages are free after the VM's end"));
    }
    Ok(format!("{taken} of {pages} pages of 2 MiB used"))
}

/// A number of `/proc/meminfo`.
fn meminfo(name: &str) -> Result<u64, String> {
    let all = std::fs::read_to_string("/proc/meminfo").map_err(text)?;
    let value = all.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.ok_or(format!("/proc/meminfo has no {name}"))
}

/// Fills memory and reads it back.
fn fill() {
    let filled = vec![0x5au8; FILLED];
    match std::hint::black_box(&filled).iter().all(|byte| *byte == 0x5a) {
        true => say("filled"),
        false => say("memory holds something else"),
    }
}

/// By the kernel's own probe of the ports, and where it is told to use them unseen.
fn pci_by_ports() -> Outcome {
    let mut notes = Vec::new();
    for way in ["pci=nommconf", "pci=conf1"] {
        let ports = configured_by(true, way)?;
        if ports.0 == 0 || ports.1 != 0 {
            return Err(format!("{way}: {} exits by ports and {} by memory, expected ports alone", ports.0, ports.1));
        }
        notes.push(format!("{way}: {} exits", ports.0));
    }
    // The count tells the two ways apart: without ports a guest cannot but use memory.
    match configured_by(false, "")? {
        (0, memory) if memory > 0 => Ok(notes.join(", ")),
        (ports, memory) => Err(format!("without ports: {ports} exits by ports and {memory} by memory")),
    }
}

/// Boots a guest that uses its disk; the exits for configuration space by ports 0xCFC to 0xCFF, and by memory.
fn configured_by(pci_ports: bool, words: &str) -> Result<(u64, u64), String> {
    let (reader, writer) = pipe()?;
    let mut config = config("ports", "pci");
    config.pci_ports = pci_ports;
    config.cmdline = format!("{} {words}", config.cmdline);
    config.disks = vec![DiskConfig::new("data", FileRef::Fd(5))];
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    config.control = Some(FileRef::Path(CONTROL.into()));
    config.trace.exits = true;
    let (mut child, errors) = spawn_with(&config, vec![writer.into(), disk()?.into()])?;
    let found = Lines::of(reader).wait("guest: functions")?;
    ControlClient::connect(CONTROL).map_err(text)?.stop(Duration::ZERO).map_err(text)?;
    expect_code(&mut child, 12)?;
    // The host bridge, disk, console and entropy device.
    if found != "4 disk Ok(())" {
        return Err(format!("{words}: guest found {found:?}, expected 4 functions and a disk that works"));
    }
    // Lines of the table of exits: count, space, address, what lies there.
    let table: Vec<String> = errors.rest();
    let sum = |is: fn(&[&str]) -> bool| -> u64 {
        let rows = table.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| is(row)).filter_map(|row| row.first()?.parse::<u64>().ok()).sum()
    };
    let ports = sum(|row| matches!(row, [_, "port", _, "PCI", "configuration", "data"]));
    Ok((ports, sum(|row| matches!(row, [_, "memory", _, "PCI", _, "configuration", _]))))
}

fn pci() {
    let functions = std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().count();
    say(&format!("functions {functions} disk {:?}", super::whole::use_disk()));
}
