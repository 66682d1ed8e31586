//! What the programs of the host hold right now: for whoever looks for a leak.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One look. As JSON it is a line of the device's log, which `debug.resources` orders.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Programs of the host, by process id; without the kernel's own threads.
    pub processes: Vec<ProcessResources>,
    /// Queues that a VM has in use, by tap. One that nobody is attached to counts as 1.
    pub taps: BTreeMap<String, u32>,
    /// Units with a cgroup, sorted.
    pub cgroups: Vec<String>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessResources {
    /// Process id; that of PID 1 is 1.
    pub pid: u32,
    /// Its name as the kernel has it, at most 15 bytes.
    pub name: String,
    /// Open file descriptors.
    pub fds: u32,
    /// Threads, with those that the kernel runs on its behalf (vhost, io_uring).
    pub threads: u32,
}
