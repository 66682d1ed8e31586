//! Boots a host kernel in QEMU (software emulation with SVM), which runs real Linux guests in our VMM.
//!
//! The wrong way to see this would be to trust the VMM's exit code alone: every scenario is judged by what the guest
//! says over its console, by bytes that arrive over TCP, and by the disk image afterwards.
//!
//! Each file of scenarios has a machine of its own, two of which run at a time. `NESTED_ONLY=word,word` picks scenarios:
//! those whose `file::name` contains a word (`filter`, `net::`, `iperf3`).
//!
//! Needs the kernels that `cargo xtask build` makes (or `HOLDFAST_HOST_KERNEL` and `HOLDFAST_GUEST_KERNEL`) and
//! `qemu-system-x86_64`; says so and counts as skipped where they are missing. The VMM is the one at `HOLDFAST_VMM`, or else
//! built here.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Stripped, static.
const BINARY_BUDGET: u64 = 3 << 20;
/// For one machine with its group of scenarios.
const LIMIT: Duration = Duration::from_secs(300);
/// Machines at once: each keeps one processor busy.
const MACHINES: usize = 2;

fn main() -> ExitCode {
    // `cargo test -- --list` and filters of other test programs.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        println!("nested: test");
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|a| !a.starts_with('-') && !"nested".contains(a.as_str())) {
        println!("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out");
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(Outcome::Skipped(reason)) => {
            println!("test nested ... ignored, SKIPPED: {reason}");
            println!("test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
            ExitCode::SUCCESS
        }
        Ok(Outcome::Ran { passed, failed }) => {
            let word = if failed == 0 { "ok" } else { "FAILED" };
            println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(reason) => {
            println!("test nested ... FAILED: {reason}");
            println!("test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
            ExitCode::FAILURE
        }
    }
}

enum Outcome {
    Skipped(String),
    Ran { passed: usize, failed: usize },
}

fn run() -> Result<Outcome, String> {
    let kernels =
        (kernel("HOLDFAST_HOST_KERNEL", "host", "bzImage"), kernel("HOLDFAST_GUEST_KERNEL", "guest", "vmlinux"));
    let (Some(host), Some(guest)) = kernels else {
        return Ok(Outcome::Skipped("host and guest kernels are not built; `cargo xtask build` makes them".into()));
    };
    if Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(Outcome::Skipped("qemu-system-x86_64 is not installed".into()));
    }
    let (vmm, nested) = programs()?;
    let size = vmm.metadata().map_err(|e| format!("{}: {e}", vmm.display()))?.len();
    if size > BINARY_BUDGET {
        return Err(format!("the vmm binary is {size} bytes, budget {BINARY_BUDGET}"));
    }
    let groups = groups(&nested)?;
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let initrd = directory.path().join("host.cpio");
    write_host_initrd(&initrd, &vmm, &nested, &guest)?;
    boot_all(&host, &initrd, &groups)
}

/// The scenarios that `NESTED_ONLY` asks for, by machine, as the program itself lists them.
fn groups(nested: &Path) -> Result<BTreeMap<usize, Vec<String>>, String> {
    let only = word("NESTED_ONLY");
    let mut groups: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (group, name) in scenarios(nested, &only)? {
        groups.entry(group).or_default().push(name);
    }
    if groups.is_empty() {
        let all: Vec<String> = scenarios(nested, "")?.into_iter().map(|(_, name)| format!("  {name}")).collect();
        return Err(format!("NESTED_ONLY={only} is no part of any name of a scenario; there are\n{}", all.join("\n")));
    }
    Ok(groups)
}

/// Machine and name of each scenario that has one of the words.
fn scenarios(nested: &Path, words: &str) -> Result<Vec<(usize, String)>, String> {
    let output = Command::new(nested).args(["--list", words]).output();
    let output = output.map_err(|e| format!("{}: {e}", nested.display()))?;
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let read = |line: &str| {
        let (group, name) = line.split_once(' ')?;
        Some((group.parse().ok()?, name.to_string()))
    };
    let lines = listing.lines().map(|line| read(line).ok_or(format!("{} --list says {line:?}", nested.display())));
    lines.collect()
}

fn word(variable: &str) -> String {
    std::env::var(variable).unwrap_or_default()
}

/// The kernel named by `variable`, or the newest that the build has cached.
fn kernel(variable: &str, kind: &str, file: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    // As `image/xtask/src/workspace.rs` finds it.
    let cache = std::env::var_os("HOLDFAST_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
        base.map(|base| base.join("holdfast"))
    })?;
    let entries = std::fs::read_dir(cache.join("kernel")).ok()?;
    entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(&format!("{kind}-")))
        .map(|e| e.path().join(file))
        .filter(|path| path.exists())
        .max_by_key(|path| path.metadata().and_then(|m| m.modified()).ok())
}

