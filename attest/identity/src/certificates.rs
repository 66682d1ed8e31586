//! Certificates of the device's keys: the device key's own, and those it signs for the others.
//!
//! They are made once and kept, because the controller knows them by their hash; an ECDSA signature differs each time.
//! Twenty years, as EVE makes them; a device whose clock is not set yet takes the time of the build.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, SystemTime};

use p256::ecdsa;
use p256::pkcs8::der::pem;
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
    /// cleared). The second value says whether they are fresh. The device's own is fresh only if the identity keeps none either
    /// ([`Identity::kept_device_certificate`]): a device that lost its disk is still the one that its controller knows.
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

    /// Makes certificates for all keys of `identity`, around the device certificate that it keeps, if it keeps one for its key.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn issue(identity: &dyn Identity, now: SystemTime) -> Result<Self, IdentityError> {
        let device_key = required(identity, Use::Device, "device key")?;
        let signer = Remote { identity, point: device_key.to_sec1(), failure: std::cell::RefCell::new(None) };
        let mut params = params(&device_key, "device", now);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        let kept = identity.kept_device_certificate()?.filter(|der| is_for(der, &device_key));
        let device = match kept {
            Some(der) => der_to_pem(&der)?,
            None => params.self_signed(&signer).map_err(|e| signer.explain("device key", &e))?.pem(),
        };
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
                (Some(pem), Some(public)) => pem_to_der(pem).is_some_and(|der| is_for(&der, &public.point)),
                _ => false,
            })
        };
        Ok(holds(Some(&self.device), Use::Device)?
            && holds(Some(&self.agreement), Use::Agreement)?
            && holds(self.quote.as_deref(), Use::Quote)?
            && holds(self.endorsement.as_deref(), Use::Endorsement)?)
    }
}

/// Whether a certificate carries this public key.
fn is_for(der: &[u8], key: &Point) -> bool {
    der.windows(65).any(|w| w == key.to_sec1())
}

/// The PEM text of a certificate, as rcgen writes it: controllers hash the text, so the same bytes must give the same text.
fn der_to_pem(der: &[u8]) -> Result<String, IdentityError> {
    let failed = |e: pem::Error| IdentityError::Certificate { key: "device key", reason: e.to_string() };
    pem::encode_string("CERTIFICATE", pem::LineEnding::LF, der).map_err(failed)
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

    /// An identity that keeps a device certificate, as a TPM does.
    struct Keeper(SoftwareIdentity, std::sync::Mutex<Option<Vec<u8>>>);

    impl Identity for Keeper {
        fn kept_device_certificate(&self) -> Result<Option<Vec<u8>>, IdentityError> {
            Ok(self.1.lock().unwrap().clone())
        }
        fn keep_device_certificate(&self, der: &[u8]) -> Result<(), IdentityError> {
            *self.1.lock().unwrap() = Some(der.to_vec());
            Ok(())
        }
        fn strength(&self) -> crate::Strength {
            self.0.strength()
        }
        fn public_key(&self, usage: Use) -> Result<Option<crate::PublicKey>, IdentityError> {
            self.0.public_key(usage)
        }
        fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], IdentityError> {
            self.0.sign_sha256(digest)
        }
        fn shared_point(&self, peer: &Point) -> Result<Point, IdentityError> {
            self.0.shared_point(peer)
        }
        fn quote(&self, nonce: &[u8]) -> Result<Option<crate::Quote>, IdentityError> {
            self.0.quote(nonce)
        }
        fn extend_phase(&self, word: &str) -> Result<(), IdentityError> {
            self.0.extend_phase(word)
        }
        fn extend(&self, pcr: u32, digest: &[u8; 32]) -> Result<(), IdentityError> {
            self.0.extend(pcr, digest)
        }
        fn endorsement_certificates(&self) -> Result<Vec<Vec<u8>>, IdentityError> {
            self.0.endorsement_certificates()
        }
        fn seal(&self, key: &crate::VaultKey) -> Result<crate::SealedKey, IdentityError> {
            self.0.seal(key)
        }
        fn unseal(&self, sealed: &crate::SealedKey) -> Result<crate::VaultKey, IdentityError> {
            self.0.unseal(sealed)
        }
        fn commit_epoch(&self, epoch: u32) -> Result<(), IdentityError> {
            self.0.commit_epoch(epoch)
        }
    }

    #[test]
    fn a_device_that_lost_its_disk_is_still_the_same_device() {
        let dir = tempfile::tempdir().unwrap();
        let software = |name: &str| SoftwareIdentity::new(&dir.path().join(name), "test");
        let keeper = Keeper(software("keys"), std::sync::Mutex::default());
        let now = SystemTime::now();
        let (first, _) = Certificates::load_or_issue(&dir.path().join("disk 1"), &keeper, now).unwrap();
        keeper.keep_device_certificate(&pem_to_der(&first.device).unwrap()).unwrap();

        let (again, fresh) = Certificates::load_or_issue(&dir.path().join("disk 2"), &keeper, now).unwrap();
        assert!(fresh);
        assert_eq!(again.device, first.device, "to the letter: its hash is the device's name");
        let device = pem_to_der(&again.device).unwrap();
        let agreement = pem_to_der(&again.agreement).unwrap();
        let (_, device) = X509Certificate::from_der(&device).unwrap();
        let (_, agreement) = X509Certificate::from_der(&agreement).unwrap();
        agreement.verify_signature(Some(device.public_key())).unwrap();
        assert_eq!(agreement.issuer(), device.subject());

        // A cleared TPM has other keys: what is kept is somebody else's then.
        let cleared = Keeper(software("new keys"), std::sync::Mutex::new(pem_to_der(&first.device)));
        assert_ne!(Certificates::issue(&cleared, now).unwrap().device, first.device);
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
