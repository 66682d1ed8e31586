//! Block devices.

use serde::{Deserialize, Serialize};

use super::{ConfigError, FdList, FileRef, check_limits, range, yes};
use crate::rate::Limits;
use crate::virtio::block::format::ImageType;

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

    pub(super) fn validate(&self, name: &str, is_unique: bool) -> Result<(), ConfigError> {
        range(&format!("{name}.id"), &format!("{:?}", self.id), "1 to 20 printable ASCII characters, unique", {
            (1..=20).contains(&self.id.len()) && self.id.bytes().all(|c| c.is_ascii_graphic()) && is_unique
        })?;
        check_limits(&format!("{name}.limits"), self.limits.as_ref())
    }

    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        fds.add(&format!("{name}.file"), Some(&self.file));
    }
}
