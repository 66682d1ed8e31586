//! Certificates of the controller: the list of `/certs`, its chain of trust, and the keys in it.
//!
//! The chain ends at the roots of the site. A leaf needs the extended key usage serverAuth or none at all; its key usage
//! is not looked at, because controllers in the field carry certificates whose key usage lacks digitalSignature.

use crate::envelope::{EnvelopeError, Received};
use crate::hash;
use crate::keys::EcPoint;
use crate::proto::certs::{ZCertType, ZControllerCert};
use prost::Message;
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

/// More certificates than any controller announces; a longer list is refused.
const MAX_CERTIFICATES: usize = 32;

/// The certificates that the site trusts.
#[derive(Debug, Clone)]
pub struct Roots(Vec<CertificateDer<'static>>);

impl Roots {
    /// Reads one or more certificates from a PEM text.
    ///
    /// # Errors
    /// [`CertificateError`] when there is none or one of them is no X.509 certificate.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        let bad = |reason: String| CertificateError::Roots { reason };
        let ders = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad(error.to_string()))?;
        if ders.is_empty() {
            return Err(bad("no CERTIFICATE block in it".to_owned()));
        }
        for der in &ders {
            webpki::anchor_from_trusted_cert(der).map_err(|error| bad(error.to_string()))?;
        }
        Ok(Self(ders))
    }

    /// The certificates, DER.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// True when `der` is itself one of the roots and valid at `now`: a site may trust a server's certificate as it stands.
    #[must_use]
    pub fn contains(&self, der: &CertificateDer<'_>, now: UnixTime) -> bool {
        self.0.iter().any(|root| root.as_ref() == der.as_ref())
            && X509Certificate::from_der(der).is_ok_and(|(_, parsed)| {
                let bound = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
                let validity = parsed.validity();
                (bound(validity.not_before)..=bound(validity.not_after)).contains(&now.as_secs())
            })
    }

    fn anchors(&self) -> Vec<TrustAnchor<'_>> {
        // Each was accepted as an anchor when the roots were read.
        self.0.iter().filter_map(|der| webpki::anchor_from_trusted_cert(der).ok()).collect()
    }
}

/// At what time certificates must be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValidAt {
    /// At this time.
    Time(UnixTime),
    /// Dates were checked when the list was fetched: for a list kept across a reboot, when the clock may not be known.
    CheckedBefore,
}

/// The verified certificates of a controller.
#[derive(Debug, Clone)]
pub struct ControllerCertificates {
    leaves: Vec<ControllerCertificate>,
    rejected: Vec<String>,
    envelope: Vec<u8>,
}

impl ControllerCertificates {
    /// Reads and verifies a reply of `/certs`: finds the signer inside, checks its chain, then its signature.
    ///
    /// A leaf whose chain does not hold is left out and named in [`Self::rejected`]; the signer's chain must hold.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_reply(envelope: &[u8], roots: &Roots, valid: ValidAt) -> Result<Self, CertificateError> {
        let received = Received::parse(envelope)?;
        let list = ZControllerCert::decode(received.unverified_payload())
            .map_err(|error| CertificateError::Malformed(error.to_string()))?;
        if list.certs.len() > MAX_CERTIFICATES {
            return Err(CertificateError::TooMany(list.certs.len()));
        }
        let intermediates: Vec<CertificateDer<'_>> = list
            .certs
            .iter()
            .filter(|cert| cert.r#type() == ZCertType::CertTypeControllerIntermediate)
            .flat_map(|cert| CertificateDer::pem_slice_iter(&cert.cert).filter_map(Result::ok))
            .collect();

        let mut leaves = Vec::new();
        let mut rejected = Vec::new();
        for cert in &list.certs {
            let signs = match cert.r#type() {
                ZCertType::CertTypeControllerSigning => true,
                ZCertType::CertTypeControllerEcdhExchange => false,
                _ => continue,
            };
            let leaf = ControllerCertificate::from_pem(&cert.cert, signs);
            match leaf.and_then(|leaf| leaf.check_chain(&intermediates, roots, valid).map(|()| leaf)) {
                Ok(leaf) => leaves.push(leaf),
                Err(error) => rejected.push(error.to_string()),
            }
        }

        let signer =
            leaves.iter().find(|leaf| leaf.signs && hash::names(received.sender_hash(), &leaf.trimmed_pem_hash));
        let Some(signer) = signer else {
            return Err(CertificateError::NoSigner {
                hash: hex::encode(received.sender_hash()),
                rejected: rejected.join("; "),
            });
        };
        received.verify(signer)?;
        Ok(Self { leaves, rejected, envelope: envelope.to_vec() })
    }

    /// Verifies a reply's envelope against the announced signing certificates and gives its payload.
    ///
    /// # Errors
    /// [`EnvelopeError`]; on [`EnvelopeError::UnknownSender`] the certificates should be fetched again.
    pub fn open(&self, envelope: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
        let received = Received::parse(envelope)?;
        match self.leaves.iter().find(|leaf| leaf.signs && hash::names(received.sender_hash(), &leaf.trimmed_pem_hash))
        {
            Some(signer) => received.verify(signer),
            None => Err(EnvelopeError::UnknownSender(hex::encode(received.sender_hash()))),
        }
    }

    /// The leaf named by a hash of 16 or 32 bytes, whatever its type: object encryption may use either.
    #[must_use]
    pub fn by_hash(&self, hash: &[u8]) -> Option<&ControllerCertificate> {
        self.leaves.iter().find(|leaf| hash::names(hash, &leaf.trimmed_pem_hash) || hash::names(hash, &leaf.pem_hash))
    }

    /// Leaves that were left out, one reason each.
    #[must_use]
    pub fn rejected(&self) -> &[String] {
        &self.rejected
    }

    /// The envelope as it came, to be kept across reboots.
    #[must_use]
    pub fn envelope(&self) -> &[u8] {
        &self.envelope
    }
}

