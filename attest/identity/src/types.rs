//! Points, public keys, the vault key and its sealed form.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use crate::tpm::TpmError;

/// A point of P-256: affine coordinates, big-endian. A shared point is a secret, so it does not print.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// x coordinate.
    pub x: [u8; 32],
    /// y coordinate.
    pub y: [u8; 32],
}

impl Point {
    /// Reads an uncompressed SEC 1 point (`04 ‖ x ‖ y`). The curve equation is checked where it is used.
    pub fn from_sec1(bytes: &[u8]) -> Option<Self> {
        let [4, rest @ ..] = bytes else { return None };
        let (x, y) = rest.split_at_checked(32)?;
        Some(Self { x: x.try_into().ok()?, y: y.try_into().ok()? })
    }

    /// The uncompressed SEC 1 form.
    pub fn to_sec1(&self) -> [u8; 65] {
        let mut out = [4; 65];
        out[1..33].copy_from_slice(&self.x);
        out[33..].copy_from_slice(&self.y);
        out
    }
}

impl std::fmt::Debug for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Point(..)")
    }
}

/// What a key of the device is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Signs envelopes and certificates.
    Device,
    /// Agrees on keys of encrypted objects.
    Agreement,
    /// Signs quotes. Only with a TPM.
    Quote,
    /// The TPM's endorsement key. Only with a TPM.
    Endorsement,
}

/// The public half of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// The point.
    pub point: Point,
    /// TPM2B_PUBLIC when the key lives in a TPM.
    pub tpm_public: Option<Vec<u8>>,
}

/// The key of the encrypted data: AES-256-XTS takes 64 bytes.
#[derive(Clone)]
pub struct VaultKey(Zeroizing<Vec<u8>>);

impl VaultKey {
    /// Length in bytes.
    pub const LEN: usize = 64;

    /// Takes 64 bytes; `None` for any other number.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Option<Self> {
        (bytes.len() == Self::LEN).then_some(Self(bytes))
    }

    /// A fresh key from the kernel's random source (and so from every source that feeds it).
    ///
    /// # Errors
    /// [`IdentityError::Random`].
    pub fn random() -> Result<Self, IdentityError> {
        let mut bytes = Zeroizing::new(vec![0; Self::LEN]);
        crate::files::random(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes, for the kernel's keyring, for sealing and for deriving.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for VaultKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VaultKey(..)")
    }
}

/// How the vault key rests on the disk.
#[derive(Clone, PartialEq, Eq)]
pub enum SealedKey {
    /// A TPM object that the release's policy opens.
    Tpm {
        /// The policy includes the security epoch.
        epoch_bound: bool,
        /// TPM2B_PRIVATE without its size.
        private: Vec<u8>,
        /// TPM2B_PUBLIC with its size.
        public: Vec<u8>,
    },
    /// The key itself: whoever holds the disk holds the data.
    Clear(Zeroizing<Vec<u8>>),
}

impl std::fmt::Debug for SealedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tpm { epoch_bound: true, .. } => "SealedKey(TPM, epoch bound)",
            Self::Tpm { .. } => "SealedKey(TPM)",
            Self::Clear(_) => "SealedKey(clear)",
        })
    }
}

/// Why an identity cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The TPM said no.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// A file of the software identity or the certificates.
    #[error("{path}: {action}: {source}")]
    File {
        /// Which file.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file holds something else than it must.
    #[error("{path}: expected {expected}: {found}")]
    Content {
        /// Which file.
        path: String,
        /// What it should hold.
        expected: &'static str,
        /// What is wrong.
        found: String,
    },
    /// The kernel gave no random bytes.
    #[error("getrandom: {0}")]
    Random(std::io::Error),
    /// A point that is not on P-256.
    #[error("ECDH: the peer's point is not on P-256")]
    BadPoint,
    /// The vault key is sealed by a TPM and there is none now.
    #[error("the vault key is sealed by a TPM, and this machine has none now ({0}); nothing is changed on the disk")]
    TpmGone(String),
    /// A certificate cannot be made.
    #[error("certificate of the {key}: {reason}")]
    Certificate {
        /// Which.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// An escrowed key does not open.
    #[error("escrowed vault key: {0}")]
    Escrow(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec1_is_read_back_and_other_lengths_are_refused() {
        let p = Point { x: [1; 32], y: [2; 32] };
        assert_eq!(Point::from_sec1(&p.to_sec1()), Some(p));
        assert_eq!(Point::from_sec1(&p.to_sec1()[..64]), None);
        assert_eq!(Point::from_sec1(&[&p.to_sec1()[..], &[0]].concat()), None);
        assert_eq!(Point::from_sec1(&[2; 33]), None);
    }
}
