//! Numbers that change all the time: sampled when a metrics message is due. Keyed by the ids and names of [`crate::observed`].

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// One sample of everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauges {
    /// The device.
    pub device: DeviceGauges,
    /// Traffic of each port, by adapter name.
    pub ports: BTreeMap<String, InterfaceCounters>,
    /// Traffic of each network instance's bridge.
    pub instances: BTreeMap<Uuid, InterfaceCounters>,
    /// Volumes.
    pub volumes: BTreeMap<Uuid, VolumeGauges>,
    /// Apps that run.
    pub apps: BTreeMap<Uuid, AppGauges>,
}

/// The device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceGauges {
    /// Bytes of RAM in use.
    pub memory_used_bytes: u64,
    /// Bytes of DATA in use.
    pub storage_used_bytes: u64,
    /// Seconds since boot.
    pub uptime_seconds: u64,
    /// CPU time of all processors since boot in nanoseconds.
    pub cpu_total_ns: u64,
}

/// A volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeGauges {
    /// Bytes that it takes of DATA, its image included.
    pub used_bytes: u64,
    /// What its app's VM reads and writes.
    pub counters: DiskCounters,
}

/// An app that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppGauges {
    /// Memory used by its unit in bytes.
    pub memory_used_bytes: u64,
    /// CPU time of its unit in nanoseconds.
    pub cpu_total_ns: u64,
    /// Traffic as the guest sees it, by interface name.
    pub interfaces: BTreeMap<String, InterfaceCounters>,
}

/// Interface counters since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceCounters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive drops.
    pub rx_drops: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send drops.
    pub tx_drops: u64,
    /// Send errors.
    pub tx_errors: u64,
}

impl InterfaceCounters {
    /// The same traffic as the other end of a cable counts it: the host's tap receives what its guest sends.
    #[must_use]
    pub fn from_the_other_end(self) -> Self {
        Self {
            rx_bytes: self.tx_bytes,
            rx_packets: self.tx_packets,
            rx_drops: self.tx_drops,
            rx_errors: self.tx_errors,
            tx_bytes: self.rx_bytes,
            tx_packets: self.rx_packets,
            tx_drops: self.rx_drops,
            tx_errors: self.rx_errors,
        }
    }
}

/// Counters of a disk since its VM started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounters {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
}
