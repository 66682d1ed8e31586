//! The device itself.

use crate::slot::SlotStatus;
use crate::trouble::{Object, ObjectKind, Trouble};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

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
    /// Bytes of DATA.
    pub storage_bytes: u64,
    /// Seconds since the Unix epoch of this boot; 0 while the clock is not known. Steady: see [`super::Observed::settle`].
    pub boot_time_seconds: i64,
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
    /// In maintenance mode, and why; empty when not.
    pub maintenance: String,
    /// Last reboot counter acted on.
    pub reboot_counter: u32,
    /// Last shutdown counter acted on.
    pub shutdown_counter: u32,
    /// Revision of the config in force.
    pub config_revision: String,
    /// What is wrong with attestation, the vault, the slots and the device as a whole.
    pub troubles: Vec<Trouble>,
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

impl TrustStatus {
    /// What is wrong while the vault is closed.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        let text = if self.vault_note.is_empty() { "the vault is not open" } else { &self.vault_note };
        (!self.vault_open).then(|| Trouble::error(Object::new(ObjectKind::Vault, "", "Application Data Store"), text))
    }
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
