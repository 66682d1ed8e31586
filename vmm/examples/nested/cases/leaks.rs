//! What VMs that have ended leave behind: nothing.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};

use holdfast_model::contract::vm::{ConsoleConfig, DiskConfig, FileRef, NetConfig, TapRef, VhostRef, VmConfig};
use holdfast_vmm::control::ControlClient;

use crate::host::{
    CONTROL, DISK, JAIL, Lines, Outcome, Scenario, disk, expect_code, open, pipe, processes, spawn_with, tap_at, text,
};
use crate::script::{Function, MEMORY, Op, Script};
use crate::support::mount;

pub const SCENARIOS: &[Scenario] = &[Scenario { name: "twenty_starts_and_stops_leave_nothing_behind", run: rounds }];

const ROUNDS: usize = 20;
const IMAGE: &str = "/run/calm.elf";
const CGROUPS: &str = "/sys/fs/cgroup";
const CGROUP: &str = "/sys/fs/cgroup/vm";
/// What the guest writes to.
const TOUCHED: u64 = 8 << 20;
/// What memory may vary by between rounds: page tables, caches of the allocator.
const BAND_KIB: u64 = 4096;

/// Ways in which a VM ends.
#[derive(Debug, Clone, Copy)]
enum Way {
    PowerOff,
    Reset,
    RingFault,
    Stop,
    Kill,
}

const WAYS: [Way; 5] = [Way::PowerOff, Way::Reset, Way::RingFault, Way::Stop, Way::Kill];

fn rounds() -> Outcome {
    mount("cgroup2", CGROUPS);
    for controller in ["+memory", "+pids"] {
        fs::write(format!("{CGROUPS}/cgroup.subtree_control"), controller).map_err(|e| format!("{controller}: {e}"))?;
    }
    // The first rounds fill caches of the kernel's, one for each way.
    let mut charged = 0;
    for way in WAYS {
        charged = round(way).map_err(|e| format!("{way:?} before the count: {e}"))?;
    }
    let before = Left::now()?;
    for n in 0..ROUNDS {
        let way = WAYS[n % WAYS.len()];
        round(way).map_err(|e| format!("round {n}, {way:?}: {e}"))?;
    }
    let after = Left::now()?;
    after.compare(&before)?;
    let (then, now) = (before.available_kib, after.available_kib);
    Ok(format!("{ROUNDS} rounds: {then} KiB available before, {now} KiB after; {charged} KiB charged to a VM's cgroup"))
}

