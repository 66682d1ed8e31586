//! What the vault needs from the kernel. One implementation does it; the tests' one cuts it off at any step.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::VaultKey;

/// Encrypted devices and mounts. Errors are texts that name the object.
pub trait Platform {
    /// The open encrypted device of this name, if there is one.
    ///
    /// # Errors
    /// A text.
    fn active(&self, name: &str) -> Result<Option<PathBuf>, String>;

    /// Opens the part of `partition` from `offset_bytes` to its end as an encrypted device, and returns its path.
    ///
    /// # Errors
    /// A text.
    fn activate(&self, name: &str, partition: &Path, offset_bytes: u64, key: &VaultKey) -> Result<PathBuf, String>;

    /// Unmounts and closes whatever is there; nothing there is fine.
    ///
    /// # Errors
    /// A text.
    fn tear_down(&self, name: &str, mount_point: &Path) -> Result<(), String>;

    /// Whether `device` is mounted at `mount_point`.
    fn is_mounted(&self, device: &Path, mount_point: &Path) -> bool;

    /// Mounts the ext4 on `device`.
    ///
    /// # Errors
    /// A text.
    fn mount(&self, device: &Path, mount_point: &Path) -> Result<(), String>;

    /// Grows the mounted ext4 to the size of `device`; nothing when it fills it already.
    ///
    /// # Errors
    /// A text.
    fn grow(&self, device: &Path, mount_point: &Path) -> Result<(), String>;
}
