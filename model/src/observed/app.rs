//! Apps.

use crate::{net::Mac, trouble::Trouble};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use uuid::Uuid;

/// State of an app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppState {
    /// Known.
    #[default]
    Initial,
    /// Its image is coming.
    Downloading,
    /// Its image is here.
    Loaded,
    /// Its volumes are being made.
    CreatingVolume,
    /// All is here, not activated.
    Installed,
    /// Waiting for its network instance.
    AwaitNetworkInstance,
    /// The start delay runs.
    StartDelayed,
    /// The VM starts.
    Booting,
    /// It runs.
    Running,
    /// Being stopped.
    Halting,
    /// Stopped.
    Halted,
    /// Restarting on command.
    Restarting,
    /// Its writable layer is recreated.
    Purging,
    /// It does not work: see the troubles.
    Error,
}

/// An app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStatus {
    /// Its id.
    pub id: Uuid,
    /// Version text.
    pub version: String,
    /// Label.
    pub name: String,
    /// State.
    pub state: AppState,
    /// Runs.
    pub activated: bool,
    /// Seconds since the Unix epoch when it booted; 0 when it did not. Steady: see [`super::Observed::settle`].
    pub boot_time_seconds: i64,
    /// Interfaces in order.
    pub interfaces: Vec<AppInterfaceStatus>,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
    /// Times its VM was started since boot of the device.
    pub starts: u32,
    /// Memory limit in bytes.
    pub memory_bytes: u64,
    /// Volumes in order.
    pub volumes: Vec<Uuid>,
}

/// A NIC of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInterfaceStatus {
    /// Name.
    pub name: String,
    /// MAC.
    pub mac: Mac,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Tap.
    pub tap: String,
}