/// One VM with every device in use, in a cgroup of its own; KiB charged to that.
fn round(way: Way) -> Result<u64, String> {
    fs::create_dir(CGROUP).map_err(|e| format!("{CGROUP}: {e}"))?;
    calm(way).save(IMAGE)?;
    let (config, files, lines) = everything()?;
    // A child starts where its parent is.
    let enter = |path: &str| fs::write(format!("{path}/cgroup.procs"), "0").map_err(|e| format!("{path}: {e}"));
    enter(CGROUP)?;
    let started = spawn_with(&config, files);
    enter(CGROUPS)?;
    let (mut child, errors) = started?;
    lines.wait("calm").map_err(|e| format!("{e}: {}", errors.remaining()))?;
    let charged = charge(&child)?;
    match way {
        Way::PowerOff => expect_code(&mut child, 0)?,
        Way::Reset => expect_code(&mut child, 10)?,
        Way::RingFault => expect_code(&mut child, 11)?,
        Way::Stop => {
            ControlClient::connect(CONTROL).and_then(|mut c| c.stop(Duration::from_millis(20))).map_err(text)?;
            expect_code(&mut child, 12)?;
        }
        Way::Kill => {
            child.kill().map_err(text)?;
            child.wait().map_err(text)?;
        }
    }
    drop(lines);
    // Killed processes leave their cgroup a moment after their parent has heard of it.
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(e) = fs::remove_dir(CGROUP) {
        if Instant::now() > deadline {
            return Err(format!("{CGROUP} is still in use: {e}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(charged)
}

/// KiB charged to the VM's cgroup, which must cover what the guest has touched.
fn charge(child: &Child) -> Result<u64, String> {
    let read = |file: &str| fs::read_to_string(format!("{CGROUP}/{file}")).map_err(|e| format!("{file}: {e}"));
    let procs = read("cgroup.procs")?;
    for id in processes(child) {
        if !procs.lines().any(|line| line == id.to_string()) {
            return Err(format!("process {id} is not in the VM's cgroup: {procs:?}"));
        }
    }
    // The worker of vhost is a thread of the VM's process: what it does is the VM's.
    let inner = *processes(child).last().ok_or("no process")?;
    let threads = read("cgroup.threads")?;
    let mut workers = 0;
    for task in fs::read_dir(format!("/proc/{inner}/task")).map_err(text)?.flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("vhost-") {
            workers += 1;
            let id = task.file_name().to_string_lossy().into_owned();
            if !threads.lines().any(|line| line == id) {
                return Err(format!("{} is not in the VM's cgroup", name.trim()));
            }
        }
    }
    if workers == 0 {
        return Err("no vhost worker among the VM's threads".into());
    }
    let bytes: u64 = read("memory.current")?.trim().parse().map_err(text)?;
    if bytes < TOUCHED {
        return Err(format!("{bytes} bytes are charged to the VM's cgroup, the guest alone has touched {TOUCHED}"));
    }
    Ok(bytes >> 10)
}

fn everything() -> Result<(VmConfig, Vec<OwnedFd>, Lines), String> {
    let mut config = VmConfig::new("calm", FileRef::Path(IMAGE.into()));
    (config.memory_mib, config.jail) = (64, JAIL);
    disk()?;
    config.disks = vec![DiskConfig::new("data", FileRef::Path(DISK.into()))];
    let mac = |n: u8| format!("02:00:00:00:02:{n:02x}").parse().map_err(text);
    let mut kernel = NetConfig::new(mac(1)?, TapRef::Fd(4));
    kernel.vhost = Some(VhostRef::Fd(5));
    config.nets = vec![kernel, NetConfig::new(mac(2)?, TapRef::Fd(6))];
    let (reader, writer) = pipe()?;
    config.console = Some(ConsoleConfig::to(FileRef::Fd(7)));
    config.control = Some(FileRef::Path(CONTROL.into()));
    let files: Vec<OwnedFd> = vec![
        tap_at("tap1", [10, 9, 1, 1])?.into(),
        open("/dev/vhost-net", true)?.into(),
        tap_at("tap2", [10, 9, 2, 1])?.into(),
        writer.into(),
    ];
    Ok((config, files, Lines::of(reader)))
}

/// Uses the disk, both cards, the entropy device and the console as a good driver would, then ends in its way.
fn calm(way: Way) -> Script {
    let mut script = Script::default();
    let [disk, kernel_net, net, console, rng] = [1, 2, 3, 4, 5].map(|number| Function { number });
    for page in (0..TOUCHED).step_by(4096) {
        script.put(Op::Write64, MEMORY + (16 << 20) + page, page);
    }
    for function in [disk, kernel_net, net, console, rng] {
        function.enable(&mut script);
        let rings = [0, 1].map(|index| function.ring(index, 16));
        function.bring_up(&mut script, 0, &rings);
    }
    // A sector: type 0 (read) and sector 0, data, status.
    let ring = disk.ring(0, 16);
    script.push(Op::Write64, ring.buffers, 0).push(Op::Write64, ring.buffers + 8, 0);
    ring.descriptor(&mut script, 0, ring.buffers, 16, 1, 1);
    ring.descriptor(&mut script, 1, ring.buffers + 0x1000, 512, 3, 2);
    ring.descriptor(&mut script, 2, ring.buffers + 0x2000, 1, 2, 0);
    submit(&mut script, disk, 0);
    // A frame of zeros: a header, then addresses nobody has.
    for card in [kernel_net, net] {
        let ring = card.ring(1, 16);
        ring.descriptor(&mut script, 0, ring.buffers, 12 + 64, 0, 0);
        submit(&mut script, card, 1);
    }
    let ring = rng.ring(0, 16);
    ring.descriptor(&mut script, 0, ring.buffers, 64, 2, 0);
    submit(&mut script, rng, 0);
    let ring = console.ring(1, 16);
    script.bytes(ring.buffers, b"calm\n");
    ring.descriptor(&mut script, 0, ring.buffers, 5, 0, 0);
    submit(&mut script, console, 1);
    // Time to be looked at.
    script.put(Op::Spin, 0, 100_000_000);
    match way {
        Way::PowerOff => script.power_off(),
        Way::Reset => script.reset(),
        Way::RingFault => {
            let ring = rng.ring(0, 16);
            script.push(Op::Write16, ring.avail + 2, 0x7fff).push(Op::Write16, rng.doorbell(0), 0).push(Op::Halt, 0, 0)
        }
        Way::Stop | Way::Kill => script.push(Op::Halt, 0, 0),
    };
    script
}

fn submit(script: &mut Script, function: Function, queue: u64) {
    let ring = function.ring(queue, 16);
    ring.offer(script, 0, 0);
    script.put(Op::Write16, function.doorbell(queue), queue);
    ring.wait(script, 1);
}

/// What could be left over.
struct Left {
    descriptors: usize,
    /// Programs and the kernel's threads for VMs.
    processes: Vec<String>,
    interfaces: Vec<String>,
    cgroups: Vec<String>,
    available_kib: u64,
    slab_kib: u64,
}

impl Left {
    fn now() -> Result<Self, String> {
        // What is being torn down by then is not left over.
        std::thread::sleep(Duration::from_millis(500));
        fs::write("/proc/sys/vm/drop_caches", "3").map_err(text)?;
        let memory = fs::read_to_string("/proc/meminfo").map_err(text)?;
        let kib = |name: &str| -> Result<u64, String> {
            let line = memory.lines().find_map(|line| line.strip_prefix(name)).ok_or(format!("no {name}"))?;
            line.split_whitespace().next().unwrap_or_default().parse().map_err(text)
        };
        Ok(Self {
            descriptors: names("/proc/self/fd")?.len(),
            processes: running()?,
            interfaces: names("/sys/class/net")?,
            cgroups: directories(CGROUPS)?,
            available_kib: kib("MemAvailable:")?,
            slab_kib: kib("SUnreclaim:")?,
        })
    }

    fn compare(&self, before: &Left) -> Result<(), String> {
        if self.descriptors != before.descriptors {
            return Err(format!("{} descriptors of ours, {} before", self.descriptors, before.descriptors));
        }
        for (what, now, then) in [
            ("processes", &self.processes, &before.processes),
            ("interfaces", &self.interfaces, &before.interfaces),
            ("cgroups", &self.cgroups, &before.cgroups),
        ] {
            if now != then {
                return Err(format!("{what} are {now:?}, before {then:?}"));
            }
        }
        if self.available_kib + BAND_KIB < before.available_kib {
            return Err(format!("{} KiB available, {} before", self.available_kib, before.available_kib));
        }
        if self.slab_kib > before.slab_kib + BAND_KIB {
            return Err(format!("{} KiB of kernel objects, {} before", self.slab_kib, before.slab_kib));
        }
        Ok(())
    }
}

fn names(folder: &str) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
    let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn directories(folder: &str) -> Result<Vec<String>, String> {
    let is_folder = |name: &String| fs::metadata(format!("{folder}/{name}")).is_ok_and(|m| m.is_dir());
    Ok(names(folder)?.into_iter().filter(is_folder).collect())
}

/// Names of programs, and of kernel threads that serve VMs; workers of the kernel's pools come and go.
fn running() -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for id in names("/proc")?.iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        let read = |file: &str| fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        let (name, command) = (read("comm"), read("cmdline"));
        if !command.is_empty() || name.starts_with("kvm") || name.starts_with("vhost") || name.starts_with("iou-") {
            all.push(name.trim().to_string());
        }
    }
    all.sort();
    Ok(all)
}
