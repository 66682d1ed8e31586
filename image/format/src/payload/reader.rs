//! Reads a payload as it arrives and hands out only what is verified.

use super::{CHUNK, DOMAIN, FORMAT, HEADER, ImageKind, MAGIC, MAX_MANIFEST, Manifest, SIGNATURE, Stored, parse_hash};
use crate::io::le32;
use flate2::{Decompress, FlushDecompress, Status};
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

/// What a payload must be to be accepted on this machine.
#[derive(Debug, Clone)]
pub struct Expect {
    /// Product of this machine.
    pub product: String,
    /// Release keys; one of them must have signed.
    pub keys: Vec<VerifyingKey>,
    /// Committed security epoch; a payload below it is refused.
    pub min_epoch: u32,
    /// Size of an OS partition in bytes.
    pub os_bytes: u64,
    /// Size of an ESP in bytes.
    pub esp_bytes: u64,
}

/// Why a payload is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Not this format.
    #[error("not an update payload: starts with {found}, expected \"HFUPDATE\"")]
    Magic {
        /// First bytes, hexadecimal.
        found: String,
    },
    /// A later format.
    #[error("update payload format {found}, expected {FORMAT}: this system is too old to read it")]
    Format {
        /// Its number.
        found: u32,
    },
    /// The manifest's length field.
    #[error("update payload manifest of {found} bytes, expected 1 to {MAX_MANIFEST}")]
    ManifestLength {
        /// Its value.
        found: usize,
    },
    /// Signed by nobody we know, or altered.
    #[error(
        "update payload is not signed by any of the {keys} release keys of this image, or its manifest was altered"
    )]
    Signature {
        /// How many keys were tried.
        keys: usize,
    },
    /// Signed, and still wrong.
    #[error("update payload manifest: {0}")]
    Manifest(String),
    /// For another machine.
    #[error("update payload is for product {found:?}, this is {expected:?}")]
    Product {
        /// In the payload.
        found: String,
        /// Of this machine.
        expected: String,
    },
    /// A downgrade.
    #[error(
        "update payload {version} has security epoch {found}, this machine has committed epoch {expected}: downgrade refused"
    )]
    Epoch {
        /// Version of the payload.
        version: String,
        /// Its epoch.
        found: u32,
        /// Committed epoch.
        expected: u32,
    },
    /// Does not fit its partition.
    #[error("image {image} has {found} bytes, its partition {limit}")]
    TooLarge {
        /// Which.
        image: ImageKind,
        /// Size in the manifest.
        found: u64,
        /// Size of the partition.
        limit: u64,
    },
    /// A chunk was altered on the way.
    #[error("image {image}, chunk at byte {offset}: SHA-256 is not that of the manifest; download it again")]
    Chunk {
        /// Which image.
        image: ImageKind,
        /// Offset in the image.
        offset: u64,
    },
    /// A chunk is what the signer made but does not decompress.
    #[error("image {image}, chunk at byte {offset}: does not decompress to {expected} bytes")]
    Inflate {
        /// Which image.
        image: ImageKind,
        /// Offset in the image.
        offset: u64,
        /// Plain length.
        expected: usize,
    },
    /// All chunks are right and the image is not.
    #[error("image {image}: SHA-256 of the whole is not that of the manifest")]
    Image {
        /// Which.
        image: ImageKind,
    },
    /// The end came early.
    #[error("update payload ends after {found} bytes, expected {expected}")]
    Truncated {
        /// Bytes seen.
        found: u64,
        /// What the next part needs at least.
        expected: u64,
    },
    /// Something lies behind the end.
    #[error("update payload has bytes behind its end at {end}")]
    Trailing {
        /// Where it should end.
        end: u64,
    },
    /// Used after an error.
    #[error("update payload was refused before")]
    Failed,
}

/// A verified piece of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Which image.
    pub image: ImageKind,
    /// Offset in the image, bytes.
    pub offset: u64,
    /// What belongs there.
    pub body: Body,
}

/// Contents of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// This many zeros: write them or discard the range.
    Zero(u64),
    /// These bytes.
    Data(Vec<u8>),
}

/// The streaming reader. Memory: the manifest and one chunk, stored and plain.
pub struct Reader {
    expect: Expect,
    state: State,
    /// Bytes of the current part that have arrived.
    buf: Vec<u8>,
    /// Bytes taken so far, for error messages.
    taken: u64,
}

