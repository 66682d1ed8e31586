//! What the programs of the host hold: file descriptors and threads, queues of taps, cgroups. Read from `/proc` and `/sys`,
//! so it says what the kernel knows and not what this program believes.

use crate::machine;
use holdfast_model::resources::{ProcessResources, Resources};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Looks. What ends meanwhile is left out.
#[must_use]
pub fn look() -> Resources {
    Resources {
        processes: processes(Path::new("/proc")),
        taps: taps(Path::new("/sys/class/net")),
        cgroups: cgroups(Path::new(holdfast_supervise::CGROUP_ROOT)),
    }
}

/// Processes with a program: kernel threads have none.
fn processes(proc: &Path) -> Vec<ProcessResources> {
    let mut list: Vec<ProcessResources> = names(proc)
        .iter()
        .filter_map(|name| {
            let folder = proc.join(name);
            fs::read_link(folder.join("exe")).ok()?;
            let count =
                |what: &str| Some(u32::try_from(fs::read_dir(folder.join(what)).ok()?.count()).unwrap_or(u32::MAX));
            Some(ProcessResources {
                pid: name.parse().ok()?,
                name: machine::line(folder.join("comm")),
                fds: count("fd")?,
                threads: count("task")?,
            })
        })
        .collect();
    list.sort_by_key(|process| process.pid);
    list
}

/// Interfaces that are taps, each with its queues: the kernel shows those that are attached and not switched off.
fn taps(net: &Path) -> BTreeMap<String, u32> {
    names(net)
        .into_iter()
        .filter(|name| net.join(name).join("tun_flags").exists())
        .map(|name| {
            let queues = names(&net.join(&name).join("queues"));
            let count = queues.iter().filter(|queue| queue.starts_with("rx-")).count();
            (name, u32::try_from(count).unwrap_or(u32::MAX))
        })
        .collect()
}

fn cgroups(root: &Path) -> Vec<String> {
    let mut list: Vec<String> = names(root).into_iter().filter(|name| root.join(name).is_dir()).collect();
    list.sort();
    list
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn this_process_and_what_it_opens_are_seen() {
        let own = || {
            let list = processes(Path::new("/proc"));
            list.into_iter().find(|p| p.pid == std::process::id()).expect("this process")
        };
        let before = own();
        assert!(before.threads >= 1);
        // More than other tests of this process open and close meanwhile.
        let files: Vec<File> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        let after = own();
        assert!(after.fds >= before.fds + 100, "{before:?}, then {after:?}");
        drop(files);
    }

    #[test]
    fn taps_are_told_from_other_interfaces_and_their_queues_counted() {
        let net = tempfile::tempdir().unwrap();
        for queue in
            ["tap-a/queues/rx-0", "tap-a/queues/rx-1", "tap-a/queues/tx-0", "tap-b/queues/rx-0", "eth0/queues/rx-0"]
        {
            fs::create_dir_all(net.path().join(queue)).unwrap();
        }
        for tap in ["tap-a", "tap-b"] {
            fs::write(net.path().join(tap).join("tun_flags"), "0x5102\n").unwrap();
        }
        assert_eq!(taps(net.path()), [("tap-a".to_owned(), 2), ("tap-b".to_owned(), 1)].into());
    }

    #[test]
    fn cgroups_are_the_folders() {
        let root = tempfile::tempdir().unwrap();
        for unit in ["vmm-1", "node"] {
            fs::create_dir(root.path().join(unit)).unwrap();
        }
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        assert_eq!(cgroups(root.path()), ["node", "vmm-1"]);
    }
}
