//! What is so: the state that reports are made from.

use crate::{desired::Fault, net::Mac, slot::SlotStatus};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use uuid::Uuid;

/// The whole observed state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The device itself.
    pub device: DeviceStatus,
    /// One for each adapter.
    pub ports: Vec<PortStatus>,
    /// One for each network instance.
    pub instances: Vec<InstanceStatus>,
    /// One for each content tree.
    pub contents: Vec<ContentStatus>,
    /// One for each volume.
    pub volumes: Vec<VolumeStatus>,
    /// One for each app.
    pub apps: Vec<AppStatus>,
    /// Faults of the config now in force.
    pub faults: Vec<Fault>,
}

/// The device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Overall state.
    pub state: DeviceState,
    /// Its UUID once known.
    pub id: Uuid,
    /// Machine architecture, `x86_64`.
    pub architecture: String,
    /// Host name.
    pub host_name: String,
    /// Manufacturer, product, serial, from DMI.
    pub manufacturer: String,
    /// Product name.
    pub product: String,
    /// Serial number.
    pub serial: String,
    /// BIOS version.
    pub bios_version: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// Bytes of RAM in use.
    pub memory_used_bytes: u64,
    /// Bytes of DATA.
    pub storage_bytes: u64,
    /// Bytes of DATA in use.
    pub storage_used_bytes: u64,
    /// Unix seconds of this boot; 0 while the clock is not known.
    pub boot_time_seconds: i64,
    /// Seconds since boot.
    pub uptime_seconds: u64,
    /// CPU time of all processors since boot in nanoseconds.
    pub cpu_total_ns: u64,
    /// Boots of this machine, this one included.
    pub boot_count: u64,
    /// Why the last boot ended.
    pub last_reboot: RebootRecord,
    /// Trusted platform module and vault.
    pub trust: TrustStatus,
    /// The two slots, running one first.
    pub slots: Vec<SlotStatus>,
    /// State of attestation.
    pub attestation: AttestationState,
    /// Attestation error; empty when none.
    pub attestation_error: String,
    /// In maintenance mode, and why; empty when not.
    pub maintenance: String,
    /// Last reboot counter acted on.
    pub reboot_counter: u32,
    /// Last shutdown counter acted on.
    pub shutdown_counter: u32,
    /// Revision of the config in force.
    pub config_revision: String,
}

/// Overall device state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// No config yet.
    #[default]
    Booting,
    /// A config is in force.
    Online,
    /// A reboot was ordered.
    Rebooting,
    /// Maintenance mode.
    Maintenance,
    /// A base OS update is under way.
    Updating,
}

/// Why a boot ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebootRecord {
    /// Class.
    pub reason: BootReason,
    /// Text.
    pub text: String,
    /// Unix seconds; 0 when not known.
    pub time_seconds: i64,
}

/// Class of a boot's cause (EVE `BootReason`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootReason {
    /// The machine's first.
    First,
    /// Ordered by the controller.
    RebootCommand,
    /// To try an update.
    Update,
    /// A trial failed.
    Fallback,
    /// Too long without the controller.
    Disconnect,
    /// A fatal fault.
    Fatal,
    /// The watchdog.
    Watchdog,
    /// A kernel crash.
    Kernel,
    /// Power was lost.
    PowerFail,
    /// Not known.
    #[default]
    Unknown,
    /// The vault did not open.
    VaultFailure,
}

/// TPM and vault.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustStatus {
    /// A TPM is in use.
    pub tpm: bool,
    /// Manufacturer and firmware of the TPM.
    pub tpm_text: String,
    /// Secure Boot is on.
    pub secure_boot: bool,
    /// The vault is open and encrypted under a TPM-sealed key.
    pub vault_sealed: bool,
    /// The vault is open.
    pub vault_open: bool,
    /// A word about the vault: why it stays closed, or that escrow opened it; empty when it opened by itself.
    pub vault_note: String,
    /// What is weaker than it could be, one sentence each.
    pub weaknesses: Vec<String>,
    /// PCR values as last quoted, index and lower-case hex; empty without a TPM.
    pub pcrs: Vec<(u32, String)>,
}

