//! What a VM's processes use, from `/proc`.

use std::fs;

/// Memory of a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Guest memory that is present, KiB.
    pub guest_kib: u64,
    /// Proportional share (PSS) of everything else, KiB.
    pub beyond_kib: u64,
}

/// The process and its children: a VM in its own pid namespace is the child of one that waits.
pub fn family(id: u32) -> Vec<u32> {
    let children = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let child = entry.file_name().to_str()?.parse().ok()?;
        // pid (name) state parent ...
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        (parent == id).then_some(child)
    });
    std::iter::once(id).chain(children).collect()
}

/// Memory of a VM whose guest has `guest_bytes`: its RAM is the mapping of at least that size.
pub fn memory(id: u32, guest_bytes: u64) -> Memory {
    let mut sum = Memory::default();
    for id in family(id) {
        let maps = fs::read_to_string(format!("/proc/{id}/smaps")).unwrap_or_default();
        let mut is_guest = false;
        for line in maps.lines() {
            if let Some((from, to)) = range(line) {
                is_guest = to - from >= guest_bytes;
            } else if is_guest && let Some(kib) = field(line, "Rss:") {
                sum.guest_kib += kib;
            } else if !is_guest && let Some(kib) = field(line, "Pss:") {
                sum.beyond_kib += kib;
            }
        }
    }
    sum
}

/// The addresses of a line that begins a mapping.
fn range(line: &str) -> Option<(u64, u64)> {
    let (from, to) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
}

fn field(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()
}

/// CPU time of each thread of a VM, by name, in nanoseconds. Threads that have ended are not in it.
pub fn threads(id: u32) -> Vec<(String, u64)> {
    let mut threads = Vec::new();
    for id in family(id) {
        for task in fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten() {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let ran = read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
            threads.push((read("comm").trim().to_string(), ran));
        }
    }
    threads
}

/// CPU time of a VM's threads but its vCPUs, in nanoseconds: the payload spins, and what the guest spends is its own.
pub fn cpu_beside_vcpus(id: u32) -> u64 {
    threads(id).iter().filter(|(name, _)| !name.starts_with("vcpu")).map(|(_, ns)| ns).sum()
}

/// CPU time of all threads of a VM, in nanoseconds.
pub fn cpu(id: u32) -> u64 {
    threads(id).iter().map(|(_, ns)| ns).sum()
}

/// Open descriptors of a process.
pub fn descriptors(id: u32) -> usize {
    fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_seen_with_its_memory_and_threads() {
        let id = std::process::id();
        assert_eq!(family(id)[0], id);
        let all = memory(id, u64::MAX);
        assert!(all.guest_kib == 0 && all.beyond_kib > 100, "{all:?}");
        // Some mapping has at least a page: everything counts as guest memory then.
        assert_eq!(memory(id, 1).beyond_kib, 0);
        assert!(threads(id).iter().any(|(_, ns)| *ns > 0));
        assert!(descriptors(id) >= 3);
    }
}
