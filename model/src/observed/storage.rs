//! Images and volumes.

use super::Tens;
use crate::trouble::Trouble;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

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
    /// It does not work: see the troubles.
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
    pub progress: Tens,
    /// Digest found, hex; empty while not known.
    pub sha256: String,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
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
    pub progress: Tens,
    /// The image that it starts from.
    pub content: Option<Uuid>,
    /// Virtual size.
    pub max_size_bytes: u64,
    /// Generation.
    pub generation: i64,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
}
