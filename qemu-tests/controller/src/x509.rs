//! What the controller reads out of a certificate: its hashes, its P-256 key, and whether another key signed it.

use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// Not PEM, or PEM without a certificate in it.
    #[error("{what}: not a PEM certificate: {cause}")]
    Pem {
        /// Which certificate.
        what: String,
        /// What the parser said.
        cause: String,
    },
    /// Not a certificate after all.
    #[error("{what}: not an X.509 certificate: {cause}")]
    Der {
        /// Which certificate.
        what: String,
        /// What the parser said.
        cause: String,
    },
    /// A key of another kind than the protocol uses.
    #[error("{what}: expected a P-256 key, found algorithm {found}")]
    Key {
        /// Which certificate.
        what: String,
        /// Object identifier of the key's algorithm.
        found: String,
    },
}

/// A certificate, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cert {
    /// The DER bytes.
    pub der: Vec<u8>,
    /// The PEM text as received.
    pub pem: String,
}

impl Cert {
    /// Reads the first certificate of a PEM text; `what` names it in errors.
    pub fn from_pem(what: &str, pem: &[u8]) -> Result<Self, CertError> {
        let text =
            std::str::from_utf8(pem).map_err(|error| CertError::Pem { what: what.into(), cause: error.to_string() })?;
        let (_, block) =
            parse_x509_pem(pem).map_err(|error| CertError::Pem { what: what.into(), cause: error.to_string() })?;
        if block.label != "CERTIFICATE" {
            return Err(CertError::Pem {
                what: what.into(),
                cause: format!("expected label CERTIFICATE, found {}", block.label),
            });
        }
        let (rest, _) = X509Certificate::from_der(&block.contents)
            .map_err(|error| CertError::Der { what: what.into(), cause: error.to_string() })?;
        if !rest.is_empty() {
            return Err(CertError::Der {
                what: what.into(),
                cause: format!("{} bytes after the certificate", rest.len()),
            });
        }
        Ok(Self { der: block.contents, pem: text.to_owned() })
    }

    /// SHA-256 of the DER: how an envelope names a device or onboarding certificate.
    pub fn der_hash(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    /// The P-256 key, for signatures.
    pub fn verifying_key(&self, what: &str) -> Result<VerifyingKey, CertError> {
        let found = |found: String| CertError::Key { what: what.into(), found };
        let (_, cert) = X509Certificate::from_der(&self.der)
            .map_err(|error| CertError::Der { what: what.into(), cause: error.to_string() })?;
        let info = cert.public_key();
        VerifyingKey::from_sec1_bytes(&info.subject_public_key.data)
            .map_err(|_| found(info.algorithm.algorithm.to_id_string()))
    }

    /// The P-256 key, for key agreement.
    pub fn public_key(&self, what: &str) -> Result<p256::PublicKey, CertError> {
        Ok(p256::PublicKey::from(self.verifying_key(what)?))
    }

    /// True if `key` made the signature of this certificate (ECDSA with SHA-256).
    pub fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        let Ok((_, cert)) = X509Certificate::from_der(&self.der) else {
            return false;
        };
        let Ok(signature) = Signature::from_der(&cert.signature_value.data) else {
            return false;
        };
        key.verify(cert.tbs_certificate.as_ref(), &signature).is_ok()
    }

    /// The subject's name in text form, for people.
    pub fn subject(&self) -> String {
        X509Certificate::from_der(&self.der).map(|(_, cert)| cert.subject().to_string()).unwrap_or_default()
    }
}

/// The text form whose hash names a controller certificate: white space trimmed at both ends.
pub fn pem_hash(pem: &str) -> [u8; 32] {
    Sha256::digest(pem.trim().as_bytes()).into()
}