enum State {
    Header,
    /// Waiting for manifest and signature, of this length together with the header.
    Manifest(usize),
    Chunks(Progress),
    Failed,
}

struct Progress {
    manifest: Manifest,
    image: usize,
    chunk: usize,
    hash: Sha256,
}

impl Reader {
    /// A reader that accepts only what `expect` describes.
    #[must_use]
    pub fn new(expect: Expect) -> Reader {
        Reader { expect, state: State::Header, buf: Vec::new(), taken: 0 }
    }

    /// The manifest, once it has arrived and its signature, product, epoch and sizes were accepted.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.state {
            State::Chunks(p) => Some(&p.manifest),
            _ => None,
        }
    }

    /// Takes bytes from the front of `input`, and gives the next verified chunk or `None` when `input` is used up.
    /// Call until `None`, then bring more.
    ///
    /// # Errors
    /// [`PayloadError`]; the reader then refuses everything.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Chunk>, PayloadError> {
        let result = self.step(input);
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    /// Says that no more bytes come. Only this success means that the payload is complete.
    ///
    /// # Errors
    /// [`PayloadError::Truncated`], or [`PayloadError::Failed`] after an earlier error.
    pub fn finish(self) -> Result<Manifest, PayloadError> {
        let needed = match self.state {
            State::Failed => return Err(PayloadError::Failed),
            State::Header => HEADER,
            State::Manifest(n) => n,
            State::Chunks(p) if p.image == p.manifest.images.len() => return Ok(p.manifest),
            State::Chunks(p) => p.stored_length(),
        };
        let expected = self.taken - self.buf.len() as u64 + needed as u64;
        Err(PayloadError::Truncated { found: self.taken, expected: expected.max(self.taken + 1) })
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Option<Chunk>, PayloadError> {
        loop {
            match &mut self.state {
                State::Failed => return Err(PayloadError::Failed),
                State::Header => {
                    if !fill(&mut self.buf, input, HEADER, &mut self.taken) {
                        return Ok(None);
                    }
                    self.state = State::Manifest(total_head(&self.buf)?);
                }
                State::Manifest(total) => {
                    if !fill(&mut self.buf, input, *total, &mut self.taken) {
                        return Ok(None);
                    }
                    let manifest = accept(&self.buf, &self.expect)?;
                    self.buf.clear();
                    self.state = State::Chunks(Progress { manifest, image: 0, chunk: 0, hash: Sha256::new() });
                }
                State::Chunks(p) => {
                    if p.image == p.manifest.images.len() {
                        return match input.is_empty() {
                            true => Ok(None),
                            false => Err(PayloadError::Trailing { end: self.taken }),
                        };
                    }
                    if !fill(&mut self.buf, input, p.stored_length(), &mut self.taken) {
                        return Ok(None);
                    }
                    let chunk = p.take(&self.buf)?;
                    self.buf.clear();
                    return Ok(Some(chunk));
                }
            }
        }
    }
}

impl Progress {
    fn plain_length(&self) -> u64 {
        let size = self.manifest.images[self.image].size;
        CHUNK.min(size - self.chunk as u64 * CHUNK)
    }

    fn stored_length(&self) -> usize {
        match &self.manifest.images[self.image].chunks[self.chunk] {
            Stored::Zero => 0,
            Stored::Raw { .. } => self.plain_length() as usize,
            Stored::Deflate { length, .. } => *length as usize,
        }
    }

    fn take(&mut self, stored: &[u8]) -> Result<Chunk, PayloadError> {
        let plain_length = self.plain_length() as usize;
        let described = &self.manifest.images[self.image];
        let (image, offset) = (described.kind, self.chunk as u64 * CHUNK);
        let verified = |sha256: &str| match parse_hash(sha256) == Some(Sha256::digest(stored).into()) {
            true => Ok(()),
            false => Err(PayloadError::Chunk { image, offset }),
        };
        let body = match &described.chunks[self.chunk] {
            Stored::Zero => {
                let zeros = [0u8; 4096];
                let mut left = plain_length;
                while left > 0 {
                    let n = left.min(zeros.len());
                    self.hash.update(&zeros[..n]);
                    left -= n;
                }
                Body::Zero(plain_length as u64)
            }
            Stored::Raw { sha256 } => {
                verified(sha256)?;
                Body::Data(stored.to_vec())
            }
            Stored::Deflate { sha256, .. } => {
                verified(sha256)?;
                let plain = inflate(stored, plain_length);
                Body::Data(plain.ok_or(PayloadError::Inflate { image, offset, expected: plain_length })?)
            }
        };
        if let Body::Data(d) = &body {
            self.hash.update(d);
        }
        self.chunk += 1;
        if self.chunk == described.chunks.len() {
            let hash = self.hash.finalize_reset();
            if parse_hash(&described.sha256) != Some(hash.into()) {
                return Err(PayloadError::Image { image });
            }
            self.image += 1;
            self.chunk = 0;
        }
        Ok(Chunk { image, offset, body })
    }
}

