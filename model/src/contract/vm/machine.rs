//! How the machine sits on its host: CPUs, pages, and what is recorded.

use serde::{Deserialize, Serialize};

/// Pages that guest memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageSize {
    /// Huge pages where the kernel has them at hand, ordinary ones elsewhere.
    #[default]
    #[serde(rename = "thp")]
    Transparent,
    /// Ordinary pages only.
    #[serde(rename = "none")]
    Ordinary,
    /// 2 MiB pages from the host's reserve.
    #[serde(rename = "2M")]
    Huge2M,
    /// 1 GiB pages from the host's reserve.
    #[serde(rename = "1G")]
    Huge1G,
}

/// Host CPUs that one vCPU may run on: `2`, or `[2, 3]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HostCpus {
    /// This one.
    One(usize),
    /// Any of these.
    AnyOf(Vec<usize>),
}

impl HostCpus {
    /// The CPUs' numbers.
    pub fn numbers(&self) -> &[usize] {
        match self {
            HostCpus::One(cpu) => std::slice::from_ref(cpu),
            HostCpus::AnyOf(cpus) => cpus,
        }
    }
}

/// What the guest's timer interrupts come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timer {
    /// [`Timer::TscDeadline`] where the host's TSC is invariant (CPUID 0x80000007, EDX bit 8), else [`Timer::Pit`].
    #[default]
    Auto,
    /// The local APIC's TSC-deadline mode, and no PIT. On an emulated host a deadline now and then comes tens of seconds late.
    TscDeadline,
    /// A PIT to calibrate the local APIC against; its kernel thread works outside the VM's cgroup.
    Pit,
}

/// What is recorded and printed on stderr when the VM ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceConfig {
    /// Exits of each vCPU by kind, and the ports and addresses that cost most of them.
    #[serde(default)]
    pub exits: bool,
}
