//! What the programs of a device say to each other: documents, requests, replies, ends. Plain serde data, no I/O.
//!
//! Principles:
//! 1. A contract belongs to no program: whoever writes a document needs only this crate, not the program that reads it.
//! 2. A document carries the version of its shape, and [`read`] compares it before anything else, so that a mismatch is one
//!    clear sentence and not a list of unknown fields.
//! 3. Here is the shape. What a program can do with the values (ranges, combinations, files that exist) is checked by that
//!    program, which can say what it expected.
//! 4. Unknown fields are errors: a typing mistake is never silently a default.
//!
//! Reading order: this module, [`end`] (how every program ends), [`network`], [`fetch`], [`vm`], [`guest`].

pub mod end;
pub mod fetch;
pub mod guest;
pub mod network;
pub mod vm;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A document that one program hands to another as JSON, in a memfd or on a disk.
pub trait Document: Serialize + DeserializeOwned {
    /// What it is, for messages: "VM configuration".
    const KIND: &'static str;
    /// Version of its shape: the value of its field `version`.
    const VERSION: u32;
    /// Longest accepted text in bytes.
    const MAX_BYTES: usize;
}

/// Why a document cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DocumentError {
    /// It is longer than [`Document::MAX_BYTES`].
    #[error("{kind}: {found} bytes, expected at most {most}")]
    TooLong {
        /// [`Document::KIND`].
        kind: &'static str,
        /// Length in bytes, as far as it was read.
        found: usize,
        /// Bound in bytes.
        most: usize,
    },
    /// Writer and reader are of different builds.
    #[error("{kind}: version {found}, expected version {expected}: its writer is of another build of the system")]
    Version {
        /// [`Document::KIND`].
        kind: &'static str,
        /// Version in the document.
        found: u32,
        /// Version that this program reads.
        expected: u32,
    },
    /// The text is not JSON of the expected shape.
    #[error("{kind}: {reason}")]
    Json {
        /// [`Document::KIND`].
        kind: &'static str,
        /// What is wrong, with line and column.
        reason: String,
    },
}

/// The part of every document that all versions share.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// Reads a document of this build's version.
///
/// # Errors
/// [`DocumentError`]; a text of another version is [`DocumentError::Version`], whatever else is in it.
pub fn read<T: Document>(text: &[u8]) -> Result<T, DocumentError> {
    let kind = T::KIND;
    if text.len() > T::MAX_BYTES {
        return Err(DocumentError::TooLong { kind, found: text.len(), most: T::MAX_BYTES });
    }
    let json = |e: serde_json::Error| DocumentError::Json { kind, reason: e.to_string() };
    let head: Head = serde_json::from_slice(text).map_err(json)?;
    if head.version != T::VERSION {
        return Err(DocumentError::Version { kind, found: head.version, expected: T::VERSION });
    }
    serde_json::from_slice(text).map_err(json)
}

/// The text that [`read`] accepts.
///
/// # Errors
/// [`DocumentError::TooLong`] for a document that no reader would take.
pub fn write<T: Document>(document: &T) -> Result<Vec<u8>, DocumentError> {
    let kind = T::KIND;
    let text = serde_json::to_vec(document).map_err(|e| DocumentError::Json { kind, reason: e.to_string() })?;
    if text.len() > T::MAX_BYTES {
        return Err(DocumentError::TooLong { kind, found: text.len(), most: T::MAX_BYTES });
    }
    Ok(text)
}

/// The field `version` of a document of version `N`: no other value can be written or read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Version<const N: u32>;

impl<const N: u32> Serialize for Version<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(N)
    }
}

impl<'de, const N: u32> Deserialize<'de> for Version<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = u32::deserialize(deserializer)?;
        if found == N { Ok(Self) } else { Err(D::Error::custom(format!("version {found}, expected version {N}"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::guest::AppDocument;
    use super::*;

    fn document() -> AppDocument {
        AppDocument {
            version: Version,
            hostname: "web".into(),
            argv: vec!["/bin/web".into()],
            env: vec![],
            user: String::new(),
            cwd: String::new(),
            stop_signal: String::new(),
            grace_seconds: 10,
            mounts: vec![],
        }
    }

    #[test]
    fn a_document_survives_the_way() {
        assert_eq!(read(&write(&document()).unwrap()), Ok(document()));
    }

    #[test]
    fn another_version_is_named_with_ours_whatever_else_the_document_holds() {
        let error = read::<AppDocument>(br#"{"colour": "blue", "version": 7}"#).unwrap_err().to_string();
        assert!(error.contains("version 7") && error.contains("expected version 1"), "{error}");
        assert!(!error.contains("colour"), "{error}");
    }

    #[test]
    fn a_document_without_a_version_is_refused() {
        let error = read::<AppDocument>(br#"{"hostname": "web"}"#).unwrap_err().to_string();
        assert!(error.contains("app document") && error.contains("version"), "{error}");
    }

    #[test]
    fn a_document_that_is_too_long_is_neither_written_nor_read() {
        let long = AppDocument { hostname: "x".repeat(AppDocument::MAX_BYTES), ..document() };
        assert!(matches!(write(&long), Err(DocumentError::TooLong { .. })));
        let text = serde_json::to_vec(&long).unwrap();
        assert!(matches!(read::<AppDocument>(&text), Err(DocumentError::TooLong { .. })));
    }
}
