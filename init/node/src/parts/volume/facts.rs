//! What the volume part tells others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use uuid::Uuid;

/// The volumes of the config, by id and generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volumes(pub BTreeMap<(Uuid, i64), VolumeFact>);

/// A volume's generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeFact {
    /// The file exists and is whole.
    pub ready: bool,
    /// Where it is or will be.
    pub file: PathBuf,
    /// The purge order that was carried out last.
    pub purged: Option<u32>,
    /// Why it cannot be made; empty when nothing failed.
    pub error: String,
}
