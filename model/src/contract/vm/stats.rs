//! Counters of a VM, for the metrics of its app.

use std::ops::Add;

use serde::{Deserialize, Serialize};

/// Counters of one device, for the app's metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceStats {
    /// Bytes from the guest (sent, written to disk).
    pub out_bytes: u64,
    /// Bytes to the guest (received, read from disk).
    pub in_bytes: u64,
    /// Requests or frames from the guest.
    pub out_ops: u64,
    /// Requests or frames to the guest.
    pub in_ops: u64,
    /// Requests that failed on the host.
    pub errors: u64,
}

impl Add for DeviceStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            out_bytes: self.out_bytes + other.out_bytes,
            in_bytes: self.in_bytes + other.in_bytes,
            out_ops: self.out_ops + other.out_ops,
            in_ops: self.in_ops + other.in_ops,
            errors: self.errors + other.errors,
        }
    }
}

/// Counters of one console, since the VM started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleStats {
    /// Bytes the guest wrote.
    pub out_bytes: u64,
    /// Bytes the guest was given.
    pub in_bytes: u64,
    /// Bytes of output that the main output was too slow for.
    pub lost_bytes: u64,
    /// Clients attached now.
    pub attached: u32,
}

/// Address space of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// Port I/O.
    Pio,
    /// Memory-mapped I/O.
    Mmio,
}

/// One address and the exits that it cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hot {
    /// Port or memory.
    pub space: Space,
    /// First address of the access.
    pub address: u64,
    /// Exits; at most the count of the coldest place too high once more than the table's addresses were touched.
    pub exits: u64,
}

/// A guest's own figures. One it does not give is absent; sizes are never more than its RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemory {
    /// Memory its kernel manages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Memory used for nothing at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Memory that programs could have without swapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Files kept in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
    /// Swapped in since its boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_in_bytes: Option<u64>,
    /// Swapped out since its boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_out_bytes: Option<u64>,
    /// Page faults that read a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Programs ended for lack of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
}

/// Memory of a VM with a balloon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// Size that the agent wants the balloon to have.
    pub balloon_target_bytes: u64,
    /// Size that the driver says it has.
    pub balloon_bytes: u64,
    /// Free memory that the guest has reported and the host has taken back since the driver started; a page that is used
    /// and freed again counts again.
    pub reported_bytes: u64,
    /// The guest's figures, as old as `age_ms`. Asking for statistics has the guest send newer ones for the next time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestMemory>,
    /// Time since the guest sent its figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
}
