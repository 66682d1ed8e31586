//! The signed envelope (`AuthContainer`): opened strictly, sealed as an EVE controller seals it.
//!
//! A request is refused (401) unless its signature is 64 bytes of r and s over the payload bytes themselves, and its
//! sender is named by all 32 bytes of the SHA-256 of a known certificate's DER. Lenient readings that other
//! controllers allow (ASN.1 signatures, any `algo`) are refused here on purpose, so that no device relies on them.

use crate::pki::Identity;
use crate::x509::Cert;
use holdfast_api::proto::auth::{AuthBody, AuthContainer};
use holdfast_api::proto::common::HashAlgorithm;
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{Signature, VerifyingKey};
use prost::Message;

/// Why an envelope was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an AuthContainer.
    #[error("envelope: not an AuthContainer message: {0}")]
    Parse(String),
    /// No payload field: perhaps a message that was sent without its envelope.
    #[error("envelope: no protectedPayload in it (was the message sent without an envelope?)")]
    NoPayload,
    /// Wrong hash algorithm or length.
    #[error("envelope: expected algo 2 and a senderCertHash of 32 bytes, found algo {algo} and {length} bytes")]
    SenderHash {
        /// Value of `algo`.
        algo: i32,
        /// Bytes in `senderCertHash`.
        length: usize,
    },
    /// The signature field is not r and s.
    #[error("envelope: expected a signature of 64 bytes (r and s), found {0} bytes")]
    SignatureForm(usize),
    /// The signature does not hold.
    #[error("envelope: the signature does not verify with the key of the sender's certificate")]
    Signature,
    /// Something that only makes sense in /register.
    #[error("envelope: senderCert may only be filled in /register")]
    UnexpectedSenderCert,
    /// An encrypted envelope.
    #[error("envelope: encrypted envelopes are not part of this service")]
    Encrypted,
}

/// An envelope whose form is right and whose signature has not been checked yet.
#[derive(Debug)]
pub struct Sealed {
    /// SHA-256 of the sender certificate's DER.
    pub sender: [u8; 32],
    /// Content of `senderCert`, empty except in /register.
    pub sender_cert: Vec<u8>,
    payload: Vec<u8>,
    signature: Signature,
}

impl Sealed {
    /// Reads the form of an envelope.
    pub fn parse(body: &[u8]) -> Result<Self, EnvelopeError> {
        let container = AuthContainer::decode(body).map_err(|error| EnvelopeError::Parse(error.to_string()))?;
        if container.cipher_context.is_some() || container.cipher_data.is_some() {
            return Err(EnvelopeError::Encrypted);
        }
        let payload = container.protected_payload.ok_or(EnvelopeError::NoPayload)?.payload;
        let sender = <[u8; 32]>::try_from(container.sender_cert_hash.as_slice())
            .ok()
            .filter(|_| container.algo == HashAlgorithm::Sha25632bytes as i32)
            .ok_or(EnvelopeError::SenderHash { algo: container.algo, length: container.sender_cert_hash.len() })?;
        let length = container.signature_hash.len();
        let signature =
            Signature::from_slice(&container.signature_hash).map_err(|_| EnvelopeError::SignatureForm(length))?;
        Ok(Self { sender, sender_cert: container.sender_cert, payload, signature })
    }

    /// Checks the signature and hands out the payload.
    pub fn open(self, key: &VerifyingKey) -> Result<Vec<u8>, EnvelopeError> {
        key.verify(&self.payload, &self.signature).map_err(|_| EnvelopeError::Signature)?;
        Ok(self.payload)
    }

    /// Like [`Sealed::open`] for every endpoint but /register.
    pub fn open_from_device(self, cert: &Cert) -> Result<Vec<u8>, EnvelopeError> {
        if !self.sender_cert.is_empty() {
            return Err(EnvelopeError::UnexpectedSenderCert);
        }
        let key = cert.verifying_key("device certificate").map_err(|_| EnvelopeError::Signature)?;
        self.open(&key)
    }
}

/// How an answer is spoilt on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spoil {
    /// Not at all.
    #[default]
    Not,
    /// One bit of the signature is wrong.
    Signature,
    /// The sender hash names no certificate.
    SenderHash,
}

