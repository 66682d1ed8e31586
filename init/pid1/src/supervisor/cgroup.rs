//! One cgroup v2 per unit: limits, the kill that spares nobody, and removal.
#![forbid(unsafe_code)]

use holdfast_supervise::{Limits, UnitName};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The directory under which units have their cgroups.
#[derive(Debug, Clone)]
pub struct Cgroups {
    root: PathBuf,
}

/// A cgroup file that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cgroup {}: {source}", path.display())]
pub struct CgroupError {
    /// Directory or file.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

impl Cgroups {
    /// Uses `root` (made if missing) inside a cgroup2 mount and turns on the controllers of [`Limits`] as far as
    /// the kernel has them; the names of those it does not have are returned.
    pub fn prepare(root: &Path) -> Result<(Cgroups, Vec<&'static str>), CgroupError> {
        let mut missing = Vec::new();
        let fault = |path: &Path| {
            let path = path.to_owned();
            move |source| CgroupError { path, source }
        };
        make_dir(root).map_err(fault(root))?;
        for controller in ["memory", "cpu", "pids", "io"] {
            let enable = format!("+{controller}");
            let on = |dir: &Path| fs::write(dir.join("cgroup.subtree_control"), &enable);
            let parent = root.parent().unwrap_or(root);
            if on(parent).and_then(|()| on(root)).is_err() {
                missing.push(controller);
            }
        }
        Ok((Cgroups { root: root.to_owned() }, missing))
    }

    /// Makes (or finds) the cgroup of a unit, applies its limits, and opens its
    /// `cgroup.procs`, into which the child writes itself.
    /// Processes of an earlier run that are still in it are killed.
    pub fn enter(&self, unit: &UnitName, limits: &Limits) -> Result<File, CgroupError> {
        let dir = self.root.join(unit.as_str());
        make_dir(&dir).map_err(|source| CgroupError { path: dir.clone(), source })?;
        self.kill(unit);
        let write = |file: &str, value: Option<String>, default: &str| {
            let path = dir.join(file);
            match fs::write(&path, value.as_deref().unwrap_or(default)) {
                // A kernel without the controller cannot limit; asking for a limit then is an error, not asking is none.
                Err(_) if value.is_none() => Ok(()),
                other => other.map_err(|source| CgroupError { path, source }),
            }
        };
        write("memory.max", limits.memory_max_bytes.map(|v| v.to_string()), "max")?;
        write("memory.oom.group", None, "1")?;
        write("cpu.weight", limits.cpu_weight.map(|v| v.to_string()), "100")?;
        write("pids.max", limits.pids_max.map(|v| v.to_string()), "max")?;
        // Not CLONE_INTO_CGROUP: since Linux 6.12.14 that compares the kill counters of two different cgroups and
        // kills the newcomer in any cgroup that has seen `cgroup.kill` before.
        let procs = dir.join("cgroup.procs");
        File::options().write(true).open(&procs).map_err(|source| CgroupError { path: procs, source })
    }

    /// How often the kernel has ended a process in it for lack of memory, since it was made.
    pub fn out_of_memory_kills(&self, unit: &UnitName) -> u64 {
        let text = fs::read_to_string(self.root.join(unit.as_str()).join("memory.events")).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
    }

    /// SIGKILL to every process in it.
    pub fn kill(&self, unit: &UnitName) {
        // Nothing to kill when it is not there.
        let _ = fs::write(self.root.join(unit.as_str()).join("cgroup.kill"), "1");
    }

    /// Removes it; false while processes are still dying in it.
    pub fn remove(&self, unit: &UnitName) -> bool {
        match fs::remove_dir(self.root.join(unit.as_str())) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
