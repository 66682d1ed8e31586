//! The kernel's file systems, where every program expects them.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::io;
use std::path::Path;

/// A mount that failed.
#[derive(Debug, thiserror::Error)]
#[error("mount {kind} at {at}: {source}")]
pub struct MountError {
    kind: &'static str,
    at: &'static str,
    source: io::Error,
}

struct Wanted {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    options: &'static str,
    /// Absent on kernels or machines without it, which is not an error.
    optional: bool,
}

const fn row(kind: &'static str, at: &'static str, flags: MsFlags, options: &'static str, optional: bool) -> Wanted {
    Wanted { kind, at, flags, options, optional }
}

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

const TABLE: &[Wanted] = &[
    row("proc", "/proc", QUIET, "", false),
    row("sysfs", "/sys", QUIET, "", false),
    row("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=0620,ptmxmode=0666", true),
    row("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=0755,size=64m", false),
    row("tmpfs", "/tmp", QUIET, "mode=1777,size=64m", false),
    row("cgroup2", "/sys/fs/cgroup", QUIET, "favordynmods", false),
    row("efivarfs", "/sys/firmware/efi/efivars", QUIET, "", true),
    row("securityfs", "/sys/kernel/security", QUIET, "", true),
    row("pstore", "/sys/fs/pstore", QUIET, "", true),
];

/// What [`move_to`] takes along into the slot; the rest hangs below these.
const MOVED: [&str; 5] = ["/dev", "/proc", "/sys", "/run", "/tmp"];

/// devtmpfs, before everything: the watchdog and the console are there.
pub fn devices() -> Result<(), MountError> {
    attempt(&row("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755", false))
}

/// All others; the names of optional ones that are absent are returned.
pub fn all() -> Result<Vec<&'static str>, MountError> {
    let mut absent = Vec::new();
    for wanted in TABLE {
        match attempt(wanted) {
            Ok(()) => {}
            Err(_) if wanted.optional => absent.push(wanted.kind),
            Err(error) => return Err(error),
        }
    }
    Ok(absent)
}

/// Makes the file system mounted at `new` the root, with the kernel's file systems below it.
pub fn move_to(new: &str) -> Result<(), MountError> {
    let fault = |at: &'static str| move |errno: Errno| MountError { kind: "move", at, source: errno.into() };
    for at in MOVED {
        let target = format!("{new}{at}");
        mount(Some(at), target.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(fault(at))?;
    }
    nix::unistd::chdir(new).map_err(fault("the slot"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(fault("/"))?;
    nix::unistd::chroot(".").map_err(fault("chroot"))?;
    nix::unistd::chdir("/").map_err(fault("/"))
}

/// Unmounts `at`; when it is busy it is detached, so that it goes with its last user.
pub fn unmount(at: &str) -> Result<(), Errno> {
    match umount2(at, MntFlags::empty()) {
        Err(Errno::EBUSY) => umount2(at, MntFlags::MNT_DETACH),
        other => other,
    }
}

/// Where file systems from block devices are mounted, innermost first; the root is not among them.
pub fn of_block_devices(proc_mounts: &str) -> Vec<String> {
    let mut found: Vec<String> = proc_mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (source, at) = (fields.next()?, fields.next()?);
            (source.starts_with("/dev/") && at != "/").then(|| at.replace("\\040", " "))
        })
        .collect();
    found.reverse();
    found
}

fn attempt(wanted: &Wanted) -> Result<(), MountError> {
    let fault = |source: io::Error| MountError { kind: wanted.kind, at: wanted.at, source };
    if !Path::new(wanted.at).is_dir() {
        fs::create_dir_all(wanted.at).map_err(fault)?;
    }
    let options = (!wanted.options.is_empty()).then_some(wanted.options);
    match mount(Some(wanted.kind), wanted.at, Some(wanted.kind), wanted.flags, options) {
        // The kernel mounts devtmpfs itself on some configurations.
        Err(Errno::EBUSY) => Ok(()),
        other => other.map_err(|errno| fault(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_devices_are_unmounted_innermost_first_and_the_root_never() {
        let mounts = "/dev/dm-0 / erofs ro 0 0\nproc /proc proc rw 0 0\n/dev/dm-1 /data ext4 rw 0 0\n/dev/loop0 /data/a\\040b erofs ro 0 0\n";
        assert_eq!(of_block_devices(mounts), ["/data/a b", "/data"]);
    }
}