/// One leaf certificate of the controller.
#[derive(Debug, Clone)]
pub struct ControllerCertificate {
    der: CertificateDer<'static>,
    subject: String,
    not_before: u64,
    not_after: u64,
    key: PublicKey,
    signs: bool,
    trimmed_pem_hash: [u8; 32],
    pem_hash: [u8; 32],
}

impl ControllerCertificate {
    fn from_pem(pem: &[u8], signs: bool) -> Result<Self, CertificateError> {
        let malformed =
            |reason: String| CertificateError::Leaf { subject: "unreadable certificate".to_owned(), reason };
        let der = CertificateDer::from_pem_slice(pem).map_err(|error| malformed(error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| malformed(error.to_string()))?;
        let subject = parsed.subject().to_string();
        let key = PublicKey::from_certificate(&parsed).ok_or_else(|| CertificateError::Leaf {
            subject: subject.clone(),
            reason: "expected a P-256 or RSA key".to_owned(),
        })?;
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let (not_before, not_after) = (seconds(parsed.validity().not_before), seconds(parsed.validity().not_after));
        Ok(Self {
            subject,
            not_before,
            not_after,
            key,
            signs,
            trimmed_pem_hash: hash::trimmed_pem_hash(pem),
            pem_hash: hash::sha256(pem),
            der: der.into_owned(),
        })
    }

    fn check_chain(
        &self,
        intermediates: &[CertificateDer<'_>],
        roots: &Roots,
        valid: ValidAt,
    ) -> Result<(), CertificateError> {
        let refused = |reason: String| CertificateError::Leaf { subject: self.subject.clone(), reason };
        let seconds = match valid {
            ValidAt::Time(time) => time.as_secs(),
            ValidAt::CheckedBefore => newest_start(intermediates).max(self.not_before),
        };
        // A site may trust the controller's certificate itself.
        if roots.0.iter().any(|root| root.as_ref() == self.der.as_ref()) {
            return if (self.not_before..=self.not_after).contains(&seconds) {
                Ok(())
            } else {
                Err(refused(format!(
                    "valid from {} to {} (Unix seconds), the clock says {seconds}",
                    self.not_before, self.not_after
                )))
            };
        }
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        EndEntityCert::try_from(&self.der)
            .and_then(|leaf| {
                leaf.verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    &roots.anchors(),
                    intermediates,
                    time,
                    KeyUsage::server_auth(),
                    None,
                    None,
                )
                .map(|_| ())
            })
            .map_err(|error| refused(error.to_string()))
    }

    /// Subject as text.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Its public key.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// SHA-256 of its PEM text without white space around it: the name the controller's envelopes use.
    #[must_use]
    pub fn trimmed_pem_hash(&self) -> &[u8; 32] {
        &self.trimmed_pem_hash
    }
}

/// The latest `notBefore` among certificates, Unix seconds.
fn newest_start(certificates: &[CertificateDer<'_>]) -> u64 {
    let start = |der: &CertificateDer<'_>| {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        u64::try_from(parsed.validity().not_before.timestamp()).ok()
    };
    certificates.iter().filter_map(start).max().unwrap_or(0)
}

/// A public key of the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// P-256: signs, and agrees on secrets.
    P256(EcPoint),
    /// RSA, PKCS#1 `RSAPublicKey` DER: signs only.
    Rsa(Vec<u8>),
}

impl PublicKey {
    /// Reads the key of a certificate; `None` when it is neither P-256 nor RSA.
    fn from_certificate(certificate: &X509Certificate<'_>) -> Option<Self> {
        let info = certificate.public_key();
        let bits = info.subject_public_key.data.as_ref();
        match info.algorithm.algorithm.to_id_string().as_str() {
            "1.2.840.10045.2.1" => {
                let curve = info.algorithm.parameters.as_ref()?.as_oid().ok()?;
                (curve.to_id_string() == "1.2.840.10045.3.1.7").then_some(())?;
                EcPoint::from_sec1(bits).map(Self::P256)
            }
            "1.2.840.113549.1.1.1" => Some(Self::Rsa(bits.to_vec())),
            _ => None,
        }
    }

    /// True when `signature` (r ‖ s, or RSA PKCS#1 v1.5) over SHA-256 of `message` was made by this key.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::P256(point) => {
                let sec1 = [&[4], point.x.as_slice(), point.y.as_slice()].concat();
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, sec1).verify(message, signature).is_ok()
            }
            Self::Rsa(der) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der).verify(message, signature).is_ok()
            }
        }
    }
}

/// Certificates were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The site's roots cannot be read.
    #[error("root certificates of the site: {reason}; expected PEM certificates")]
    Roots {
        /// Why.
        reason: String,
    },
    /// The list cannot be read.
    #[error("certificate list of the controller: {0}")]
    Malformed(String),
    /// Too many.
    #[error("certificate list of the controller holds {0} certificates: expected at most {MAX_CERTIFICATES}")]
    TooMany(usize),
    /// One certificate.
    #[error("certificate of the controller {subject}: {reason}")]
    Leaf {
        /// Its subject.
        subject: String,
        /// Why.
        reason: String,
    },
    /// No trusted signing certificate fits.
    #[error(
        "the certificate list is signed by {hash}: no signing certificate in it has that hash and a chain to the roots of the site ({rejected})"
    )]
    NoSigner {
        /// Hash in the envelope.
        hash: String,
        /// Leaves that were left out, with reasons.
        rejected: String,
    },
    /// Its envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

#[cfg(test)]
pub(crate) mod tests;
