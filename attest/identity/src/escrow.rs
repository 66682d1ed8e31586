//! The vault key in escrow: encrypted so that only this TPM (or key file) can use it, kept by the controller, which gives it
//! back after a successful attestation.
//!
//! As EVE does: AES-256-CFB with an all-zero IV under SHA-256 of an ECDH of the key with its own public point, beside
//! the SHA-256 of the clear key. Each wrapping key encrypts one message only, so the fixed IV is harmless.
#![forbid(unsafe_code)]

use aes::Aes256;
use cfb_mode::cipher::{AsyncStreamCipher as _, KeyIvInit as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::identity::Identity;
use crate::{IdentityError, Use, VaultKey};

/// A vault key in escrow (the two fields of EVE's `AttestVolumeKeyData`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Escrowed {
    /// The encrypted key.
    pub encrypted: Vec<u8>,
    /// SHA-256 of the clear key.
    pub sha256: [u8; 32],
}

/// Encrypts the key for the controller to keep.
///
/// # Errors
/// [`IdentityError`] when the ECDH key cannot be used.
pub fn wrap(identity: &dyn Identity, key: &VaultKey) -> Result<Escrowed, IdentityError> {
    let mut encrypted = key.expose().to_vec();
    cfb_mode::Encryptor::<Aes256>::new(wrapping_key(identity)?.as_slice().into(), &[0u8; 16].into())
        .encrypt(&mut encrypted);
    Ok(Escrowed { encrypted, sha256: Sha256::digest(key.expose()).into() })
}

/// Opens what [`wrap`] made.
///
/// # Errors
/// [`IdentityError::Escrow`] when it is not this device's.
pub fn unwrap(identity: &dyn Identity, escrowed: &Escrowed) -> Result<VaultKey, IdentityError> {
    if escrowed.encrypted.len() != VaultKey::LEN {
        return Err(IdentityError::Escrow("expected 64 bytes"));
    }
    let mut clear = Zeroizing::new(escrowed.encrypted.clone());
    cfb_mode::Decryptor::<Aes256>::new(wrapping_key(identity)?.as_slice().into(), &[0u8; 16].into())
        .decrypt(&mut clear);
    if <[u8; 32]>::from(Sha256::digest(&*clear)) != escrowed.sha256 {
        return Err(IdentityError::Escrow("expected a key that this device's ECDH key encrypted, found another's"));
    }
    VaultKey::new(clear).ok_or(IdentityError::Escrow("expected 64 bytes"))
}

fn wrapping_key(identity: &dyn Identity) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let own = identity.public_key(Use::Agreement)?.ok_or(IdentityError::Escrow("there is no ECDH key"))?;
    let shared = identity.shared_point(&own.point)?;
    Ok(Zeroizing::new(Sha256::new().chain_update(shared.x).chain_update(shared.y).finalize().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SoftwareIdentity;

    #[test]
    fn only_the_device_that_wrapped_a_key_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, other) = (
            SoftwareIdentity::new(&dir.path().join("a"), "test"),
            SoftwareIdentity::new(&dir.path().join("b"), "test"),
        );
        let key = VaultKey::random().unwrap();
        let escrowed = wrap(&mine, &key).unwrap();
        assert_ne!(escrowed.encrypted, key.expose());
        assert_eq!(unwrap(&mine, &escrowed).unwrap().expose(), key.expose());
        assert!(unwrap(&other, &escrowed).is_err());
        let cut = Escrowed { encrypted: escrowed.encrypted[1..].to_vec(), ..escrowed };
        assert!(unwrap(&mine, &cut).is_err());
    }
}
