//! Memory of the host's processes, asked from the device (`debug.memory`, which only development images answer).

use crate::World;
use anyhow::{Context, Result};
use std::time::Duration;

/// Resident bytes of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its name, as the kernel has it (cut at 15 characters).
    pub name: String,
    /// Its own memory.
    pub own_bytes: u64,
    /// What it maps of files and shared memory; files that several processes map count for each.
    pub mapped_bytes: u64,
    /// What the guest has touched of its memory.
    pub guest_bytes: u64,
}

impl Process {
    /// Resident memory without the guest's.
    pub fn bytes(&self) -> u64 {
        self.own_bytes + self.mapped_bytes
    }
}

/// Resident memory of all processes without the guests'.
pub fn total(processes: &[Process]) -> u64 {
    processes.iter().map(Process::bytes).sum()
}

impl World {
    /// Asks the device.
    ///
    /// # Errors
    /// At the deadline.
    pub fn host_memory(&mut self, limit: Duration) -> Result<Vec<Process>> {
        let since = self.controller().position();
        let token = since.to_string();
        self.configure(|config| {
            config.properties.insert("debug.memory".into(), token);
        })?;
        let line = self.wait_device_log(since, "memory: ", limit)?;
        parse(&line).with_context(|| format!("expected memory figures, found {line:?}"))
    }
}

fn parse(line: &str) -> Option<Vec<Process>> {
    let list = line.split_once("memory: ")?.1;
    list.split(", ")
        .map(|entry| {
            let (name, figures) = entry.rsplit_once(' ')?;
            let mut kib = figures.split('+').map(|n| n.parse::<u64>().ok());
            Some(Process {
                name: name.to_owned(),
                own_bytes: kib.next()?? * 1024,
                mapped_bytes: kib.next()?? * 1024,
                guest_bytes: kib.next().flatten().unwrap_or(0) * 1024,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_device_are_read() {
        let list = parse("memory: node 10+20, vmm 1+2+300, a b 4+5").unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!((list[0].bytes(), list[0].guest_bytes), (30 * 1024, 0));
        assert_eq!((list[1].bytes(), list[1].guest_bytes), (3 * 1024, 300 * 1024));
        assert_eq!((list[2].name.as_str(), total(&list)), ("a b", 42 * 1024));
        assert!(parse("memory: node").is_none() && parse("x").is_none());
    }
}
