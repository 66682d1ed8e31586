//! Orders that only images signed with development keys follow, given as device properties. The text is a word of the
//! orderer's choice: an order is followed once each time the text changes to another one that is not empty.
//!
//! | property | what happens |
//! |---|---|
//! | `debug.node.abort` | the agent aborts, as by a fault of its own; PID 1 starts it again, apps must not notice |
//! | `debug.memory` | one log line with the memory of every process of the host |
//! | `debug.resources` | one log line with what the processes of the host hold: [`crate::resources`] as JSON |

use holdfast_format::release::Kind;
use std::collections::BTreeMap;
use std::fs;

/// Kills the agent.
pub const ABORT: &str = "debug.node.abort";
/// Tells memory.
pub const MEMORY: &str = "debug.memory";

/// Tells what is held.
pub const RESOURCES: &str = "debug.resources";

/// Orders that are due: names of properties. `seen` is what was followed before and must be on disk before anything is done.
pub fn due(kind: Kind, properties: &[(String, String)], seen: &mut BTreeMap<String, String>) -> Vec<&'static str> {
    let mut due = Vec::new();
    if kind != Kind::Dev {
        return due;
    }
    for name in [MEMORY, RESOURCES, ABORT] {
        let text = properties.iter().find(|(key, _)| key == name).map_or("", |(_, text)| text);
        let old = seen.get(name).map_or("", String::as_str);
        if text == old {
            continue;
        }
        if text.is_empty() {
            seen.remove(name);
        } else {
            seen.insert(name.to_owned(), text.to_owned());
            due.push(name);
        }
    }
    due
}

/// Memory of all processes of the host, largest first, in KiB: `memory: node 9000+4000, vmm 2000+900+65536, ...`. The numbers are what is
/// the process's own (anonymous), what it maps of files and shared memory, and what a guest has touched of its memory.
#[must_use]
pub fn memory() -> String {
    let mut list: Vec<(Usage, String)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            // Kernel threads have no mappings.
            let maps = fs::read_to_string(entry.path().join("smaps")).ok().filter(|maps| !maps.is_empty())?;
            Some((usage(&maps), name.trim().to_owned()))
        })
        .collect();
    list.sort_by_key(|(u, _)| std::cmp::Reverse(u.own + u.mapped));
    let parts: Vec<String> = list
        .iter()
        .map(|(u, name)| match u.guest {
            0 => format!("{name} {}+{}", u.own, u.mapped),
            guest => format!("{name} {}+{}+{guest}", u.own, u.mapped),
        })
        .collect();
    format!("memory: {}", parts.join(", "))
}

/// What the processes of the host hold: `resources: {...}`.
#[must_use]
pub fn resources() -> String {
    // Maps with text as keys and numbers: there is nothing in them that JSON has not.
    format!("resources: {}", serde_json::to_string(&crate::resources::look()).unwrap_or_default())
}

/// Resident KiB of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    own: u64,
    mapped: u64,
    guest: u64,
}

/// Sums up `/proc/PID/smaps`. Guest memory is what the VMM keeps out of core dumps (flag `dd`).
fn usage(smaps: &str) -> Usage {
    let (mut sum, mut resident, mut anonymous) = (Usage::default(), 0, 0);
    for line in smaps.lines() {
        let kib = |name: &str| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok();
        if let Some(n) = kib("Rss:") {
            resident = n;
        } else if let Some(n) = kib("Anonymous:") {
            anonymous = n;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            // The last line of each mapping.
            if flags.split_whitespace().any(|flag| flag == "dd") {
                sum.guest += resident;
            } else {
                sum.own += anonymous;
                sum.mapped += resident.saturating_sub(anonymous);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(text: &str) -> Vec<(String, String)> {
        vec![(ABORT.to_owned(), text.to_owned())]
    }

    #[test]
    fn an_order_is_followed_once_for_each_text() {
        let mut seen = BTreeMap::new();
        let mut follow = |text: &str| !due(Kind::Dev, &order(text), &mut seen).is_empty();
        let followed = ["", "1", "1", "2", "", "", "2", "2"].map(&mut follow);
        assert_eq!(followed, [false, true, false, true, false, false, true, false]);
    }

    #[test]
    fn release_images_follow_none() {
        let mut seen = BTreeMap::new();
        assert!(due(Kind::Release, &order("1"), &mut seen).is_empty());
        assert!(seen.is_empty());
    }

    #[test]
    fn memory_of_a_guest_is_told_from_its_vmms() {
        let smaps = "1000-2000 rw-p 0 00:00 0\nSize: 4 kB\nRss:     30 kB\nAnonymous:  10 kB\nVmFlags: rd wr mr\n\
                     3000-4000 rw-p 0 00:00 0\nRss:    500 kB\nAnonymous: 500 kB\nVmFlags: rd wr dd nh\n";
        assert_eq!(usage(smaps), Usage { own: 10, mapped: 20, guest: 500 });
    }

    #[test]
    fn this_process_is_among_those_of_the_host() {
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(memory().contains(comm.trim()), "{}", memory());
    }
}