/// Seals an answer with the controller's signing certificate.
pub fn seal(payload: Vec<u8>, signer: &Identity, spoil: Spoil) -> Vec<u8> {
    let signature: Signature = signer.signing_key().sign(&payload);
    let mut signature_hash = signature.to_bytes().to_vec();
    let mut sender_cert_hash = crate::x509::pem_hash(&signer.cert.pem).to_vec();
    match spoil {
        Spoil::Not => {}
        Spoil::Signature => signature_hash[63] ^= 1,
        Spoil::SenderHash => sender_cert_hash[0] ^= 0xff,
    }
    AuthContainer {
        protected_payload: Some(AuthBody { payload }),
        algo: HashAlgorithm::Sha25632bytes as i32,
        sender_cert_hash,
        signature_hash,
        ..Default::default()
    }
    .encode_to_vec()
}

/// Fuzz entry: any bytes are either an envelope or a named error.
#[doc(hidden)]
pub fn fuzz_envelope(data: &[u8]) {
    if let Ok(sealed) = Sealed::parse(data) {
        let key = VerifyingKey::from(&p256::ecdsa::SigningKey::from_slice(&[7; 32]).expect("valid scalar"));
        let _ = sealed.open(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signer() -> Identity {
        crate::pki::Pki::generate(&crate::pki::PkiOptions::default()).expect("keys").signing
    }

    fn as_device(signer: &Identity, payload: &[u8]) -> AuthContainer {
        let signature: Signature = signer.signing_key().sign(payload);
        AuthContainer {
            protected_payload: Some(AuthBody { payload: payload.to_vec() }),
            algo: 2,
            sender_cert_hash: signer.cert.der_hash().to_vec(),
            signature_hash: signature.to_bytes().to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn a_device_envelope_opens_with_the_senders_certificate() {
        let signer = signer();
        let container = as_device(&signer, b"hello");
        let sealed = Sealed::parse(&container.encode_to_vec()).expect("form");
        assert_eq!(sealed.sender, signer.cert.der_hash());
        assert_eq!(sealed.open_from_device(&signer.cert).expect("signature"), b"hello");
    }

    #[test]
    fn each_deviation_is_refused_by_name() {
        let signer = signer();
        let good = as_device(&signer, b"hello");
        type Change = fn(&mut AuthContainer);
        let der = |c: &mut AuthContainer| {
            let raw = Signature::from_slice(&c.signature_hash).expect("64 bytes");
            c.signature_hash = raw.to_der().as_bytes().to_vec();
        };
        let cases: [(Change, &str); 6] = [
            (|c| c.algo = 1, "algo 1"),
            (|c| c.sender_cert_hash.truncate(16), "16 bytes"),
            (|c| c.signature_hash.truncate(63), "63 bytes"),
            (|c| c.protected_payload = None, "no protectedPayload"),
            (|c| c.cipher_data = Some(Default::default()), "encrypted"),
            (der, "expected a signature of 64 bytes"),
        ];
        for (change, text) in cases {
            let mut container = good.clone();
            change(&mut container);
            let error = Sealed::parse(&container.encode_to_vec()).expect_err(text);
            assert!(error.to_string().contains(text), "{error} lacks {text}");
        }
    }

    #[test]
    fn a_changed_payload_or_a_stray_sender_certificate_is_refused() {
        let signer = signer();
        let mut container = as_device(&signer, b"hello");
        container.protected_payload = Some(AuthBody { payload: b"hullo".to_vec() });
        let sealed = Sealed::parse(&container.encode_to_vec()).expect("form");
        assert_eq!(sealed.open_from_device(&signer.cert), Err(EnvelopeError::Signature));
        let mut container = as_device(&signer, b"hello");
        container.sender_cert = b"x".to_vec();
        let sealed = Sealed::parse(&container.encode_to_vec()).expect("form");
        assert_eq!(sealed.open_from_device(&signer.cert), Err(EnvelopeError::UnexpectedSenderCert));
    }

    #[test]
    fn an_answer_names_the_signer_by_its_trimmed_pem_and_can_be_spoilt() {
        let signer = signer();
        let read = |spoil| AuthContainer::decode(seal(b"x".to_vec(), &signer, spoil).as_slice()).expect("container");
        let good = read(Spoil::Not);
        assert_eq!(good.algo, 2);
        assert_eq!(good.sender_cert_hash, crate::x509::pem_hash(&signer.cert.pem));
        let key = signer.cert.verifying_key("t").expect("key");
        let verifies =
            |c: &AuthContainer| Signature::from_slice(&c.signature_hash).is_ok_and(|s| key.verify(b"x", &s).is_ok());
        assert!(verifies(&good));
        assert!(!verifies(&read(Spoil::Signature)));
        assert_ne!(read(Spoil::SenderHash).sender_cert_hash, good.sender_cert_hash);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_bytes_are_read_without_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_envelope(&data);
        }
    }
}
