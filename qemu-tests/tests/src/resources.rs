//! What the programs of the host hold, asked from the device (`debug.resources`, which only development images answer), and
//! whether it is as little as it was.

use crate::World;
use anyhow::{Context, Result, ensure};
use holdfast_model::resources::{ProcessResources, Resources};
use std::time::Duration;

/// Looks whose least makes a baseline: a connection may be open at one of them and not at the next.
const LOOKS: usize = 3;
/// Programs that live as long as the device: their descriptors and threads are compared.
const LASTING: [&str; 2] = ["init", "node"];

impl World {
    /// Asks the device.
    ///
    /// # Errors
    /// At the deadline.
    pub fn host_resources(&mut self, limit: Duration) -> Result<Resources> {
        let since = self.controller().position();
        let token = since.to_string();
        self.configure(|config| {
            config.properties.insert("debug.resources".into(), token);
        })?;
        let line = self.wait_device_log(since, "resources: ", limit)?;
        parse(&line).with_context(|| format!("expected resources, found {line:?}"))
    }

    /// What the host holds at least, of several looks.
    ///
    /// # Errors
    /// At the deadline of a look.
    pub fn least_host_resources(&mut self, limit: Duration) -> Result<Resources> {
        let mut least = self.host_resources(limit)?;
        for _ in 1..LOOKS {
            let again = self.host_resources(limit)?;
            for process in &mut least.processes {
                if let Some(now) = again.processes.iter().find(|p| p.pid == process.pid) {
                    process.fds = process.fds.min(now.fds);
                    process.threads = process.threads.min(now.threads);
                }
            }
        }
        Ok(least)
    }
}

/// What `now` has that `before` had not, in words; empty when there is nothing. PID 1 keeps the descriptors of a unit while it runs:
/// it may have `kept` more.
pub fn grown(before: &Resources, now: &Resources, kept: u32) -> Vec<String> {
    let mut grown = Vec::new();
    let names = |r: &Resources| {
        let mut list: Vec<String> = r.processes.iter().map(|p| p.name.clone()).collect();
        list.sort();
        list
    };
    let taps = |r: &Resources| r.taps.keys().cloned().collect::<Vec<_>>();
    for (what, before, now) in [
        ("processes", names(before), names(now)),
        ("taps", taps(before), taps(now)),
        ("cgroups", before.cgroups.clone(), now.cgroups.clone()),
    ] {
        if before != now {
            grown.push(format!("{what} were {before:?}, are {now:?}"));
        }
    }
    for name in LASTING {
        let (Ok(before), Ok(now)) = (lasting(before, name), lasting(now, name)) else {
            grown.push(format!("{name} is not among the processes"));
            continue;
        };
        let fds = before.fds + if now.pid == 1 { kept } else { 0 };
        if now.fds > fds || now.threads > before.threads {
            grown.push(format!(
                "{name} has {} descriptors and {} threads, expected at most {fds} and {}",
                now.fds, now.threads, before.threads
            ));
        }
    }
    grown
}

fn lasting<'a>(resources: &'a Resources, name: &str) -> Result<&'a ProcessResources> {
    let mut named = resources.processes.iter().filter(|p| p.name == name);
    let found = named.next().with_context(|| format!("{name} is not among the processes"))?;
    ensure!(named.next().is_none(), "{name} is there twice");
    Ok(found)
}

fn parse(line: &str) -> Option<Resources> {
    serde_json::from_str(line.split_once("resources: ")?.1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources() -> Resources {
        let process = |pid, name: &str, fds, threads| ProcessResources { pid, name: name.to_owned(), fds, threads };
        Resources {
            processes: vec![process(1, "init", 20, 1), process(70, "node", 30, 2), process(90, "vmm", 25, 4)],
            taps: [("tap-x".to_owned(), 1)].into(),
            cgroups: vec!["node".into(), "vmm-1".into()],
        }
    }

    #[test]
    fn a_line_of_the_device_is_read() {
        let line = format!("resources: {}", serde_json::to_string(&resources()).unwrap());
        assert_eq!(parse(&line), Some(resources()));
        assert_eq!(parse("resources: 7"), None);
    }

    #[test]
    fn what_a_restarted_vm_changes_is_no_growth_and_everything_else_is() {
        let mut now = resources();
        now.processes[0].fds += 6;
        now.processes[1].fds -= 3;
        now.processes[2] = ProcessResources { pid: 110, fds: 40, threads: 9, ..now.processes[2].clone() };
        now.taps.insert("tap-x".into(), 4);
        assert_eq!(grown(&resources(), &now, 6), Vec::<String>::new());
        assert_eq!(grown(&resources(), &now, 5).len(), 1, "a descriptor too many in PID 1");

        type Change = fn(&mut Resources);
        let cases: [(&str, Change); 6] = [
            ("node has 31", |r| r.processes[1].fds += 1),
            ("node has 30 descriptors and 3", |r| r.processes[1].threads += 1),
            ("taps were", |r| r.taps.extend([("tap-y".to_owned(), 1)])),
            ("cgroups were", |r| r.cgroups.push("vmm-2".into())),
            ("processes were", |r| r.processes.push(r.processes[2].clone())),
            ("node is not among", |r| drop(r.processes.remove(1))),
        ];
        for (text, change) in cases {
            let mut now = resources();
            change(&mut now);
            let found = grown(&resources(), &now, 0);
            assert!(found.iter().any(|f| f.contains(text)), "{text:?} not in {found:?}");
        }
    }
}
