//! The device's identity towards the controller, and its vault: `attest/identity` fitted to the client's traits.

use crate::boot::{Boot, Paths};
use crate::machine;
use anyhow::{Context, Result};
use base64::Engine as _;
use holdfast_api::keys::{EcPoint, KeyAgreement, KeyError, Signer};
use holdfast_controller_client::identity::{AttestationCertificate, CertificateUse, DeviceIdentity, EscrowKey, Quote};
use holdfast_format::{gpt, keys, layout};
use holdfast_identity::vault::{VaultOptions, open_or_create};
use holdfast_identity::{
    Certificates, Identity, KeyProtection, Options, Point, Strength, Use, Vault, escrow, eventlog,
};
use holdfast_model::observed::TrustStatus;
use p256::ecdsa::{Signature, SigningKey, signature::hazmat::PrehashSigner};
use prost::Message as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Opens the identity and the vault.
///
/// # Errors
/// When the vault does not open: the text says which step and what was expected.
pub fn open(boot: &Boot, paths: &Paths) -> Result<(Arc<dyn Identity>, Vault)> {
    let options = Options { tcti: None, boot_dir: paths.run.join("boot"), software_dir: paths.data("identity") };
    let identity = holdfast_identity::open(&options);
    grow_data(&boot.facts.partitions.disk, &boot.facts.partitions.data).context("growing DATA to the disk's end")?;
    let vault = open_or_create(
        &VaultOptions {
            partition: (&boot.facts.partitions.data).into(),
            mount_point: paths.data.clone(),
            seed: paths.seed(),
        },
        identity.as_ref(),
    )?;
    Ok((identity, vault))
}

/// Gives DATA what lies behind it when the image was written to a larger disk: both tables on disk, then the kernel's view.
fn grow_data(disk: &str, data: &str) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(disk).with_context(|| format!("cannot open {disk}"))?;
    let bytes = device_bytes(disk)?;
    let (table, health) = gpt::Table::read(&file, bytes).with_context(|| disk.to_owned())?;
    let grown = table.grow_last(bytes);
    let wanted = grown.as_ref().unwrap_or(&table);
    if grown.is_some() || !health.primary || !health.backup || !health.backup_at_end {
        // The backup first: at every moment one of the two tables is whole.
        let mut extents = wanted.encode()?.to_vec();
        extents.sort_by_key(|e| std::cmp::Reverse(e.offset));
        for extent in extents {
            file.write_all_at(&extent.data, extent.offset)?;
            file.sync_all()?;
        }
    }
    let Some(part) = wanted.find(layout::Part::Data.name()) else {
        return Ok(());
    };
    if device_bytes(data)? < part.size_bytes() {
        resize_partition(&file, data, part)?;
    }
    Ok(())
}

/// Bytes of a block device, from sysfs.
///
/// # Errors
/// When it is no block device.
pub fn device_bytes(path: &str) -> Result<u64> {
    let name = Path::new(path).file_name().unwrap_or_default();
    let text = machine::line(Path::new("/sys/class/block").join(name).join("size"));
    let sectors: u64 =
        text.parse().with_context(|| format!("{path}: expected a block device, found no size in sysfs"))?;
    Ok(sectors * gpt::SECTOR)
}

fn resize_partition(disk: &File, data: &str, part: &gpt::Partition) -> Result<()> {
    let name = Path::new(data).file_name().unwrap_or_default();
    let number: i32 = machine::line(Path::new("/sys/class/block").join(name).join("partition"))
        .parse()
        .with_context(|| format!("{data}: no partition number in sysfs"))?;
    holdfast_dm::partition::resize(disk, number, part.offset_bytes(), part.size_bytes())
        .with_context(|| format!("{data}: BLKPG resize"))
}

/// The device towards its controller.
pub struct Device {
    identity: Arc<dyn Identity>,
    certificates: Certificates,
    device_der: Vec<u8>,
    onboarding: Option<FileSigner>,
    escrowed: Vec<EscrowKey>,
    vault: KeyProtection,
    serial: String,
    soft_serial: String,
    version: String,
    firmware: String,
}

impl Device {
    /// Loads or makes the certificates; `vault` is there for escrow of its key.
    ///
    /// # Errors
    /// When the keys cannot be used or the site's onboarding key is malformed.
    pub fn new(identity: Arc<dyn Identity>, boot: &Boot, paths: &Paths, vault: &Vault) -> Result<Self> {
        let folder = paths.data("identity");
        let (certificates, _) = Certificates::load_or_issue(&folder, identity.as_ref(), std::time::SystemTime::now())?;
        let onboarding = match &boot.site {
            Some(site) if !site.onboard_key_pem.is_empty() => Some(
                FileSigner::new(&site.onboard_key_pem, &site.onboard_cert_pem).context("the onboarding key of SITE")?,
            ),
            _ => None,
        };
        // Only a key that a TPM seals is worth leaving with the controller; a clear one is beside the data anyway.
        let mut escrowed = Vec::new();
        if let (Some(key), true) = (&vault.key, identity.strength().tpm.is_some()) {
            let wrapped = escrow::wrap(identity.as_ref(), key)?;
            let message = holdfast_api::proto::attest::AttestVolumeKeyData {
                encrypted_key: wrapped.encrypted,
                digest_sha256: wrapped.sha256.to_vec(),
                ..Default::default()
            };
            escrowed.push(EscrowKey(message.encode_to_vec()));
        }
        let site = boot.site.as_ref();
        Ok(Self {
            device_der: der(&certificates.device)?,
            certificates,
            onboarding,
            escrowed,
            vault: vault.protection.clone(),
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

    /// How the vault's key is kept.
    #[must_use]
    pub fn vault_protection(&self) -> KeyProtection {
        self.vault.clone()
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

/// What is reported of TPM and vault.
#[must_use]
pub fn status(boot: &Boot, strength: &Strength, vault: KeyProtection, pcrs: Vec<(u32, String)>) -> TrustStatus {
    TrustStatus {
        tpm: strength.tpm.is_some(),
        tpm_text: strength.tpm.clone().unwrap_or_default(),
        secure_boot: boot.facts.secure_boot,
        vault_sealed: vault != KeyProtection::Clear,
        // The agent runs with an open vault or not at all.
        vault_open: true,
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
