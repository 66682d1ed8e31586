//! The signed policy of the running image, as PID 1 left it.
#![forbid(unsafe_code)]

use std::path::Path;

use holdfast_format::keys::verifying_key;
use holdfast_format::pcr::{self, Digest, phase};
use holdfast_format::policy::{Approved, POLICY_REF, POLICY_REF_NO_EPOCH, SignedPolicies, epoch_operand};
use p256::ecdsa::VerifyingKey;

use super::epoch::EPOCH_MAX;

/// Name of the signature document in the boot directory (`.pcrsig`).
pub const SIGNATURE_FILE: &str = "tpm2-pcr-signature.json";
/// Name of the policy key in the boot directory (`.pcrpkey`).
pub const KEY_FILE: &str = "tpm2-pcr-public-key.pem";

/// What the release approves for this boot.
#[derive(Debug, Clone)]
pub struct ReleasePolicy {
    /// The release's policy key.
    pub key: VerifyingKey,
    /// The approved policies, signatures not yet checked.
    pub document: SignedPolicies,
}

impl ReleasePolicy {
    /// Reads both files.
    ///
    /// # Errors
    /// A text that names the file.
    pub fn load(boot_dir: &Path) -> Result<Self, String> {
        let read = |name: &str| {
            let path = boot_dir.join(name);
            crate::files::read(&path)
                .map_err(|e| e.to_string())?
                .ok_or_else(|| format!("the image carries no signed policy: {} is not there", path.display()))
        };
        let pem = String::from_utf8(read(KEY_FILE)?).map_err(|_| format!("{KEY_FILE}: expected PEM text"))?;
        let key = verifying_key(&pem).map_err(|e| format!("{KEY_FILE}: {e}"))?;
        let document = SignedPolicies::decode(&read(SIGNATURE_FILE)?).map_err(|e| format!("{SIGNATURE_FILE}: {e}"))?;
        if document.epoch > EPOCH_MAX {
            return Err(format!("{SIGNATURE_FILE}: expected an epoch of 0 to {EPOCH_MAX}, found {}", document.epoch));
        }
        Ok(Self { key, document })
    }

    /// The approval with or without epoch, its signature checked.
    ///
    /// # Errors
    /// A text.
    pub fn approved(&self, with_epoch: bool) -> Result<Approved, String> {
        let reference = if with_epoch { POLICY_REF } else { POLICY_REF_NO_EPOCH };
        self.document.approved(reference, &self.key).map_err(|e| e.to_string())
    }

    /// Whether `pcr11` is that of the boot that the release signed, with the phase `vault-open` behind it.
    pub fn is_past_vault_open(&self, pcr11: &Digest) -> bool {
        let Some(signed) = hex::decode(&self.document.pcr11).ok().and_then(|v| Digest::try_from(v).ok()) else {
            return false;
        };
        let opened = pcr::extend(&signed, &pcr::phase_digest(phase::VAULT_OPEN));
        *pcr11 == opened || *pcr11 == pcr::extend(&opened, &pcr::phase_digest(phase::READY))
    }

    /// Bits of the epoch index that must be clear.
    pub fn forbidden_bits(&self) -> [u8; 8] {
        epoch_operand(self.document.epoch)
    }
}
