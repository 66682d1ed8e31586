//! The last desired state on disk, so that an object with a fault keeps its last good form also when the agent or the device restarts.
//!
//! `/data/status/desired.json`, in the vault: it holds decrypted secrets. It is no config: without a verified one nothing of it is used.

use crate::boot::Paths;
use crate::store::{read_json, replace};
use holdfast_model::desired::Desired;
use std::io;
use std::path::PathBuf;

fn file(paths: &Paths) -> PathBuf {
    paths.data("status").join("desired.json")
}

/// What was in force last; nothing, with the reason, when the file cannot be read.
#[must_use]
pub fn load(paths: &Paths) -> (Desired, Option<String>) {
    read_json(&file(paths))
}

/// Keeps what is in force now.
///
/// # Errors
/// As [`replace`].
pub fn save(paths: &Paths, desired: &Desired) -> io::Result<()> {
    let path = file(paths);
    let bytes = serde_json::to_vec(desired).map_err(io::Error::other)?;
    if std::fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    replace(&path, &bytes, 0o600)
}
