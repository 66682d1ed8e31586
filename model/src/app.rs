//! Apps: each runs in its own virtual machine.

use crate::net::AppInterface;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A reference from an app to a volume; the order is the disk order, the first is the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRef {
    /// The volume.
    pub volume: Uuid,
    /// Must equal the volume's generation.
    pub generation: i64,
    /// Where a container sees it; empty = `/mnt`.
    pub mount_dir: String,
}

/// One app instance.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its id.
    pub id: Uuid,
    /// Version text of the object.
    pub version: String,
    /// Label; also the app's host name.
    pub name: String,
    /// Run it.
    pub activate: bool,
    /// Virtual CPUs, at least 1.
    pub vcpus: u32,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Disks in order; the first is the root.
    pub volumes: Vec<VolumeRef>,
    /// Virtual NICs in order.
    pub interfaces: Vec<AppInterface>,
    /// Decoded user data (cloud-config or KEY=VALUE lines); empty when none.
    pub user_data: String,
    /// Restart when it grows.
    pub restart_counter: u32,
    /// Make the root volume's writable layer anew when it grows.
    pub purge_counter: u32,
    /// Wait after device boot.
    pub start_delay_seconds: u32,
    /// No console log collection.
    pub disable_logs: bool,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // User data may hold secrets and never reaches a log.
        f.debug_struct("App")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("activate", &self.activate)
            .field("vcpus", &self.vcpus)
            .field("memory_bytes", &self.memory_bytes)
            .finish_non_exhaustive()
    }
}
