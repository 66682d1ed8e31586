//! Block devices.

use serde::{Deserialize, Serialize};

use super::{ConfigError, FdList, FileRef, range};

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Serial string the guest reads (`/sys/block/vda/serial`), 1..=20 bytes of ASCII; unique.
    pub id: String,
    /// Raw image; its size is a multiple of 512.
    pub file: FileRef,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

impl DiskConfig {
    /// The raw image `file` under the serial `id`, writable.
    pub fn new(id: impl Into<String>, file: FileRef) -> Self {
        Self { id: id.into(), file, read_only: false }
    }

    pub(super) fn validate(&self, name: &str, is_unique: bool) -> Result<(), ConfigError> {
        range(&format!("{name}.id"), &format!("{:?}", self.id), "1 to 20 printable ASCII characters, unique", {
            (1..=20).contains(&self.id.len()) && self.id.bytes().all(|c| c.is_ascii_graphic()) && is_unique
        })
    }

    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        fds.add(&format!("{name}.file"), Some(&self.file));
    }
}
