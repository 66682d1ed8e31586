//! The device's identity towards the controller, and its vault: `attest/identity` fitted to the client's traits.
//!
//! Reading order: `opening` (keys and vault of this boot), `key_escrow` and `grow` (what it takes), here.

mod grow;
mod key_escrow;
mod opening;

pub use self::grow::device_bytes;
pub use self::opening::{Locked, Opened, Opening, open};

use self::key_escrow::to_escrow;
use crate::boot::{Boot, Paths};
use crate::machine;
use anyhow::{Context, Result};
use base64::Engine as _;
use holdfast_api::keys::{EcPoint, KeyAgreement, KeyError, Signer};
use holdfast_controller_client::identity::{AttestationCertificate, CertificateUse, DeviceIdentity, EscrowKey, Quote};
use holdfast_format::keys;
use holdfast_identity::{Certificates, Identity, KeyProtection, Point, Strength, Use, eventlog};
use holdfast_model::observed::TrustStatus;
use p256::ecdsa::{Signature, SigningKey, signature::hazmat::PrehashSigner};
use std::sync::{Arc, Mutex, PoisonError};

/// The device towards its controller.
pub struct Device {
    identity: Arc<dyn Identity>,
    certificates: Certificates,
    device_der: Vec<u8>,
    onboarding: Option<FileSigner>,
    escrowed: Vec<EscrowKey>,
    vault: VaultState,
    /// As last quoted.
    pcrs: Mutex<Vec<(u32, String)>>,
    serial: String,
    soft_serial: String,
    version: String,
    firmware: String,
}

impl Device {
    /// Loads or makes the certificates; the vault's key is left with the controller.
    ///
    /// # Errors
    /// When the keys cannot be used or the site's onboarding key is malformed.
    pub fn new(opened: Opened, boot: &Boot, paths: &Paths) -> Result<Self> {
        let Opened { identity, vault, note } = opened;
        let folder = paths.data("identity");
        let (certificates, _) = Certificates::load_or_issue(&folder, identity.as_ref(), std::time::SystemTime::now())?;
        // Without it the device works, but could not ask for the vault's key while the vault is closed.
        if let Err(e) = identity.keep_device_certificate(&der(&certificates.device)?) {
            eprintln!("the device certificate is kept in the vault only: {e}");
        }
        // Only a key that a TPM seals is worth leaving with the controller; a clear one is beside the data anyway.
        let mut escrowed = Vec::new();
        if let (Some(key), true) = (&vault.key, identity.strength().tpm.is_some()) {
            escrowed.push(to_escrow(identity.as_ref(), key)?);
        }
        let state = VaultState::Open { protection: vault.protection, note };
        Self::with(identity, boot, certificates, escrowed, state)
    }

    /// The device while its vault is closed: the certificate that the controller knows, and others of this boot only.
    ///
    /// # Errors
    /// When the certificate is kept nowhere but in the vault, or as [`Device::new`].
    pub fn locked(locked: &Locked, boot: &Boot) -> Result<Self> {
        let identity = locked.identity.clone();
        let kept = identity.kept_device_certificate()?.context("the device certificate lies in the vault only")?;
        let certificates = Certificates::issue(identity.as_ref(), std::time::SystemTime::now())?;
        if der(&certificates.device)? != kept {
            anyhow::bail!("the device certificate in the TPM is not that of the device key");
        }
        let state = VaultState::Closed { why: locked.why.clone() };
        Self::with(identity, boot, certificates, Vec::new(), state)
    }

    fn with(
        identity: Arc<dyn Identity>,
        boot: &Boot,
        certificates: Certificates,
        escrowed: Vec<EscrowKey>,
        vault: VaultState,
    ) -> Result<Self> {
        let onboarding = match &boot.site {
            Some(site) if !site.onboard_key_pem.is_empty() => Some(
                FileSigner::new(&site.onboard_key_pem, &site.onboard_cert_pem).context("the onboarding key of SITE")?,
            ),
            _ => None,
        };
        let site = boot.site.as_ref();
        Ok(Self {
            device_der: der(&certificates.device)?,
            certificates,
            onboarding,
            escrowed,
            vault,
            pcrs: Mutex::default(),
            serial: site.and_then(|s| s.serial.clone()).unwrap_or_else(|| machine::dmi("product_serial")),
            soft_serial: site.and_then(|s| s.soft_serial.clone()).unwrap_or_default(),
            version: boot.release.version.clone(),
            firmware: format!(
                "{}-{}-{}",
                machine::dmi("bios_vendor"),
                machine::dmi("bios_version"),
                machine::dmi("bios_date")
            ),
            identity,
        })
    }

    /// The vault, for reports.
    #[must_use]
    pub fn vault(&self) -> &VaultState {
        &self.vault
    }

    /// The PCRs that the last quote showed, index and lower-case hex; empty before the first, and without a TPM.
    #[must_use]
    pub fn pcrs(&self) -> Vec<(u32, String)> {
        // Nothing that could panic runs while the lock is held.
        self.pcrs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys underneath.
    #[must_use]
    pub fn identity(&self) -> &Arc<dyn Identity> {
        &self.identity
    }
}

impl Signer for Device {
    fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], KeyError> {
        self.identity.sign_sha256(digest).map_err(|e| KeyError::new("device key", e))
    }

    fn certificate_der(&self) -> &[u8] {
        &self.device_der
    }

    fn certificate_pem(&self) -> &str {
        &self.certificates.device
    }
}

