//! The host and the guest kernel: configured from `kernel-config/`, built from Debian's source package, cached by what went in.
//!
//! Principles:
//! 1. A cache entry is named by the hash of every input (source version, fragments, compiler, linker, this procedure) and appears by
//!    one rename, so an entry that exists is whole and right.
//! 2. Every option a fragment asks for is in the final configuration, or the build fails and names it ([`fragments`]).
//! 3. The same inputs give the same bytes: no clock, user, host or path of the machine enters a kernel.
//! 4. An interrupted build goes on where it was; if that fails, it starts again from the source archive, once.
//! 5. One build of a kernel at a time per cache; the second waits and then finds the entry.
//!
//! Reading order: [`build`], [`fragments`], `running`.

pub mod fragments;
mod running;

use crate::workspace::{cache, root, run};
use anyhow::{Context, Result, bail};
use fragments::Requests;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Debian package that holds the source; its archive is `/usr/src/PACKAGE.tar.xz`.
pub const SOURCE_PACKAGE: &str = "linux-source-6.12";
/// The version that the tests were last run with.
const TESTED_VERSION: &str = include_str!("../../../kernel-config/source-version");
/// Raised when the way of building changes in a manner that the other inputs do not show.
const PROCEDURE: u32 = 1;
/// Free space a build needs: the unpacked source and the objects.
const SPACE_NEEDED_BYTES: u64 = 4 << 30;
/// How long to wait for another process that builds the same kernel.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2 * 3600);
/// Cache entries kept per kernel, newest first.
const ENTRIES_KEPT: usize = 8;
/// The build's clock (`uname -v`), 1 January 2025.
const TIMESTAMP: &str = "Wed Jan  1 00:00:00 UTC 2025";

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The device's own kernel, part of the UKI.
    Host,
    /// The kernel of container app VMs.
    Guest,
}

impl Kernel {
    /// `host` or `guest`: names of folders and of progress lines.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Host => "host",
            Kernel::Guest => "guest",
        }
    }

    /// Build steps as kbuild prints them, counted once; only the percentage shown depends on it.
    fn steps(self) -> usize {
        match self {
            Kernel::Host => 2910,
            Kernel::Guest => 2130,
        }
    }

    /// The fragments of this kernel in order, paths relative to `kernel-config/`.
    ///
    /// # Errors
    /// When the folder of host fragments cannot be read.
    pub fn fragments(self) -> Result<Vec<PathBuf>> {
        let mut list = vec![PathBuf::from("base.config"), PathBuf::from("hardening.config")];
        match self {
            Kernel::Guest => list.push("guest.config".into()),
            Kernel::Host => {
                let folder = config_folder().join("host");
                let mut own = Vec::new();
                for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
                    let name = PathBuf::from(entry?.file_name());
                    if name.extension().is_some_and(|e| e == "config") {
                        own.push(Path::new("host").join(name));
                    }
                }
                own.sort();
                list.extend(own);
            }
        }
        Ok(list)
    }
}

/// A kernel as built.
#[derive(Debug, Clone)]
pub struct KernelArtifacts {
    /// Compressed image with boot stub: what a UKI or `qemu -kernel` takes.
    pub bzimage: PathBuf,
    /// Stripped ELF image: what our VMM loads.
    pub vmlinux: PathBuf,
    /// Final configuration.
    pub config: PathBuf,
    /// Names and versions of the inputs, one `key: value` per line (for the SBOM).
    pub inputs: PathBuf,
    /// Version of the Debian source package.
    pub source_version: String,
}

