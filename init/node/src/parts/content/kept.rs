//! What the part keeps in its file.

use holdfast_model::contract::fetch::ImageConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The part's file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Contents that are complete, by id.
    pub contents: BTreeMap<Uuid, KeptContent>,
}

/// A content tree that is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptContent {
    /// What it was made from: path, digest asked for and generation; another means another fetch.
    pub asked: String,
    /// Digest found: SHA-256 hex of the manifest or file.
    pub sha256: String,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// The image's configuration when it is a container image (JSON of the fetch job's result).
    pub image: Option<serde_json::Value>,
}

impl KeptContent {
    /// How to run it; `None` when it is no container image, or one that this version cannot read.
    #[must_use]
    pub fn configuration(&self) -> Option<ImageConfig> {
        serde_json::from_value(self.image.clone()?).ok()
    }
}
