//! What PID 1 found while booting, handed to `node` as `/run/holdfast/boot/facts.json`.

use crate::observed::BootReason;
use crate::slot::Slot;
use serde::{Deserialize, Serialize};

/// Facts of this boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootFacts {
    /// The slot that runs.
    pub slot: Slot,
    /// Version of the running slot, from the measured command line.
    pub version: String,
    /// Its security epoch.
    pub epoch: u32,
    /// Number of boots of this machine so far, this one included.
    pub boot_count: u64,
    /// Device paths.
    pub partitions: Partitions,
    /// `/dev/tpmrm0` exists and answered.
    pub tpm: bool,
    /// Secure Boot is on.
    pub secure_boot: bool,
    /// Name of the hardware watchdog in use; empty when none.
    pub watchdog: String,
    /// Names of boot stages with milliseconds since kernel start, in order.
    pub stages: Vec<(String, u64)>,
    /// What PID 1 extended: PCR, what, sha256 hex.
    pub measurements: Vec<Measurement>,
    /// Why the boot before this one ended, as far as known; empty on the first boot.
    pub previous_end: String,
    /// The class of that end; none when nobody could write it down.
    #[serde(default)]
    pub previous_reason: Option<BootReason>,
    /// Reason recorded when the other slot failed and this one was taken; empty when that did not happen.
    pub fallback_reason: String,
    /// What PID 1 had to go on without, one text for people each; empty when all is well.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One extension of a PCR made after the firmware's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurement {
    /// PCR index.
    pub pcr: u32,
    /// Phase word or object.
    pub what: String,
    /// Lower-case hex.
    pub sha256: String,
}

/// Device paths of the partitions (`/dev/vda1`, ...).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitions {
    /// The whole disk.
    pub disk: String,
    /// ESP of slot A.
    pub esp_a: String,
    /// ESP of slot B.
    pub esp_b: String,
    /// OS slot A.
    pub os_a: String,
    /// OS slot B.
    pub os_b: String,
    /// SITE.
    pub site: String,
    /// STATE.
    pub state: String,
    /// DATA.
    pub data: String,
}