/// Moves bytes from `input` to `buf` until it has `want`; says whether it has.
fn fill(buf: &mut Vec<u8>, input: &mut &[u8], want: usize, taken: &mut u64) -> bool {
    let n = want.saturating_sub(buf.len()).min(input.len());
    buf.extend_from_slice(&input[..n]);
    *input = &input[n..];
    *taken += n as u64;
    buf.len() >= want
}

/// Checks the header; length of header, manifest and signature.
fn total_head(header: &[u8]) -> Result<usize, PayloadError> {
    if &header[..8] != MAGIC {
        return Err(PayloadError::Magic { found: hex::encode(&header[..8]) });
    }
    let format = le32(header, 8).unwrap_or_default();
    if format != FORMAT {
        return Err(PayloadError::Format { found: format });
    }
    let length = le32(header, 12).unwrap_or_default() as usize;
    if length == 0 || length > MAX_MANIFEST {
        return Err(PayloadError::ManifestLength { found: length });
    }
    Ok(HEADER + length + SIGNATURE)
}

fn accept(head: &[u8], expect: &Expect) -> Result<Manifest, PayloadError> {
    let (signed, signature) = head.split_at(head.len() - SIGNATURE);
    let message = [DOMAIN, signed].concat();
    let signature = Signature::from_slice(signature).ok();
    let genuine = signature.is_some_and(|s| expect.keys.iter().any(|k| k.verify(&message, &s).is_ok()));
    if !genuine {
        return Err(PayloadError::Signature { keys: expect.keys.len() });
    }
    let manifest: Manifest =
        serde_json::from_slice(&signed[HEADER..]).map_err(|e| PayloadError::Manifest(e.to_string()))?;
    manifest.check().map_err(PayloadError::Manifest)?;
    if manifest.product != expect.product {
        return Err(PayloadError::Product { found: manifest.product, expected: expect.product.clone() });
    }
    if manifest.epoch < expect.min_epoch {
        let (found, expected) = (manifest.epoch, expect.min_epoch);
        return Err(PayloadError::Epoch { version: manifest.version, found, expected });
    }
    for i in &manifest.images {
        let limit = match i.kind {
            ImageKind::Os => expect.os_bytes,
            ImageKind::Esp => expect.esp_bytes,
        };
        if i.size > limit {
            return Err(PayloadError::TooLarge { image: i.kind, found: i.size, limit });
        }
    }
    Ok(manifest)
}

/// Exactly `plain_length` bytes from all of `stored`, or nothing.
fn inflate(stored: &[u8], plain_length: usize) -> Option<Vec<u8>> {
    let mut inflater = Decompress::new(false);
    // One byte more than expected, so that a longer stream shows.
    let mut out = Vec::with_capacity(plain_length + 1);
    let status = inflater.decompress_vec(stored, &mut out, FlushDecompress::Finish).ok()?;
    let whole = status == Status::StreamEnd && inflater.total_in() == stored.len() as u64;
    (whole && out.len() == plain_length).then_some(out)
}

/// Fuzz entry: the head of a payload, with the signature check left out, then chunks.
#[doc(hidden)]
pub fn fuzz_payload(data: &[u8]) {
    let expect = Expect { product: "p".into(), keys: vec![], min_epoch: 0, os_bytes: 1 << 24, esp_bytes: 1 << 24 };
    let mut reader = Reader::new(expect);
    let _ = reader.next(&mut &data[..]);
    let (json, mut input) = data.split_at(data.len() / 2);
    let Ok(manifest) = serde_json::from_slice::<Manifest>(json) else {
        return;
    };
    if manifest.check().is_err() || manifest.total_bytes() >= 1 << 24 {
        return;
    }
    reader.state = State::Chunks(Progress { manifest, image: 0, chunk: 0, hash: Sha256::new() });
    reader.buf.clear();
    while let Ok(Some(_)) = reader.next(&mut input) {}
    let _ = reader.finish();
}
