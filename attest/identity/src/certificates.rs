//! Certificates of the device's keys: the device key's own, and those it signs for the others.
//!
//! They are made once and kept, because the controller knows them by their hash; an ECDSA signature differs each time.
//! Twenty years, as EVE makes them; a device whose clock is not set yet takes the time of the build.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, SystemTime};

use p256::ecdsa;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber, SignatureAlgorithm, SigningKey,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::files::{read, replace};
use crate::identity::Identity;
use crate::{IdentityError, Point, Use};

/// Validity: 20 years.
const VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// 2026-01-01: a clock before this one was never set.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);
const FILE: &str = "certificates.json";

/// The certificates of a device, PEM text exactly as it is hashed and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// The device key, self-signed; a CA for the others.
    pub device: String,
    /// The ECDH key.
    pub agreement: String,
    /// The quote key; only with a TPM.
    pub quote: Option<String>,
    /// The endorsement key, signed by the device key; only with a TPM. The maker's own are in
    /// [`Identity::endorsement_certificates`].
    pub endorsement: Option<String>,
}

impl Certificates {
    /// The certificates kept in `dir`, or fresh ones when there are none or when they are for other keys (the TPM was
    /// cleared). The second value says whether they are fresh: then the controller does not know this device yet.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load_or_issue(dir: &Path, identity: &dyn Identity, now: SystemTime) -> Result<(Self, bool), IdentityError> {
        let path = dir.join(FILE);
        if let Some(bytes) = read(&path)? {
            // A file that does not parse was not written by us in one piece: make it anew.
            if let Ok(kept) = serde_json::from_slice::<Self>(&bytes)
                && kept.matches(identity)?
            {
                return Ok((kept, false));
            }
        }
        let fresh = Self::issue(identity, now)?;
        let bytes = serde_json::to_vec_pretty(&fresh)
            .map_err(|e| IdentityError::Certificate { key: "device key", reason: e.to_string() })?;
        replace(&path, &bytes)?;
        Ok((fresh, true))
    }

    /// Makes certificates for all keys of `identity`.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn issue(identity: &dyn Identity, now: SystemTime) -> Result<Self, IdentityError> {
        let device_key = required(identity, Use::Device, "device key")?;
        let signer = Remote { identity, point: device_key.to_sec1(), failure: std::cell::RefCell::new(None) };
        let mut params = params(&device_key, "device", now);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        let device = params.self_signed(&signer).map_err(|e| signer.explain("device key", &e))?.pem();
        let issuer = Issuer::new(params, &signer);

        let sign = |usage: Use, key: &'static str, name: &str, purpose: KeyUsagePurpose| {
            let Some(public) = identity.public_key(usage)? else {
                return Ok::<_, IdentityError>(None);
            };
            let mut params = self::params(&public.point, name, now);
            params.key_usages = vec![purpose];
            params.use_authority_key_identifier_extension = true;
            let public = BarePublic(public.point.to_sec1());
            let made = params.signed_by(&public, &issuer).map_err(|e| signer.explain(key, &e))?;
            Ok(Some(made.pem()))
        };
        Ok(Self {
            device,
            agreement: sign(Use::Agreement, "ECDH key", "ECDH", KeyUsagePurpose::KeyAgreement)?
                .ok_or(IdentityError::Certificate { key: "ECDH key", reason: "there is no such key".into() })?,
            quote: sign(Use::Quote, "quote key", "quote", KeyUsagePurpose::DigitalSignature)?,
            endorsement: sign(Use::Endorsement, "endorsement key", "EK", KeyUsagePurpose::KeyAgreement)?,
        })
    }

    /// Whether these certificates are for the keys of `identity`.
    fn matches(&self, identity: &dyn Identity) -> Result<bool, IdentityError> {
        let holds = |pem: Option<&str>, usage: Use| -> Result<bool, IdentityError> {
            Ok(match (pem, identity.public_key(usage)?) {
                (None, None) => true,
                (Some(pem), Some(public)) => {
                    pem_to_der(pem).is_some_and(|der| der.windows(65).any(|w| w == public.point.to_sec1()))
                }
                _ => false,
            })
        };
        Ok(holds(Some(&self.device), Use::Device)?
            && holds(Some(&self.agreement), Use::Agreement)?
            && holds(self.quote.as_deref(), Use::Quote)?
            && holds(self.endorsement.as_deref(), Use::Endorsement)?)
    }
}