impl KeyAgreement for Device {
    fn shared_point(&self, peer: &EcPoint) -> Result<EcPoint, KeyError> {
        let point =
            self.identity.shared_point(&Point { x: peer.x, y: peer.y }).map_err(|e| KeyError::new("ECDH key", e))?;
        Ok(EcPoint { x: point.x, y: point.y })
    }

    fn certificate_pem(&self) -> &str {
        &self.certificates.agreement
    }
}

impl DeviceIdentity for Device {
    fn device(&self) -> &dyn Signer {
        self
    }

    fn onboarding(&self) -> Option<&dyn Signer> {
        self.onboarding.as_ref().map(|s| s as &dyn Signer)
    }

    fn serial(&self) -> &str {
        &self.serial
    }

    fn soft_serial(&self) -> &str {
        &self.soft_serial
    }

    fn attestation_certificates(&self) -> Result<Vec<AttestationCertificate>, KeyError> {
        let mut list = Vec::new();
        let parts = [
            (CertificateUse::EcdhExchange, Use::Agreement, Some(&self.certificates.agreement)),
            (CertificateUse::RestrictedSigning, Use::Quote, self.certificates.quote.as_ref()),
            (CertificateUse::Endorsement, Use::Endorsement, self.certificates.endorsement.as_ref()),
        ];
        for (usage, key, pem) in parts {
            let Some(pem) = pem else { continue };
            let tpm_public = self
                .identity
                .public_key(key)
                .map_err(|e| KeyError::new(format!("{usage:?} key"), e))?
                .and_then(|k| k.tpm_public);
            list.push(AttestationCertificate { usage, pem: pem.clone(), in_tpm: tpm_public.is_some(), tpm_public });
        }
        Ok(list)
    }

    fn quote(&self, nonce: &[u8]) -> Result<Option<Quote>, KeyError> {
        let quote = self.identity.quote(nonce).map_err(|e| KeyError::new("quote key", e))?;
        if let Some(quote) = &quote {
            let shown = quote.pcrs.iter().map(|(index, value)| (*index, hex::encode(value))).collect();
            *self.pcrs.lock().unwrap_or_else(PoisonError::into_inner) = shown;
        }
        Ok(quote.map(|q| Quote { attest: q.attest, signature_der: q.signature_der, pcrs: q.pcrs }))
    }

    fn event_log(&self) -> Option<Vec<u8>> {
        eventlog::read()
    }

    fn os_version(&self) -> &str {
        &self.version
    }

    fn firmware_version(&self) -> &str {
        &self.firmware
    }

    fn keys_to_escrow(&self) -> Result<Vec<EscrowKey>, KeyError> {
        Ok(self.escrowed.clone())
    }
}

/// A key that lies in a file: the site's onboarding key.
struct FileSigner {
    key: SigningKey,
    pem: String,
    der: Vec<u8>,
}

impl FileSigner {
    fn new(key_pem: &str, certificate_pem: &str) -> Result<Self> {
        Ok(Self { key: keys::signing_key(key_pem)?, pem: certificate_pem.to_owned(), der: der(certificate_pem)? })
    }
}

impl Signer for FileSigner {
    fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], KeyError> {
        let signature: Signature = self.key.sign_prehash(digest).map_err(|e| KeyError::new("onboarding key", e))?;
        Ok(signature.to_bytes().into())
    }

    fn certificate_der(&self) -> &[u8] {
        &self.der
    }

    fn certificate_pem(&self) -> &str {
        &self.pem
    }
}

/// The first PEM block of a certificate, decoded.
fn der(pem: &str) -> Result<Vec<u8>> {
    let body = pem
        .split("-----BEGIN CERTIFICATE-----")
        .nth(1)
        .and_then(|t| t.split("-----END CERTIFICATE-----").next())
        .context("expected a PEM block CERTIFICATE")?;
    let text: String = body.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(text).context("expected base64 in the PEM block")
}

/// The vault as it is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaultState {
    /// Open.
    Open {
        /// How its key is kept.
        protection: KeyProtection,
        /// How it was opened, when not as always.
        note: String,
    },
    /// Closed: the key is sealed, and not to this boot.
    Closed {
        /// Why.
        why: String,
    },
}

/// What is reported of TPM and vault.
#[must_use]
pub fn status(boot: &Boot, strength: &Strength, vault: &VaultState, pcrs: Vec<(u32, String)>) -> TrustStatus {
    let (open, sealed, note) = match vault {
        VaultState::Open { protection, note } => (true, *protection != KeyProtection::Clear, note),
        VaultState::Closed { why } => (false, true, why),
    };
    TrustStatus {
        tpm: strength.tpm.is_some(),
        tpm_text: strength.tpm.clone().unwrap_or_default(),
        secure_boot: boot.facts.secure_boot,
        vault_sealed: sealed,
        vault_open: open,
        vault_note: note.clone(),
        weaknesses: strength.weaknesses.clone(),
        pcrs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::pcr::sha256;
    use p256::ecdsa::signature::hazmat::PrehashVerifier;

    #[test]
    fn the_onboarding_key_signs_with_its_own_certificate() {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let pem = keys::private_pem(&[7; 32]).unwrap();
        let certificate = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
        let signer = FileSigner::new(&pem, certificate).unwrap();
        let digest = sha256(&[b"x"]);
        let signature = Signature::from_slice(&signer.sign_sha256(&digest).unwrap()).unwrap();
        key.verifying_key().verify_prehash(&digest, &signature).unwrap();
        assert_eq!(signer.certificate_der(), [1, 2, 3]);
    }

    #[test]
    fn text_that_is_no_certificate_is_refused() {
        assert!(der("hello").is_err());
        assert!(der("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----").is_err());
    }
}
