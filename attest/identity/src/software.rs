//! The identity of a machine without a TPM: keys in files. It works, and says what is weaker.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::sec1::{FromEncodedPoint as _, ToEncodedPoint as _};
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding};
use p256::{AffinePoint, EncodedPoint, ProjectivePoint, SecretKey};
use zeroize::Zeroizing;

use crate::files::{random, read, replace};
use crate::identity::Identity;
use crate::strength::{KeyProtection, Strength};
use crate::tpm::quote::Quote;
use crate::{IdentityError, Point, PublicKey, SealedKey, Use, VaultKey};

/// Keys in files under one directory, made when first asked for.
pub struct SoftwareIdentity {
    dir: PathBuf,
    reason: String,
    keys: Mutex<Option<Keys>>,
}

#[derive(Clone)]
struct Keys {
    device: SecretKey,
    agreement: SecretKey,
}

impl SoftwareIdentity {
    /// `reason`: why no TPM is used. Nothing is read or written before the first key is asked for, because `dir` may lie in
    /// the vault, which this identity opens.
    pub fn new(dir: &Path, reason: &str) -> Self {
        Self { dir: dir.to_owned(), reason: reason.to_owned(), keys: Mutex::new(None) }
    }

    fn keys(&self) -> Result<Keys, IdentityError> {
        // A panic while the lock was held leaves either no keys or whole ones.
        let mut slot = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = &*slot {
            return Ok(keys.clone());
        }
        let keys = Keys {
            device: load_or_make(&self.dir.join("device.key.pem"))?,
            agreement: load_or_make(&self.dir.join("ecdh.key.pem"))?,
        };
        *slot = Some(keys.clone());
        Ok(keys)
    }
}

impl Identity for SoftwareIdentity {
    fn strength(&self) -> Strength {
        Strength {
            tpm: None,
            vault_key: KeyProtection::Clear,
            weaknesses: vec![
                format!("no TPM is used: {}", self.reason),
                "the device key is a file: a copy of the disk is a copy of this device".into(),
                "the vault key lies beside the data: encryption only makes erasing quick".into(),
                "no quote: the controller cannot check which software runs".into(),
            ],
        }
    }

    fn public_key(&self, usage: Use) -> Result<Option<PublicKey>, IdentityError> {
        let key = match usage {
            Use::Device => self.keys()?.device,
            Use::Agreement => self.keys()?.agreement,
            Use::Quote | Use::Endorsement => return Ok(None),
        };
        Ok(Some(PublicKey { point: to_point(&(*key.public_key().as_affine()).into())?, tpm_public: None }))
    }

    fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], IdentityError> {
        let key = SigningKey::from(&self.keys()?.device);
        let signature: Signature = key.sign_prehash(digest).map_err(|e| IdentityError::Content {
            path: self.dir.join("device.key.pem").display().to_string(),
            expected: "a P-256 key that signs",
            found: e.to_string(),
        })?;
        Ok(signature.to_bytes().into())
    }

    fn shared_point(&self, peer: &Point) -> Result<Point, IdentityError> {
        let encoded = EncodedPoint::from_affine_coordinates(&peer.x.into(), &peer.y.into(), false);
        let peer =
            Option::<AffinePoint>::from(AffinePoint::from_encoded_point(&encoded)).ok_or(IdentityError::BadPoint)?;
        let scalar = self.keys()?.agreement.to_nonzero_scalar();
        to_point(&(ProjectivePoint::from(peer) * *scalar))
    }

    fn quote(&self, _nonce: &[u8]) -> Result<Option<Quote>, IdentityError> {
        Ok(None)
    }

    fn extend_phase(&self, _word: &str) -> Result<(), IdentityError> {
        Ok(())
    }

    fn extend(&self, _pcr: u32, _digest: &[u8; 32]) -> Result<(), IdentityError> {
        Ok(())
    }

    fn endorsement_certificates(&self) -> Result<Vec<Vec<u8>>, IdentityError> {
        Ok(Vec::new())
    }

    fn kept_device_certificate(&self) -> Result<Option<Vec<u8>>, IdentityError> {
        Ok(None)
    }

    fn keep_device_certificate(&self, _der: &[u8]) -> Result<(), IdentityError> {
        Ok(())
    }

    fn seal(&self, key: &VaultKey) -> Result<SealedKey, IdentityError> {
        Ok(SealedKey::Clear(Zeroizing::new(key.expose().to_vec())))
    }

    fn unseal(&self, sealed: &SealedKey) -> Result<VaultKey, IdentityError> {
        match sealed {
            SealedKey::Clear(bytes) => clear_key(bytes),
            SealedKey::Tpm { .. } => Err(IdentityError::TpmGone(self.reason.clone())),
        }
    }

    fn commit_epoch(&self, _epoch: u32) -> Result<(), IdentityError> {
        Ok(())
    }
}

