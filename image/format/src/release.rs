//! `/etc/holdfast/release`: what an OS slot says about itself.

use serde::{Deserialize, Serialize};

/// Product name of images built from this tree; part of payloads and policies so that keys are not interchangeable.
pub const PRODUCT: &str = "holdfast-x86_64";

/// Where the document lies in the slot.
pub const PATH: &str = "/etc/holdfast/release";

/// Highest security epoch: bits 0 to 63 of the TPM's index.
pub const MAX_EPOCH: u32 = 63;

/// What kind of build an image is; a verifier decides what a `Dev` one may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Signed with release keys.
    Release,
    /// Signed with keys that anybody may have.
    Dev,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// What it runs on and who signs for it.
    pub product: String,
    /// Version text; see [`valid_version`].
    pub version: String,
    /// Security epoch, 0 to [`MAX_EPOCH`].
    pub epoch: u32,
    /// Build kind.
    pub kind: Kind,
}

/// A malformed release document.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Not JSON, or a field is missing.
    #[error("release document: {0}")]
    Json(#[from] serde_json::Error),
    /// A field is out of range.
    #[error("release document: {field} is {found:?}, expected {expected}")]
    Field {
        /// Field name.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: &'static str,
    },
}

/// 1 to 64 letters, digits and `._+-`: safe in command lines, file names and wire messages.
#[must_use]
pub fn valid_version(version: &str) -> bool {
    (1..=64).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
}

impl Release {
    /// The document's bytes, ending in a newline.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = serde_json::to_vec_pretty(self).unwrap_or_default();
        out.push(b'\n');
        out
    }

    /// Reads and checks a document.
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub fn decode(bytes: &[u8]) -> Result<Release, ReleaseError> {
        let r: Release = serde_json::from_slice(bytes)?;
        let bad = |field, found: String, expected| Err(ReleaseError::Field { field, found, expected });
        if !valid_version(&r.version) {
            return bad("version", r.version.chars().take(80).collect(), "1 to 64 of A-Z a-z 0-9 . _ + -");
        }
        if r.epoch > MAX_EPOCH {
            return bad("epoch", r.epoch.to_string(), "0 to 63");
        }
        Ok(r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_round_trips_and_bad_fields_are_named() {
        let r = Release { product: PRODUCT.into(), version: "0.1.0+g1".into(), epoch: 3, kind: Kind::Dev };
        assert_eq!(Release::decode(&r.encode()).unwrap(), r);
        let bad = Release { version: "a b".into(), ..r.clone() };
        assert!(Release::decode(&bad.encode()).unwrap_err().to_string().contains("version"));
        let bad = Release { epoch: 64, ..r };
        assert!(Release::decode(&bad.encode()).unwrap_err().to_string().contains("0 to 63"));
    }
}
