//! What the part keeps in its file.

use serde::{Deserialize, Serialize};

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
