//! The signed envelope (`AuthContainer`) around every POST body and every reply that has a body.
//!
//! | part | device → controller | controller → device |
//! |---|---|---|
//! | signed bytes | SHA-256 of the payload itself, not of the `AuthBody` around it | the same |
//! | signature | ECDSA P-256, r ‖ s, 64 bytes | the same, or RSA PKCS#1 v1.5 |
//! | `senderCertHash` | SHA-256 of the DER, 32 bytes, `algo` 2 | SHA-256 of the trimmed PEM, 16 or 32 bytes |
//! | `senderCert` | in `/register` only: base64 of the onboarding certificate's PEM text | not used |

use crate::certs::ControllerCertificate;
use crate::hash::{self, sha256};
use crate::keys::{KeyError, Signer};
use crate::proto::auth::{AuthBody, AuthContainer};
use crate::proto::common::HashAlgorithm;
use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;

/// Puts `payload` into an envelope signed by `signer`.
///
/// # Errors
/// [`KeyError`] when the key cannot be used.
pub fn seal(payload: Vec<u8>, signer: &dyn Signer) -> Result<Vec<u8>, KeyError> {
    Ok(container(payload, signer)?.encode_to_vec())
}

/// Puts the payload of `/register` into an envelope that carries the onboarding certificate.
///
/// # Errors
/// [`KeyError`] when the key cannot be used.
pub fn seal_registration(payload: Vec<u8>, onboarding: &dyn Signer) -> Result<Vec<u8>, KeyError> {
    let mut envelope = container(payload, onboarding)?;
    envelope.sender_cert = STANDARD.encode(onboarding.certificate_pem()).into_bytes();
    Ok(envelope.encode_to_vec())
}

fn container(payload: Vec<u8>, signer: &dyn Signer) -> Result<AuthContainer, KeyError> {
    let signature = signer.sign_sha256(&sha256(&payload))?;
    Ok(AuthContainer {
        protected_payload: Some(AuthBody { payload }),
        algo: HashAlgorithm::Sha25632bytes.into(),
        sender_cert_hash: sha256(signer.certificate_der()).to_vec(),
        signature_hash: signature.to_vec(),
        ..AuthContainer::default()
    })
}

/// A received envelope whose signature was not checked yet.
///
/// Its payload is only reachable through [`Received::verify`], with one exception that the certificate list needs.
#[derive(Debug)]
pub struct Received {
    payload: Vec<u8>,
    sender_hash: Vec<u8>,
    signature: Vec<u8>,
}

impl Received {
    /// Reads an envelope.
    ///
    /// # Errors
    /// [`EnvelopeError`] when the bytes are no envelope, it is encrypted, or it names its sender by a hash that is
    /// neither 16 nor 32 bytes long.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let envelope = AuthContainer::decode(bytes).map_err(|error| EnvelopeError::Malformed(error.to_string()))?;
        let Some(body) = envelope.protected_payload else {
            return Err(if envelope.cipher_data.is_some() {
                EnvelopeError::Encrypted
            } else {
                EnvelopeError::NoPayload
            });
        };
        // The length of the hash decides, not `algo`: senders fill it unevenly and it adds nothing to trust.
        if !matches!(envelope.sender_cert_hash.len(), 16 | 32) {
            return Err(EnvelopeError::HashLength(envelope.sender_cert_hash.len()));
        }
        Ok(Self { payload: body.payload, sender_hash: envelope.sender_cert_hash, signature: envelope.signature_hash })
    }

    /// The hash by which the envelope names its sender's certificate, 16 or 32 bytes.
    #[must_use]
    pub fn sender_hash(&self) -> &[u8] {
        &self.sender_hash
    }

    /// Checks that `sender` is the one named and that its key signed the payload; gives the payload.
    ///
    /// # Errors
    /// [`EnvelopeError::UnknownSender`] or [`EnvelopeError::BadSignature`].
    pub fn verify(self, sender: &ControllerCertificate) -> Result<Vec<u8>, EnvelopeError> {
        if !hash::names(&self.sender_hash, sender.trimmed_pem_hash()) {
            return Err(EnvelopeError::UnknownSender(hex::encode(&self.sender_hash)));
        }
        if !sender.key().verifies(&self.payload, &self.signature) {
            return Err(EnvelopeError::BadSignature { sender: sender.subject().to_owned() });
        }
        Ok(self.payload)
    }

    /// The payload before verification: only for the certificate list, which carries its own signer.
    pub(crate) fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }
}