pub(crate) fn clear_key(bytes: &Zeroizing<Vec<u8>>) -> Result<VaultKey, IdentityError> {
    VaultKey::new(bytes.clone()).ok_or_else(|| IdentityError::Content {
        path: "vault header".into(),
        expected: "a key of 64 bytes",
        found: format!("{} bytes", bytes.len()),
    })
}

fn to_point(p: &ProjectivePoint) -> Result<Point, IdentityError> {
    Point::from_sec1(p.to_affine().to_encoded_point(false).as_bytes()).ok_or(IdentityError::BadPoint)
}

fn load_or_make(path: &Path) -> Result<SecretKey, IdentityError> {
    let content = |found: String| IdentityError::Content {
        path: path.display().to_string(),
        expected: "a P-256 private key, PKCS#8 PEM",
        found,
    };
    if let Some(pem) = read(path)? {
        let pem = Zeroizing::new(pem);
        let text = std::str::from_utf8(&pem).map_err(|e| content(e.to_string()))?;
        return SecretKey::from_pkcs8_pem(text).map_err(|e| content(e.to_string()));
    }
    // A scalar that is zero or too large is as likely as guessing the key; then draw again.
    for _attempt in 0..8 {
        let mut scalar = Zeroizing::new([0u8; 32]);
        random(&mut *scalar)?;
        let Ok(key) = SecretKey::from_slice(&*scalar) else {
            continue;
        };
        let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|e| content(e.to_string()))?;
        replace(path, pem.as_bytes())?;
        return Ok(key);
    }
    Err(content("the kernel's random source gives no usable scalar".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::ecdsa::VerifyingKey;
    use p256::ecdsa::signature::hazmat::PrehashVerifier as _;

    #[test]
    fn keys_are_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = SoftwareIdentity::new(&dir.path().join("identity"), "test");
        assert!(!dir.path().join("identity").exists(), "nothing is written before a key is asked for");
        let key = first.public_key(Use::Device).unwrap().unwrap();
        let second = SoftwareIdentity::new(&dir.path().join("identity"), "test");
        assert_eq!(second.public_key(Use::Device).unwrap().unwrap(), key);
        let signature = second.sign_sha256(&[9; 32]).unwrap();
        let verifier = VerifyingKey::from_sec1_bytes(&key.point.to_sec1()).unwrap();
        verifier.verify_prehash(&[9; 32], &Signature::from_slice(&signature).unwrap()).unwrap();
    }

    #[test]
    fn both_sides_of_an_agreement_meet_in_both_coordinates() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (
            SoftwareIdentity::new(&dir.path().join("a"), "test"),
            SoftwareIdentity::new(&dir.path().join("b"), "test"),
        );
        let point = |i: &SoftwareIdentity| i.public_key(Use::Agreement).unwrap().unwrap().point;
        assert!(a.shared_point(&point(&b)).unwrap() == b.shared_point(&point(&a)).unwrap());
        let off_curve = Point { x: [1; 32], y: [1; 32] };
        assert!(matches!(a.shared_point(&off_curve), Err(IdentityError::BadPoint)));
    }

    #[test]
    fn a_key_sealed_by_a_tpm_is_refused_with_the_reason() {
        let identity = SoftwareIdentity::new(Path::new("/nonexistent"), "the TPM is gone");
        let sealed = SealedKey::Tpm { epoch_bound: true, private: vec![1], public: vec![2] };
        let error = identity.unseal(&sealed).unwrap_err().to_string();
        assert!(error.contains("the TPM is gone"), "{error}");
    }
}