/// The DER inside the first PEM block.
pub fn pem_to_der(pem: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let body: String = pem
        .lines()
        .skip_while(|l| !l.starts_with("-----BEGIN "))
        .skip(1)
        .take_while(|l| !l.starts_with("-----END "))
        .collect();
    base64::engine::general_purpose::STANDARD.decode(body.trim()).ok().filter(|der| !der.is_empty())
}

fn required(identity: &dyn Identity, usage: Use, key: &'static str) -> Result<Point, IdentityError> {
    let public = identity.public_key(usage)?;
    Ok(public.ok_or_else(|| IdentityError::Certificate { key, reason: "there is no such key".into() })?.point)
}

/// Name, serial number and validity. Names carry a part of the key's hash, so that two devices never share one.
fn params(point: &Point, name: &str, now: SystemTime) -> CertificateParams {
    let hash = Sha256::digest(point.to_sec1());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Holdfast");
    params.distinguished_name.push(DnType::CommonName, format!("Holdfast {name} {}", hex::encode(&hash[..8])));
    // Positive, and the same for the same key: a certificate made again replaces the other.
    let mut serial = hash[8..24].to_vec();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from(serial));
    let start = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().max(EARLIEST);
    let at = |d: Duration| {
        i64::try_from(d.as_secs())
            .ok()
            .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    params.not_before = at(start);
    params.not_after = at(start + VALIDITY);
    params
}

/// The device key as rcgen's signer.
struct Remote<'a> {
    identity: &'a dyn Identity,
    point: [u8; 65],
    /// rcgen's error has no room for the reason.
    failure: std::cell::RefCell<Option<String>>,
}

impl Remote<'_> {
    fn explain(&self, key: &'static str, error: &rcgen::Error) -> IdentityError {
        let reason = self.failure.borrow_mut().take().unwrap_or_else(|| error.to_string());
        IdentityError::Certificate { key, reason }
    }
}

impl PublicKeyData for Remote<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Remote<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let refuse = |reason: String| {
            *self.failure.borrow_mut() = Some(reason);
            rcgen::Error::RemoteKeyError
        };
        let raw = self.identity.sign_sha256(&Sha256::digest(message).into()).map_err(|e| refuse(e.to_string()))?;
        let signature = ecdsa::Signature::from_slice(&raw).map_err(|e| refuse(e.to_string()))?;
        Ok(signature.to_der().as_bytes().to_vec())
    }
}

/// A public key that signs nothing here.
struct BarePublic([u8; 65]);

impl PublicKeyData for BarePublic {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SoftwareIdentity;
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    #[test]
    fn certificates_parse_chain_and_last_twenty_years() {
        let dir = tempfile::tempdir().unwrap();
        let identity = SoftwareIdentity::new(dir.path(), "test");
        let made = Certificates::issue(&identity, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((&made.quote, &made.endorsement), (&None, &None));
        let device = pem_to_der(&made.device).unwrap();
        let (_, device) = X509Certificate::from_der(&device).unwrap();
        let agreement = pem_to_der(&made.agreement).unwrap();
        let (_, agreement) = X509Certificate::from_der(&agreement).unwrap();
        assert!(device.is_ca() && !agreement.is_ca());
        assert_eq!(agreement.issuer(), device.subject());
        device.verify_signature(None).unwrap();
        agreement.verify_signature(Some(device.public_key())).unwrap();
        let years = (device.validity().not_after.timestamp() - device.validity().not_before.timestamp()) / 31_536_000;
        assert_eq!(years, 20);
        assert!(device.validity().not_before.timestamp() >= 1_767_225_600, "a clock that was never set");
    }

    #[test]
    fn kept_certificates_are_used_until_the_keys_change() {
        let dir = tempfile::tempdir().unwrap();
        let keys = SoftwareIdentity::new(&dir.path().join("keys"), "test");
        let other = SoftwareIdentity::new(&dir.path().join("other"), "test");
        let now = SystemTime::now();
        let (first, fresh) = Certificates::load_or_issue(dir.path(), &keys, now).unwrap();
        assert!(fresh);
        assert_eq!(Certificates::load_or_issue(dir.path(), &keys, now).unwrap(), (first.clone(), false));
        let (second, fresh) = Certificates::load_or_issue(dir.path(), &other, now).unwrap();
        assert!(fresh && second != first);
    }
}
