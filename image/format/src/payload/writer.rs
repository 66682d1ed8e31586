//! Makes a payload file.

use super::{CHUNK, DOMAIN, FORMAT, HEADER, Image, ImageKind, MAGIC, MAX_MANIFEST, Manifest, Stored};
use crate::release::Release;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use sha2::{Digest, Sha256};
use std::io::{self, Write};

/// The two images of a slot.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// erofs followed by its verity tree.
    pub os: &'a [u8],
    /// The head of the FAT file system ([`crate::fat::esp_image`]).
    pub esp: &'a [u8],
}

/// Why no payload was made.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output failed.
    #[error("cannot write the payload: {0}")]
    Io(#[from] io::Error),
    /// The manifest would be refused by the reader.
    #[error("payload manifest: {0}")]
    Manifest(String),
}

/// Writes the payload of `release` signed by `key`; gives back its manifest.
///
/// # Errors
/// [`WriteError`].
pub fn write(
    out: &mut impl Write,
    release: &Release,
    images: Images,
    key: &SigningKey,
) -> Result<Manifest, WriteError> {
    let mut stored_chunks = Vec::new();
    let mut described = Vec::new();
    for (kind, bytes) in [(ImageKind::Os, images.os), (ImageKind::Esp, images.esp)] {
        let mut chunks = Vec::new();
        for plain in bytes.chunks(CHUNK as usize) {
            let (stored, data) = store(plain)?;
            chunks.push(stored);
            stored_chunks.push(data);
        }
        let sha256 = hex::encode(Sha256::digest(bytes));
        described.push(Image { kind, size: bytes.len() as u64, sha256, chunks });
    }
    let manifest = Manifest {
        product: release.product.clone(),
        version: release.version.clone(),
        epoch: release.epoch,
        images: described,
    };
    manifest.check().map_err(WriteError::Manifest)?;
    let json = serde_json::to_vec(&manifest).map_err(|e| WriteError::Manifest(e.to_string()))?;
    if json.len() > MAX_MANIFEST {
        return Err(WriteError::Manifest(format!("{} bytes, expected at most {MAX_MANIFEST}", json.len())));
    }
    let mut head = Vec::with_capacity(HEADER + json.len());
    head.extend(MAGIC);
    head.extend(FORMAT.to_le_bytes());
    head.extend((json.len() as u32).to_le_bytes());
    head.extend(&json);
    let signature: Signature = key.sign(&[DOMAIN, &head].concat());
    out.write_all(&head)?;
    out.write_all(&signature.to_bytes())?;
    for data in stored_chunks {
        out.write_all(&data)?;
    }
    Ok(manifest)
}

/// The shortest of the three ways to store a chunk.
fn store(plain: &[u8]) -> io::Result<(Stored, Vec<u8>)> {
    if plain.iter().all(|b| *b == 0) {
        return Ok((Stored::Zero, Vec::new()));
    }
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain)?;
    let packed = encoder.finish()?;
    if packed.len() < plain.len() {
        let sha256 = hex::encode(Sha256::digest(&packed));
        return Ok((Stored::Deflate { length: packed.len() as u32, sha256 }, packed));
    }
    Ok((Stored::Raw { sha256: hex::encode(Sha256::digest(plain)) }, plain.to_vec()))
}
