//! Update payload, `holdfast-VERSION.update`: one signed manifest, then the images of a slot in verified chunks.
//!
//! ```text
//!   0   8   "HFUPDATE"
//!   8   4   format version, u32 little-endian: 1
//!  12   4   length of the manifest, u32 little-endian, at most 1 MiB
//!  16   m   manifest: JSON, [`Manifest`]
//!  16+m 64  ECDSA P-256 signature, r ‖ s big-endian, over SHA-256("holdfast update\0" ‖ bytes 0..16+m)
//!  ...      stored chunks, in manifest order, without gaps; nothing behind the last
//! ```
//! Every chunk's *stored* bytes have a SHA-256 in the manifest, so nothing is decompressed, let alone written, before
//! it is known to be the signer's. Chunks cover [`CHUNK`] bytes of an image (the last one what is left) and are stored
//! raw, deflated, or not at all (zeros). The signature is deterministic (RFC 6979): two builds give the same file.
//!
//! Modules: [`reader`] takes bytes in any split and hands out verified chunks; [`writer`] makes the file.

use crate::release;
use serde::{Deserialize, Serialize};

pub mod reader;
pub mod writer;

pub use reader::{Body, Chunk, Expect, PayloadError, Reader};
pub use writer::{Images, WriteError, write};

/// Bytes of an image that one chunk covers.
pub const CHUNK: u64 = 1 << 20;
/// Largest manifest in bytes.
pub const MAX_MANIFEST: usize = 1 << 20;
const MAGIC: &[u8; 8] = b"HFUPDATE";
const FORMAT: u32 = 1;
const HEADER: usize = 16;
const SIGNATURE: usize = 64;
const DOMAIN: &[u8] = b"holdfast update\0";

/// Which partition of the slot an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// OS-A or OS-B: erofs and verity tree.
    Os,
    /// ESP-A or ESP-B: the head of the FAT file system.
    Esp,
}

impl std::fmt::Display for ImageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ImageKind::Os => "os",
            ImageKind::Esp => "esp",
        })
    }
}

/// The signed part: what the payload is and what its bytes must hash to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What it is for: [`release::PRODUCT`].
    pub product: String,
    /// Version text, equal to the one inside the image.
    pub version: String,
    /// Security epoch, 0 to [`release::MAX_EPOCH`].
    pub epoch: u32,
    /// OS first, then ESP: the order in which they are written.
    pub images: Vec<Image>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Where it goes.
    pub kind: ImageKind,
    /// Bytes to write from the start of the partition.
    pub size: u64,
    /// SHA-256 of those bytes, hexadecimal: for reading back.
    pub sha256: String,
    /// `ceil(size / CHUNK)` chunks.
    pub chunks: Vec<Stored>,
}

/// How a chunk lies in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// All zeros, not stored.
    Zero,
    /// As it is.
    Raw {
        /// SHA-256 of the stored bytes, hexadecimal.
        sha256: String,
    },
    /// Deflated (RFC 1951).
    Deflate {
        /// Bytes stored.
        length: u32,
        /// SHA-256 of the stored bytes, hexadecimal.
        sha256: String,
    },
}

impl Manifest {
    /// Bytes that all images take once written.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.images.iter().map(|i| i.size).sum()
    }

    /// The image of a kind.
    #[must_use]
    pub fn image(&self, kind: ImageKind) -> Option<&Image> {
        self.images.iter().find(|i| i.kind == kind)
    }

    /// Everything that can be checked without the chunks.
    fn check(&self) -> Result<(), String> {
        if !release::valid_version(&self.version) {
            return Err("version: expected 1 to 64 of A-Z a-z 0-9 . _ + -".into());
        }
        if self.epoch > release::MAX_EPOCH {
            return Err(format!("epoch {}, expected 0 to {}", self.epoch, release::MAX_EPOCH));
        }
        if !self.images.iter().map(|i| i.kind).eq([ImageKind::Os, ImageKind::Esp]) {
            return Err("images: expected exactly os, then esp".into());
        }
        for i in &self.images {
            if i.size == 0 || i.chunks.len() as u64 != i.size.div_ceil(CHUNK) {
                return Err(format!("image {}: {} chunks for {} bytes", i.kind, i.chunks.len(), i.size));
            }
            let hashes = i.chunks.iter().filter_map(|c| match c {
                Stored::Zero => None,
                Stored::Raw { sha256 } | Stored::Deflate { sha256, .. } => Some(sha256),
            });
            if let Some(bad) = hashes.chain([&i.sha256]).find(|h| parse_hash(h).is_none()) {
                return Err(format!("image {}: {bad:.80?} is not a SHA-256", i.kind));
            }
            let long = i.chunks.iter().find_map(|c| match c {
                Stored::Deflate { length, .. } if u64::from(*length) > CHUNK || *length == 0 => Some(length),
                _ => None,
            });
            if let Some(length) = long {
                return Err(format!("image {}: chunk of {length} stored bytes, expected 1 to {CHUNK}", i.kind));
            }
        }
        Ok(())
    }
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests;
