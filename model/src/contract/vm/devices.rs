//! The devices of a VM, except for network cards.

use serde::{Deserialize, Serialize};

use super::{FdList, FileRef, yes};

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Serial string the guest reads (`/sys/block/vda/serial`), 1..=20 bytes of ASCII; unique.
    pub id: String,
    /// The image; a raw one has a size that is a multiple of 512.
    pub file: FileRef,
    /// What `file` holds. Never guessed from its content.
    #[serde(default)]
    pub format: ImageType,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Refuse to start while another process has locked the image: any other for a writable disk, a writer for a
    /// read-only one.
    #[serde(default = "yes")]
    pub lock: bool,
    /// How fast the guest may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

impl DiskConfig {
    /// The raw image `file` under the serial `id`, writable.
    pub fn new(id: impl Into<String>, file: FileRef) -> Self {
        Self { id: id.into(), file, format: ImageType::Raw, read_only: false, lock: true, limits: None }
    }

    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        fds.add(&format!("{name}.file"), Some(&self.file));
    }
}

/// Type of an image, as stated in the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageType {
    /// File offset equals disk offset.
    #[default]
    Raw,
}

/// Limits of one device or of one direction of it. A rate that is absent is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes in a second, 1..=2^40.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Bytes at once after a rest, 1..=2^40; a tenth of a second's worth when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_bytes: Option<u64>,
    /// Operations (requests or frames) in a second, 1..=2^40.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_per_second: Option<u64>,
    /// Operations at once after a rest, 1..=2^40; a tenth of a second's worth when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_ops: Option<u64>,
}

/// How memory that the guest does not need comes back to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// The guest names what it has freed, by itself.
    #[serde(default = "yes")]
    pub free_page_reporting: bool,
    /// The guest may take memory back from the balloon rather than end a program.
    #[serde(default = "yes")]
    pub deflate_on_oom: bool,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self { free_page_reporting: true, deflate_on_oom: true }
    }
}

/// Least context id of a guest: below it are the hypervisor (0), the loopback (1) and the host (2).
pub const MIN_CID: u32 = 3;
/// Greatest context id of a guest: above it is "any".
pub const MAX_CID: u32 = u32::MAX - 1;

/// virtio sockets: streams between guest and host without a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address, [`MIN_CID`]..=[`MAX_CID`]; no other VM of this host may have it.
    pub cid: u32,
    /// `/dev/vhost-vsock`.
    pub vhost: FileRef,
}

impl VsockConfig {
    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        fds.add(&format!("{name}.vhost"), Some(&self.vhost));
    }
}