/// Builds `which`, or finds it in the cache. `progress` gets a line at least every few seconds while something long goes on.
///
/// # Errors
/// Missing source package, too little space, a dropped option, a failed compile (the log is kept and named).
pub fn build(which: Kernel, progress: &dyn Fn(&str)) -> Result<KernelArtifacts> {
    let entry = Entry::of(which)?;
    if let Some(found) = entry.artifacts() {
        return Ok(found);
    }
    let _lock = entry.lock(progress)?;
    if let Some(found) = entry.artifacts() {
        return Ok(found);
    }
    let resumed = entry.unpack(progress)?;
    if resumed {
        progress(&format!(
            "{} kernel: going on with an interrupted build; its percentages start at 0 again",
            which.name()
        ));
    }
    let outcome = entry.compile(progress);
    let outcome = match outcome {
        Err(error) if resumed && !running::interrupted(&error) => {
            progress(&format!(
                "{} kernel: going on with an interrupted build failed ({error}); starting again",
                which.name()
            ));
            remove(&entry.building)?;
            entry.unpack(progress)?;
            entry.compile(progress)
        }
        other => other,
    };
    outcome?;
    entry.publish()?;
    entry.artifacts().with_context(|| format!("{}: the entry just made is not complete", entry.done.display()))
}

/// The final configuration of `which`: from the cache, or made now without compiling (half a minute).
///
/// # Errors
/// As [`build`], but for the compile.
pub fn configuration(which: Kernel, progress: &dyn Fn(&str)) -> Result<String> {
    let entry = Entry::of(which)?;
    let path = match entry.artifacts() {
        Some(found) => found.config,
        None => {
            let _lock = entry.lock(progress)?;
            match entry.artifacts() {
                Some(found) => found.config,
                None => {
                    entry.unpack(progress)?;
                    entry.configure()?
                }
            }
        }
    };
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// `kernel-config/` of this tree.
fn config_folder() -> PathBuf {
    root().join("kernel-config")
}

/// The option requests of `which`.
///
/// # Errors
/// Unreadable fragments, or two that contradict each other.
pub fn requests(which: Kernel) -> Result<Requests> {
    let folder = config_folder();
    let mut requests = Requests::default();
    for name in which.fragments()? {
        let text = fs::read_to_string(folder.join(&name))
            .with_context(|| format!("cannot read kernel-config/{}", name.display()))?;
        requests.add(&name.display().to_string(), &text)?;
    }
    Ok(requests)
}

/// One kernel's place in the cache, for one set of inputs.
struct Entry {
    which: Kernel,
    requests: Requests,
    source_version: String,
    inputs: String,
    folder: PathBuf,
    done: PathBuf,
    building: PathBuf,
}

impl Entry {
    fn of(which: Kernel) -> Result<Self> {
        let source_version = source_version()?;
        let requests = requests(which)?;
        let inputs = format!(
            "kernel: {}\nprocedure: {PROCEDURE}\nsource: {SOURCE_PACKAGE} {source_version}\ncompiler: {}\nlinker: {}\nrequests: {}\n",
            which.name(),
            first_line("gcc", &["--version"])?,
            first_line("ld", &["--version"])?,
            hex::encode(Sha256::digest(requests.text().as_bytes())),
        );
        let key = hex::encode(Sha256::digest(inputs.as_bytes()));
        let folder = cache().join("kernel");
        let name = format!("{}-{}", which.name(), &key[..20]);
        let (done, building) = (folder.join(&name), folder.join(format!("{name}.building")));
        Ok(Self { which, requests, source_version, inputs, folder, done, building })
    }

    fn artifacts(&self) -> Option<KernelArtifacts> {
        let file = |name: &str| Some(self.done.join(name)).filter(|p| p.is_file());
        Some(KernelArtifacts {
            bzimage: file("bzImage")?,
            vmlinux: file("vmlinux")?,
            config: file("config")?,
            inputs: file("inputs")?,
            source_version: self.source_version.clone(),
        })
    }

    /// Waits until no other process builds this kernel. The lock ends with the returned file.
    fn lock(&self, progress: &dyn Fn(&str)) -> Result<File> {
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot make {}", self.folder.display()))?;
        let path = self.folder.join(format!("{}.lock", self.which.name()));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let (started, mut told) = (Instant::now(), None);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) if started.elapsed() < LOCK_TIMEOUT => {
                    if told.is_none_or(|t: Instant| t.elapsed() > Duration::from_secs(10)) {
                        progress(&format!(
                            "{} kernel: another process builds it, waiting ({} s)",
                            self.which.name(),
                            started.elapsed().as_secs()
                        ));
                        told = Some(Instant::now());
                    }
                    std::thread::sleep(Duration::from_millis(500));
                }
                Err(fs::TryLockError::WouldBlock) => {
                    bail!("{}: held by another build for two hours; end that build, then try again", path.display())
                }
                Err(fs::TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
    }

    /// Lays the source out in the building folder. True when it was there already, from an interrupted build of the same inputs.
    fn unpack(&self, progress: &dyn Fn(&str)) -> Result<bool> {
        let marker = self.building.join("unpacked");
        if marker.is_file() {
            return Ok(true);
        }
        // Left-overs of this kernel with other inputs are of no more use: the lock says that nobody is at work there.
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", self.which.name()))
                && (name.ends_with(".building") || name.ends_with(".staging"))
            {
                remove(&path)?;
            }
        }
        let free = free_bytes(&self.folder)?;
        if free < SPACE_NEEDED_BYTES {
            bail!(
                "{}: a kernel build needs {} MiB of free space, {} MiB are left; free some, or set HOLDFAST_CACHE to a larger disk",
                self.folder.display(),
                SPACE_NEEDED_BYTES >> 20,
                free >> 20
            );
        }
        fs::create_dir_all(&self.building).with_context(|| format!("cannot make {}", self.building.display()))?;
        progress(&format!("{} kernel: unpacking {SOURCE_PACKAGE} {}", self.which.name(), self.source_version));
        run(Command::new("tar").arg("-xJf").arg(archive()).arg("-C").arg(&self.building).arg("--no-same-owner"))?;
        fs::write(&marker, "").with_context(|| format!("cannot write {}", marker.display()))?;
        Ok(false)
    }

    fn source(&self) -> PathBuf {
        self.building.join(SOURCE_PACKAGE)
    }

    /// `make` with nothing of the caller's environment that could change a kernel.
    fn make(&self) -> Command {
        let mut command = Command::new("nice");
        command.arg("make").current_dir(self.source()).env_clear();
        for name in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("LC_ALL", "C")
            .env("LOCALVERSION", "")
            .env("KBUILD_BUILD_TIMESTAMP", TIMESTAMP)
            .env("KBUILD_BUILD_USER", "holdfast")
            .env("KBUILD_BUILD_HOST", "holdfast")
            .env("KBUILD_BUILD_VERSION", "1")
            .arg("ARCH=x86_64");
        command
    }

    /// Makes `.config` and checks it against the requests.
    fn configure(&self) -> Result<PathBuf> {
        let requested = self.building.join("requests.config");
        let text = self.requests.text();
        // The same requests again: leave the files alone, so that an interrupted build goes on.
        if fs::read_to_string(&requested).ok().as_deref() != Some(&text) || !self.source().join(".config").is_file() {
            fs::write(&requested, text).with_context(|| format!("cannot write {}", requested.display()))?;
            run(self.make().env("KCONFIG_ALLCONFIG", &requested).arg("allnoconfig"))?;
        }
        let config = self.source().join(".config");
        let result = fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
        let violations = self.requests.violations(&result);
        if !violations.is_empty() {
            let list: Vec<String> = violations.iter().map(|v| format!("  {v}")).collect();
            bail!(
                "{} kernel: the configuration lost {} of the options asked for:\n{}",
                self.which.name(),
                list.len(),
                list.join("\n")
            );
        }
        Ok(config)
    }

    fn compile(&self, progress: &dyn Fn(&str)) -> Result<()> {
        if self.source_version != TESTED_VERSION.trim() {
            progress(&format!(
                "{} kernel: source {} is installed; last tested was {}",
                self.which.name(),
                self.source_version,
                TESTED_VERSION.trim()
            ));
        }
        progress(&format!("{} kernel: configuring", self.which.name()));
        self.configure()?;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let log = self.folder.join(format!("{}.log", self.which.name()));
        let mut make = self.make();
        make.arg(format!("-j{jobs}")).arg("bzImage");
        running::with_progress(make, &log, self.which.steps(), &|line| {
            progress(&format!("{} kernel: {line}", self.which.name()))
        })
    }

    /// Moves what was built into the cache by one rename.
    fn publish(&self) -> Result<()> {
        let staging = self.done.with_extension("staging");
        remove(&staging)?;
        fs::create_dir_all(&staging).with_context(|| format!("cannot make {}", staging.display()))?;
        let source = self.source();
        for (from, to) in [("arch/x86/boot/bzImage", "bzImage"), (".config", "config"), ("System.map", "System.map")] {
            fs::copy(source.join(from), staging.join(to))
                .with_context(|| format!("cannot copy {from} of the {} kernel", self.which.name()))?;
        }
        run(Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(staging.join("vmlinux"))
            .arg(source.join("vmlinux")))?;
        fs::write(staging.join("inputs"), &self.inputs)?;
        for entry in fs::read_dir(&staging)? {
            File::open(entry?.path())?.sync_all()?;
        }
        remove(&self.done)?;
        fs::rename(&staging, &self.done).with_context(|| format!("cannot move {} into place", self.done.display()))?;
        File::open(&self.folder)?.sync_all()?;
        remove(&self.building)?;
        self.prune()
    }

    /// Bounds the cache: the oldest entries beyond [`ENTRIES_KEPT`] go.
    fn prune(&self) -> Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", self.which.name())) && !name.contains('.') {
                entries.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        entries.sort_by(|a, b| b.cmp(a));
        entries.iter().skip(ENTRIES_KEPT).try_for_each(|(_, path)| remove(path))
    }
}

