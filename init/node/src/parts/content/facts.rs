//! What the content part tells others.

use holdfast_model::contract::fetch::ImageConfig;
use holdfast_model::observed::{LoadState, Tens};
use std::collections::BTreeMap;
use std::path::PathBuf;
use uuid::Uuid;

/// The images of the config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Images(pub BTreeMap<Uuid, ImageFact>);

/// An image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFact {
    /// Display name.
    pub name: String,
    /// How far it is.
    pub state: LoadState,
    /// Percent of the bytes that came.
    pub progress: Tens,
    /// Digest found; empty while not known.
    pub sha256: String,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// The file; empty until it is loaded.
    pub file: PathBuf,
    /// How to run it; `None` when it is no container image.
    pub image: Option<ImageConfig>,
    /// Why it cannot be had; empty when nothing failed.
    pub error: String,
}
