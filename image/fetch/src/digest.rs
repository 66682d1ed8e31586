//! SHA-256 digests: as text, as OCI writes them, and while bytes pass by.
#![forbid(unsafe_code)]

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::failure::Failure;

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads 64 hexadecimal digits of either case.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut out = [0; 32];
        hex::decode_to_slice(text, &mut out).ok()?;
        Some(Self(out))
    }

    /// Reads `sha256:` and 64 lower-case hexadecimal digits (OCI image spec, descriptor, "Digests").
    ///
    /// # Errors
    /// Another algorithm or form; `what` is the object it belongs to.
    pub fn from_oci(text: &str, what: &str) -> Result<Self, Failure> {
        text.strip_prefix("sha256:")
            .filter(|h| !h.bytes().any(|b| b.is_ascii_uppercase()))
            .and_then(Self::from_hex)
            .ok_or_else(|| {
                Failure::content(format!("{what}: expected a digest sha256:<64 hex digits>, found {:?}", cut(text)))
            })
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Compares what came with what was promised.
///
/// # Errors
/// [`Failure`] of class Content that names both.
pub fn expect(what: &str, expected: Digest, found: Digest) -> Result<(), Failure> {
    if expected == found {
        return Ok(());
    }
    Err(Failure::content(format!("{what}: expected {expected}, found {found}")))
}

/// Hashes what is read through it.
pub struct HashingReader<R> {
    inner: R,
    hash: Sha256,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    /// Over `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), count: 0 }
    }

    /// Digest and number of the bytes read so far.
    pub fn finish(self) -> (Digest, u64) {
        (Digest(self.hash.finalize().into()), self.count)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

/// The beginning of a stranger's text, for an error message.
pub fn cut(text: &str) -> &str {
    match text.char_indices().nth(120) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_sha256_is_an_oci_digest() {
        let hex = "ab".repeat(32);
        assert_eq!(Digest::from_oci(&format!("sha256:{hex}"), "x").unwrap(), Digest([0xab; 32]));
        for bad in [
            "",
            "sha256:",
            &hex,
            &format!("sha512:{hex}"),
            &format!("sha256:{}", "AB".repeat(32)),
            &format!("sha256:{hex}00"),
        ] {
            assert!(Digest::from_oci(bad, "x").is_err(), "{bad}");
        }
        assert_eq!(Digest::from_hex(&"AB".repeat(32)), Some(Digest([0xab; 32])));
    }
}
