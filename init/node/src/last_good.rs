//! The last desired state on disk, so that an object with a fault keeps its last good form also when the agent or the device restarts.
//!
//! `/data/status/desired.json`, in the vault: it holds decrypted secrets. It is no config: without a verified one nothing of it is used.

use crate::boot::Paths;
use crate::kept::decode;
use holdfast_model::desired::Desired;
use holdfast_unit::durable;
use std::io;
use std::path::PathBuf;

fn file(paths: &Paths) -> PathBuf {
    paths.data("status").join("desired.json")
}

/// What was in force last; of what cannot be read there is nothing, and the texts say so.
#[must_use]
pub fn load(paths: &Paths) -> (Desired, Vec<String>) {
    let path = file(paths);
    decode(&path.display().to_string(), std::fs::read(&path).ok().as_deref())
}

/// Keeps what is in force now.
///
/// # Errors
/// Whatever the file system says; the file stays as it was.
pub fn save(paths: &Paths, desired: &Desired) -> io::Result<()> {
    let path = file(paths);
    let bytes = serde_json::to_vec(desired).map_err(io::Error::other)?;
    if std::fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    durable::replace(&path, &bytes, 0o600).map_err(io::Error::other)
}
