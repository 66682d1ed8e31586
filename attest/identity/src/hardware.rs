//! The identity of a machine with a TPM.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use holdfast_format::pcr::PCR_UKI;
use holdfast_format::policy::EPOCH_INDEX;
use zeroize::Zeroizing;

use crate::identity::Identity;
use crate::software::clear_key;
use crate::strength::{KeyProtection, Strength};
use crate::tpm::policy::ReleasePolicy;
use crate::tpm::quote::Quote;
use crate::tpm::templates::Role;
use crate::tpm::{Condition, Tpm, TpmError};
use crate::{IdentityError, Point, PublicKey, SealedKey, Use, VaultKey};

/// Keys in a TPM, and the signed policy of the running image.
pub struct HardwareIdentity {
    tpm: Tpm,
    policy: Result<ReleasePolicy, String>,
    epochs: bool,
    /// Why nothing can be sealed in this boot; empty when it can, as far as is known.
    unsealable: Mutex<String>,
}

impl HardwareIdentity {
    /// Opens the TPM behind `tcti`, makes its keys and the epoch index when they are not there, and reads the running image's
    /// signed policy from `boot_dir`. A missing policy or an unmeasured boot is no error: the vault key is then not
    /// sealed, and [`Identity::strength`] says so.
    ///
    /// # Errors
    /// [`TpmError`] when the TPM does not work or holds other keys at our handles.
    pub fn open(tcti: &str, boot_dir: &Path) -> Result<Self, TpmError> {
        let tpm = Tpm::start(tcti)?;
        tpm.ensure_keys()?;
        let epochs = tpm.ensure_epoch_index(EPOCH_INDEX)?;
        let unmeasured = match tpm.check_measured() {
            Ok(()) => String::new(),
            Err(TpmError::NotSealable(reason)) => reason,
            Err(e) => return Err(e),
        };
        let policy = ReleasePolicy::load(boot_dir);
        Ok(Self { tpm, policy, epochs, unsealable: Mutex::new(unmeasured) })
    }

    /// The TPM itself, for diagnosis and tests.
    pub fn tpm(&self) -> &Tpm {
        &self.tpm
    }

    /// The policy to seal to, or why there is none.
    fn sealable(&self) -> Result<&ReleasePolicy, String> {
        let unsealable = self.unsealable.lock().unwrap_or_else(PoisonError::into_inner);
        if !unsealable.is_empty() {
            return Err(unsealable.clone());
        }
        let policy = self.policy.as_ref().map_err(Clone::clone)?;
        policy.approved(self.epochs)?;
        Ok(policy)
    }

    /// Whether PCR 11 shows the boot that the release signed, with the phase `vault-open` behind it.
    fn is_past_vault_open(&self, policy: &ReleasePolicy) -> Result<bool, TpmError> {
        let values = self.tpm.read_pcrs(&[PCR_UKI])?;
        Ok(values.iter().any(|(_, value)| policy.is_past_vault_open(value)))
    }
}

impl Identity for HardwareIdentity {
    fn strength(&self) -> Strength {
        let info = self.tpm.info();
        let mut weaknesses = Vec::new();
        let vault_key = match self.sealable() {
            Ok(_) if self.epochs => KeyProtection::SealedWithEpoch,
            Ok(_) => {
                weaknesses.push("this TPM has no NV bit index: an older signed image could open the vault".into());
                KeyProtection::Sealed
            }
            Err(reason) => {
                weaknesses.push(format!("a new vault key would not be sealed: {reason}"));
                KeyProtection::Clear
            }
        };
        Strength {
            tpm: Some(format!("{} firmware {:x}.{:x}", info.manufacturer, info.firmware.0, info.firmware.1)),
            vault_key,
            weaknesses,
        }
    }

    fn public_key(&self, usage: Use) -> Result<Option<PublicKey>, IdentityError> {
        let public = self.tpm.public(match usage {
            Use::Device => Role::Device,
            Use::Agreement => Role::Agreement,
            Use::Quote => Role::Quote,
            Use::Endorsement => Role::Endorsement,
        })?;
        Ok(Some(PublicKey { point: public.point, tpm_public: Some(public.blob) }))
    }

    fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], IdentityError> {
        Ok(self.tpm.sign_sha256(digest)?)
    }

    fn shared_point(&self, peer: &Point) -> Result<Point, IdentityError> {
        Ok(self.tpm.shared_point(peer)?)
    }

    fn quote(&self, nonce: &[u8]) -> Result<Option<Quote>, IdentityError> {
        Ok(Some(self.tpm.quote(nonce)?))
    }

    fn extend_phase(&self, word: &str) -> Result<(), IdentityError> {
        Ok(self.tpm.extend_phase(word)?)
    }

    fn extend(&self, pcr: u32, digest: &[u8; 32]) -> Result<(), IdentityError> {
        Ok(self.tpm.extend_pcr(pcr, digest)?)
    }

    fn endorsement_certificates(&self) -> Result<Vec<Vec<u8>>, IdentityError> {
        Ok(self.tpm.endorsement_certificates()?.into_iter().map(|(_, der)| der).collect())
    }

    fn kept_device_certificate(&self) -> Result<Option<Vec<u8>>, IdentityError> {
        Ok(self.tpm.read_device_certificate()?)
    }

    fn keep_device_certificate(&self, der: &[u8]) -> Result<(), IdentityError> {
        Ok(self.tpm.write_device_certificate(der)?)
    }

    fn seal(&self, key: &VaultKey) -> Result<SealedKey, IdentityError> {
        // What cannot be sealed is kept in clear: reported by `strength`, and the device works all the same.
        let clear = || Ok(SealedKey::Clear(Zeroizing::new(key.expose().to_vec())));
        let Ok(policy) = self.sealable() else {
            return clear();
        };
        let sealed = self.tpm.seal(key, policy, self.epochs)?;
        // A key that this very boot cannot open would be lost with the next: try before anybody relies on it.
        match self.unseal(&sealed) {
            Ok(opened) if opened.expose() == key.expose() => Ok(sealed),
            Ok(_) => Err(TpmError::NotSealable("another key came back than was sealed".into()).into()),
            // An agent that died while it made the vault: after a reboot it is sealed as it should be.
            Err(e) if self.is_past_vault_open(policy)? => Err(e),
            Err(IdentityError::Tpm(TpmError::StaysSealed { reason, .. })) => {
                *self.unsealable.lock().unwrap_or_else(PoisonError::into_inner) = reason;
                clear()
            }
            Err(e) => Err(e),
        }
    }

    fn unseal(&self, sealed: &SealedKey) -> Result<VaultKey, IdentityError> {
        let (epoch_bound, private, public) = match sealed {
            SealedKey::Clear(bytes) => return clear_key(bytes),
            SealedKey::Tpm { epoch_bound, private, public } => (*epoch_bound, private, public),
        };
        let policy = self
            .policy
            .as_ref()
            .map_err(|reason| TpmError::StaysSealed { condition: Condition::Boot, reason: reason.clone() })?;
        Ok(self.tpm.unseal(private, public, policy, epoch_bound)?)
    }

    fn commit_epoch(&self, epoch: u32) -> Result<(), IdentityError> {
        if self.epochs {
            self.tpm.commit_epoch(EPOCH_INDEX, epoch)?;
        }
        Ok(())
    }
}