fn archive() -> PathBuf {
    Path::new("/usr/src").join(format!("{SOURCE_PACKAGE}.tar.xz"))
}

fn source_version() -> Result<String> {
    let version =
        run(Command::new("dpkg-query").args(["-W", "-f", "${Version}", SOURCE_PACKAGE])).with_context(|| {
            format!("kernel source: package {SOURCE_PACKAGE} is not installed; apt-get install {SOURCE_PACKAGE}")
        })?;
    if !archive().is_file() {
        bail!(
            "kernel source: {} is missing though its package is installed; apt-get install --reinstall {SOURCE_PACKAGE}",
            archive().display()
        );
    }
    Ok(version.trim().to_owned())
}

fn first_line(program: &str, args: &[&str]) -> Result<String> {
    let text = run(Command::new(program).args(args))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn free_bytes(folder: &Path) -> Result<u64> {
    let text = run(Command::new("df").args(["--output=avail", "-B1"]).arg(folder))?;
    text.lines()
        .nth(1)
        .and_then(|n| n.trim().parse().ok())
        .with_context(|| format!("cannot tell the free space of {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requested_option_survives() {
        for which in [Kernel::Host, Kernel::Guest] {
            let config = configuration(which, &|line| eprintln!("{line}")).unwrap();
            let violations = requests(which).unwrap().violations(&config);
            assert!(violations.is_empty(), "{} kernel: {violations:?}", which.name());
        }
    }

    #[test]
    fn a_dropped_option_is_found_in_the_real_configuration() {
        for which in [Kernel::Host, Kernel::Guest] {
            let config = configuration(which, &|line| eprintln!("{line}")).unwrap();
            let damaged = config.replace("CONFIG_EROFS_FS=y", "# CONFIG_EROFS_FS is not set");
            assert_ne!(config, damaged);
            let violations = requests(which).unwrap().violations(&damaged);
            assert_eq!(violations.iter().map(|v| v.option.as_str()).collect::<Vec<_>>(), ["CONFIG_EROFS_FS"]);
        }
    }

    #[test]
    fn no_kernel_loads_modules() {
        for which in [Kernel::Host, Kernel::Guest] {
            assert_eq!(requests(which).unwrap().value("CONFIG_MODULES"), Some("n"));
        }
    }

    #[test]
    fn every_group_of_options_gives_its_reason() {
        for which in [Kernel::Host, Kernel::Guest] {
            for name in which.fragments().unwrap() {
                let text = fs::read_to_string(config_folder().join(&name)).unwrap();
                for group in text.split("\n\n").filter(|g| g.contains("CONFIG_")) {
                    let first = group.trim_start().lines().next().unwrap_or_default();
                    let reasoned = first.starts_with("# ") && !first.starts_with("# CONFIG_");
                    assert!(
                        reasoned,
                        "kernel-config/{}: a group without a reason begins with {first:?}",
                        name.display()
                    );
                }
            }
        }
    }
}
