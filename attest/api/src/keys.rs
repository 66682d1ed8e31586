//! Keys that sign and agree on secrets without leaving their TPM.
//!
//! The traits are all this crate and the client know of a key. `attest/identity` implements them over a TPM or a file.

/// A P-256 key that signs, with its certificate.
pub trait Signer: Send + Sync {
    /// ECDSA over an already made SHA-256 digest: r then s, each 32 bytes, big-endian.
    ///
    /// # Errors
    /// [`KeyError`] when the key cannot be used (TPM error, lockout).
    fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], KeyError>;
    /// The certificate of the key, DER.
    fn certificate_der(&self) -> &[u8];
    /// The certificate of the key, PEM text exactly as it was made (hashes are taken over it).
    fn certificate_pem(&self) -> &str;
}

/// A P-256 key that agrees on shared points, with its certificate.
pub trait KeyAgreement: Send + Sync {
    /// d · `peer`, with both coordinates (`TPM2_ECDH_ZGen`).
    ///
    /// # Errors
    /// [`KeyError`] when `peer` is not on the curve or the key cannot be used.
    fn shared_point(&self, peer: &EcPoint) -> Result<EcPoint, KeyError>;
    /// The certificate of the key, PEM text exactly as it was sent to the controller.
    fn certificate_pem(&self) -> &str;
}

/// A point of P-256, affine coordinates, big-endian.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EcPoint {
    /// x coordinate.
    pub x: [u8; 32],
    /// y coordinate.
    pub y: [u8; 32],
}

impl EcPoint {
    /// Reads an uncompressed SEC 1 point (`04 || x || y`, SEC 1 §2.3.3). The curve equation is not checked here: whoever
    /// multiplies with the point does that.
    #[must_use]
    pub fn from_sec1(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 65] = bytes.try_into().ok()?;
        let mut point = Self { x: [0; 32], y: [0; 32] };
        if bytes[0] != 4 {
            return None;
        }
        point.x.copy_from_slice(&bytes[1..33]);
        point.y.copy_from_slice(&bytes[33..]);
        Some(point)
    }
}

impl std::fmt::Debug for EcPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A shared point is a secret: it never reaches a log.
        f.write_str("EcPoint(..)")
    }
}

/// A key could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct KeyError {
    /// Which key: `device key`, `ECDH key`, ...
    pub key: String,
    /// What went wrong.
    pub reason: String,
}

impl KeyError {
    /// An error of the key called `key`.
    #[must_use]
    pub fn new(key: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self { key: key.into(), reason: reason.to_string() }
    }
}
