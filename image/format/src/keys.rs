//! P-256 keys as PEM files: the release key of payloads and the key of PCR policies.

use p256::ecdsa::{SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding};

/// A key file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {cause}; expected a P-256 key as PEM ({expected})")]
pub struct KeyError {
    what: &'static str,
    cause: String,
    expected: &'static str,
}

/// A private key from PKCS#8 PEM.
///
/// # Errors
/// [`KeyError`].
pub fn signing_key(pem: &str) -> Result<SigningKey, KeyError> {
    SigningKey::from_pkcs8_pem(pem).map_err(|e| KeyError {
        what: "private key",
        cause: e.to_string(),
        expected: "BEGIN PRIVATE KEY",
    })
}

/// A public key from SubjectPublicKeyInfo PEM.
///
/// # Errors
/// [`KeyError`].
pub fn verifying_key(pem: &str) -> Result<VerifyingKey, KeyError> {
    VerifyingKey::from_public_key_pem(pem).map_err(|e| KeyError {
        what: "public key",
        cause: e.to_string(),
        expected: "BEGIN PUBLIC KEY",
    })
}

/// SubjectPublicKeyInfo PEM of a public key.
///
/// # Errors
/// [`KeyError`] if the encoder refuses, which no valid key makes it do.
pub fn public_pem(key: &VerifyingKey) -> Result<String, KeyError> {
    key.to_public_key_pem(LineEnding::LF).map_err(|e| KeyError {
        what: "public key",
        cause: e.to_string(),
        expected: "a point",
    })
}

/// PKCS#8 PEM of a private key made from 32 random bytes that the caller drew.
///
/// # Errors
/// [`KeyError`] when the bytes are not a valid scalar; draw again.
pub fn private_pem(scalar: &[u8; 32]) -> Result<String, KeyError> {
    let bad = |cause: String| KeyError { what: "private key", cause, expected: "a scalar below the group order" };
    let key = SigningKey::from_slice(scalar).map_err(|e| bad(e.to_string()))?;
    Ok(key.to_pkcs8_pem(LineEnding::LF).map_err(|e| bad(e.to_string()))?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_through_pem_and_a_foreign_file_is_named() {
        let pem = private_pem(&[7; 32]).unwrap();
        let key = signing_key(&pem).unwrap();
        let public = public_pem(key.verifying_key()).unwrap();
        assert_eq!(verifying_key(&public).unwrap(), *key.verifying_key());
        assert!(verifying_key(&pem).unwrap_err().to_string().contains("BEGIN PUBLIC KEY"));
        assert!(private_pem(&[0; 32]).is_err());
    }
}