/// Static builds of the VMM and of both inits.
fn programs() -> Result<(PathBuf, PathBuf), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?;
    let given = std::env::var_os("HOLDFAST_VMM").map(PathBuf::from);
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["build", "--quiet", "--release", "-p", "holdfast-vmm", "--example", "nested"])
        .args(given.is_none().then_some(["--bin", "vmm"]).iter().flatten())
        .args(["--target", TARGET])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .map_err(|e| format!("cargo: {e}"))?;
    if !status.success() {
        return Err("the static build failed".into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let release = target.join(TARGET).join("release");
    Ok((given.unwrap_or_else(|| release.join("vmm")), release.join("examples/nested")))
}

fn write_host_initrd(to: &Path, vmm: &Path, nested: &Path, guest: &Path) -> Result<(), String> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let init = read(nested)?;
    let mut inner = Cpio::default();
    inner.add("init", &init);
    let inner = inner.finish();
    let mut outer = Cpio::default();
    outer.add("init", &init);
    outer.add("vmm", &read(vmm)?);
    outer.add("guest-kernel", &read(guest)?);
    outer.add("guest-initrd", &inner);
    let bzimage = guest.with_file_name("bzImage");
    if bzimage.exists() {
        outer.add("guest-bzimage", &read(&bzimage)?);
    }
    let iperf = with_libraries("/usr/bin/iperf3");
    if let Some(archive) = &iperf {
        outer.add("iperf.cpio", archive);
    }
    let mut whole = outer.finish();
    // The kernel unpacks one archive after the other.
    whole.resize(whole.len().next_multiple_of(512), 0);
    whole.extend(iperf.unwrap_or_default());
    let mut file = std::fs::File::create(to).map_err(|e| e.to_string())?;
    file.write_all(&whole).map_err(|e| e.to_string())
}

/// An archive of a Debian program with its shared libraries and loader, at their places; `None` when it is not here.
fn with_libraries(program: &str) -> Option<Vec<u8>> {
    let listing = Command::new("ldd").arg(program).output().ok().filter(|output| output.status.success())?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    let libraries = listing.split_whitespace().filter(|word| word.starts_with('/'));
    let (mut archive, mut folders) = (Cpio::default(), std::collections::BTreeSet::new());
    for path in std::iter::once(program).chain(libraries) {
        let name = path.trim_start_matches('/');
        for (at, _) in name.match_indices('/') {
            if folders.insert(name[..at].to_string()) {
                archive.entry(&name[..at], 0o40_755, &[]);
            }
        }
        archive.add(name, &std::fs::read(path).ok()?);
    }
    Some(archive.finish())
}

/// Boots a machine for each group, [`MACHINES`] at a time; adds up what they say.
fn boot_all(host: &Path, initrd: &Path, groups: &BTreeMap<usize, Vec<String>>) -> Result<Outcome, String> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let groups: Vec<_> = groups.iter().collect();
    std::thread::scope(|scope| {
        for _ in 0..MACHINES.min(groups.len()) {
            scope.spawn(|| {
                while let Some((group, names)) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = boot(host, initrd, **group, names);
                    results.lock().expect("no thread panics with it").push(result);
                }
            });
        }
    });
    let (mut passed, mut failed) = (0, 0);
    for result in results.into_inner().expect("no thread panics with it") {
        let (ok, bad) = result?;
        passed += ok;
        failed += bad;
    }
    Ok(Outcome::Ran { passed, failed })
}

/// Boots one machine, prints its scenarios' lines as they come; how many passed and failed.
fn boot(host: &Path, initrd: &Path, group: usize, names: &[String]) -> Result<(usize, usize), String> {
    let started = Instant::now();
    let mut machine = Machine(start(host, initrd, group)?);
    let output = machine.0.stdout.take().ok_or("no output")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_string()).is_err() {
                return;
            }
        }
    });
    let (mut passed, mut failed, mut all, mut done) = (0, 0, Vec::new(), false);
    while !done {
        let Ok(line) = lines.recv_timeout(LIMIT.saturating_sub(started.elapsed())) else { break };
        if let Some(rest) = line.strip_prefix("nested: ok ") {
            println!("test nested::{rest} ... ok");
            passed += 1;
        } else if let Some(rest) = line.strip_prefix("nested: FAILED ") {
            println!("test nested::{rest} ... FAILED");
            failed += 1;
        }
        done = line == "nested: done";
        all.push(line);
    }
    if done {
        // It powers itself off.
        let _ = machine.0.wait();
    }
    if !done || failed > 0 || std::env::var_os("NESTED_VERBOSE").is_some() {
        println!("{}", all.join("\n"));
    }
    println!("nested: machine {group}: {} scenarios in {:.1} s", names.len(), started.elapsed().as_secs_f32());
    match (done, names.len() - (passed + failed).min(names.len())) {
        (false, _) => Err(format!("machine {group} did not finish {names:?} within {} s", LIMIT.as_secs())),
        (true, 0) => Ok((passed, failed)),
        (true, missing) => Err(format!("machine {group} left out {missing} of {names:?}")),
    }
}

/// A machine that ends with its test.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(host: &Path, initrd: &Path, group: usize) -> Result<Child, String> {
    // NESTED_GUEST adds to every guest's command line.
    let cmdline = format!(
        "console=ttyS0 quiet loglevel=3 panic=-1 rdinit=/init nested.group={group} \"nested.only={}\" nested.seed={} \
         \"nested.guest={}\" {}",
        word("NESTED_ONLY"),
        word("NESTED_SEED"),
        word("NESTED_GUEST"),
        word("NESTED_HOST"),
    );
    Command::new("qemu-system-x86_64")
        .args(["-machine", "q35", "-cpu", "EPYC", "-accel", "tcg", "-m", "1024", "-nographic", "-no-reboot"])
        .args(["-nic", "none"])
        .arg("-kernel")
        .arg(host)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", &cmdline])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("qemu-system-x86_64: {e}"))
}

/// A newc archive (Linux Documentation/driver-api/early-userspace/buffer-format.rst) of executable files.
#[derive(Default)]
struct Cpio(Vec<u8>);

impl Cpio {
    fn add(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let fields = [0, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.0.extend_from_slice(b"070701");
        for field in fields {
            self.0.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        for (name, mode) in [("dev", 0o40_755), ("proc", 0o40_755), ("sys", 0o40_755), ("run", 0o40_755)] {
            self.entry(name, mode, &[]);
        }
        self.entry("TRAILER!!!", 0, &[]);
        self.0
    }
}