/// An envelope was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an `AuthContainer`.
    #[error("reply is not a signed envelope: {0}")]
    Malformed(String),
    /// An encrypted envelope; no known controller makes one.
    #[error("envelope is encrypted: expected a payload in clear under a signature")]
    Encrypted,
    /// No payload in it.
    #[error("envelope holds no payload")]
    NoPayload,
    /// Hash of a length that names nothing.
    #[error("envelope names its sender by {0} bytes: expected 16 or 32")]
    HashLength(usize),
    /// Signed with a certificate that was not announced: ask for `/certs` again.
    #[error(
        "envelope is signed by certificate {0}, which the controller has not announced; its certificates are asked for again"
    )]
    UnknownSender(String),
    /// The signature does not fit.
    #[error("signature of the envelope does not fit the payload and the key of {sender}; the reply is ignored")]
    BadSignature {
        /// Subject of the certificate.
        sender: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::tests::{TestKey, certificate_for};
    use proptest::prelude::*;

    fn controller_envelope(key: &TestKey, payload: &[u8], hash_length: usize) -> AuthContainer {
        let signature = key.sign_sha256(&sha256(payload)).expect("sign");
        AuthContainer {
            protected_payload: Some(AuthBody { payload: payload.to_vec() }),
            algo: HashAlgorithm::Sha25632bytes.into(),
            sender_cert_hash: hash::trimmed_pem_hash(key.certificate_pem().as_bytes())[..hash_length].to_vec(),
            signature_hash: signature.to_vec(),
            ..AuthContainer::default()
        }
    }

    #[test]
    fn device_envelope_names_the_der_and_signs_the_payload_itself() {
        let key = TestKey::new("device");
        let bytes = seal(b"payload".to_vec(), &key).expect("seal");
        let envelope = AuthContainer::decode(bytes.as_slice()).expect("decode");
        assert_eq!(envelope.algo, 2);
        assert_eq!(envelope.sender_cert_hash, sha256(key.certificate_der()));
        assert_eq!(envelope.signature_hash.len(), 64);
        assert!(envelope.sender_cert.is_empty());
        let public = certificate_for(&key);
        assert!(public.key().verifies(b"payload", &envelope.signature_hash));
        assert!(
            !public
                .key()
                .verifies(&envelope.protected_payload.expect("body").encode_to_vec(), &envelope.signature_hash)
        );
    }

    #[test]
    fn registration_envelope_carries_the_onboarding_certificate_as_base64_of_its_pem() {
        let key = TestKey::new("onboard");
        let bytes = seal_registration(vec![1, 2, 3], &key).expect("seal");
        let envelope = AuthContainer::decode(bytes.as_slice()).expect("decode");
        assert_eq!(STANDARD.decode(envelope.sender_cert).expect("base64"), key.certificate_pem().as_bytes());
    }

    #[test]
    fn reply_is_accepted_with_a_hash_of_16_and_of_32_bytes() {
        let key = TestKey::new("controller");
        let certificate = certificate_for(&key);
        for length in [16, 32] {
            let bytes = controller_envelope(&key, b"reply", length).encode_to_vec();
            let payload = Received::parse(&bytes).and_then(|e| e.verify(&certificate)).expect("verify");
            assert_eq!(payload, b"reply");
        }
        let bytes = controller_envelope(&key, b"reply", 20).encode_to_vec();
        assert_eq!(Received::parse(&bytes).expect_err("20 bytes"), EnvelopeError::HashLength(20));
    }

    #[test]
    fn reply_with_one_changed_byte_is_refused() {
        let key = TestKey::new("controller");
        let certificate = certificate_for(&key);
        let good = controller_envelope(&key, b"reply", 32);
        let mut payload = good.clone();
        payload.protected_payload.as_mut().expect("body").payload[0] ^= 1;
        let mut signature = good.clone();
        signature.signature_hash[63] ^= 1;
        let mut short = good.clone();
        short.signature_hash.pop();
        for bad in [payload, signature, short] {
            let refused = Received::parse(&bad.encode_to_vec()).and_then(|e| e.verify(&certificate));
            assert!(matches!(refused, Err(EnvelopeError::BadSignature { .. })), "{refused:?}");
        }
        let mut sender = good;
        sender.sender_cert_hash[0] ^= 1;
        let refused = Received::parse(&sender.encode_to_vec()).and_then(|e| e.verify(&certificate));
        assert!(matches!(refused, Err(EnvelopeError::UnknownSender(_))), "{refused:?}");
    }

    #[test]
    fn bare_payload_and_encrypted_envelope_are_refused() {
        assert_eq!(Received::parse(&[]).expect_err("empty"), EnvelopeError::NoPayload);
        let encrypted = AuthContainer { cipher_data: Some(Default::default()), ..AuthContainer::default() };
        assert_eq!(Received::parse(&encrypted.encode_to_vec()).expect_err("encrypted"), EnvelopeError::Encrypted);
        assert!(matches!(Received::parse(&[0xff; 9]), Err(EnvelopeError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn any_payload_survives_the_way_through_an_envelope(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let key = TestKey::new("controller");
            let bytes = controller_envelope(&key, &payload, 32).encode_to_vec();
            let back = Received::parse(&bytes).and_then(|e| e.verify(&certificate_for(&key))).expect("verify");
            prop_assert_eq!(back, payload);
        }
    }
}