/// State of attestation (EVE `AttestationState`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttestationState {
    /// Nothing asked yet, or waiting for the nonce.
    #[default]
    NonceWait,
    /// Waiting for the TPM's quote.
    QuoteWait,
    /// Waiting for the escrow.
    EscrowWait,
    /// Quote sent.
    AttestWait,
    /// Keys sent.
    AttestEscrowWait,
    /// After a failure.
    RestartWait,
    /// Done.
    Complete,
}

/// An adapter and its port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Adapter name.
    pub name: String,
    /// Kernel interface.
    pub interface: String,
    /// MAC.
    pub mac: Mac,
    /// Link is up.
    pub up: bool,
    /// Used for management.
    pub management: bool,
    /// Addresses by DHCP.
    pub dhcp: bool,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Prefix length of the first address.
    pub prefix_length: u8,
    /// Default routers.
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Domain.
    pub domain: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Cost.
    pub cost: u8,
    /// Error; empty when none.
    pub error: String,
    /// Counters.
    pub counters: InterfaceCounters,
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

/// A network instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its id.
    pub id: Uuid,
    /// Version text.
    pub version: String,
    /// Label.
    pub name: String,
    /// Kind number of EVE: 1 switch, 2 local.
    pub kind: i32,
    /// Made.
    pub activated: bool,
    /// Bridge name.
    pub bridge: String,
    /// Bridge address.
    pub address: Option<IpAddr>,
    /// Uplink interface.
    pub uplink: String,
    /// MAC and addresses of apps.
    pub assignments: Vec<(Mac, IpAddr)>,
    /// Interfaces of apps: tap name, MAC, app.
    pub interfaces: Vec<(String, Mac, Uuid)>,
    /// Error; empty when none.
    pub error: String,
    /// Counters of the bridge.
    pub counters: InterfaceCounters,
}

/// How far an image or app is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadState {
    /// Known, nothing done.
    #[default]
    Initial,
    /// The tag is being resolved.
    Resolving,
    /// Coming.
    Downloading,
    /// Here.
    Downloaded,
    /// Being checked.
    Verifying,
    /// Checked and usable.
    Loaded,
    /// Volume being made.
    CreatingVolume,
    /// Volume made.
    VolumeCreated,
    /// Error: see the text.
    Error,
}

/// An image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentStatus {
    /// Its id.
    pub id: Uuid,
    /// Label.
    pub name: String,
    /// State.
    pub state: LoadState,
    /// Percent.
    pub progress: u32,
    /// Digest found, hex; empty while not known.
    pub sha256: String,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// Error; empty when none.
    pub error: String,
}

/// A volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its id.
    pub id: Uuid,
    /// Label.
    pub name: String,
    /// State.
    pub state: LoadState,
    /// Percent.
    pub progress: u32,
    /// Bytes used.
    pub used_bytes: u64,
    /// Virtual size.
    pub max_size_bytes: u64,
    /// Generation.
    pub generation: i64,
    /// What its app's VM reads and writes.
    #[serde(default)]
    pub counters: DiskCounters,
    /// Error; empty when none.
    pub error: String,
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
    /// Its writable layer is made anew.
    Purging,
    /// Error: see the text.
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
    /// Unix seconds when it booted; 0 when it did not.
    pub boot_time_seconds: i64,
    /// Interfaces: name, MAC, addresses, error.
    pub interfaces: Vec<AppInterfaceStatus>,
    /// Error; empty when none.
    pub error: String,
    /// Times its VM was started since boot of the device.
    pub starts: u32,
    /// Memory limit in bytes.
    pub memory_bytes: u64,
    /// Memory used by its unit.
    pub memory_used_bytes: u64,
    /// CPU time in nanoseconds.
    pub cpu_total_ns: u64,
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
    /// Counters as the guest sees them.
    pub counters: InterfaceCounters,
}
