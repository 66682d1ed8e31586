//! The trait that the rest of the device sees, and the choice between TPM and files.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::tpm::quote::Quote;
use crate::tpm::{DEVICE_TCTI, TpmError};
use crate::{HardwareIdentity, IdentityError, Point, PublicKey, SealedKey, SoftwareIdentity, Strength, Use, VaultKey};

/// Attempts to open a TPM before it is taken as broken.
const OPEN_ATTEMPTS: u32 = 3;

/// A device's identity. Calls block for as long as a TPM takes (tens to hundreds of milliseconds), never for the network.
pub trait Identity: Send + Sync {
    /// What this identity rests on.
    fn strength(&self) -> Strength;

    /// Public half of a key; `None` for keys that only a TPM has.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn public_key(&self, usage: Use) -> Result<Option<PublicKey>, IdentityError>;

    /// ECDSA P-256 by the device key over an SHA-256 digest: r then s, big-endian.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], IdentityError>;

    /// d · `peer` with the ECDH key, both coordinates.
    ///
    /// # Errors
    /// [`IdentityError`] when `peer` is not on the curve.
    fn shared_point(&self, peer: &Point) -> Result<Point, IdentityError>;

    /// Quote over PCR 0 to 15 with `nonce` (1 to 64 bytes); `None` without a TPM.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn quote(&self, nonce: &[u8]) -> Result<Option<Quote>, IdentityError>;

    /// Extends a boot-phase word into PCR 11; nothing without a TPM.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn extend_phase(&self, word: &str) -> Result<(), IdentityError>;

    /// Extends a digest into a PCR; nothing without a TPM.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn extend(&self, pcr: u32, digest: &[u8; 32]) -> Result<(), IdentityError>;

    /// Endorsement certificates of the TPM's maker, DER.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn endorsement_certificates(&self) -> Result<Vec<Vec<u8>>, IdentityError>;

    /// The device certificate (DER) that is kept where the vault's state does not matter, so that the controller knows this device
    /// while the vault is closed or new. `None` when there is none, and always without a TPM.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn kept_device_certificate(&self) -> Result<Option<Vec<u8>>, IdentityError>;

    /// Keeps the device certificate there; nothing without a TPM.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn keep_device_certificate(&self, der: &[u8]) -> Result<(), IdentityError>;

    /// Seals a vault key as strongly as this boot allows; [`Identity::strength`] tells how strongly that is.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn seal(&self, key: &VaultKey) -> Result<SealedKey, IdentityError>;

    /// Opens a sealed vault key.
    ///
    /// # Errors
    /// [`IdentityError::Tpm`] when the policy is not satisfied in this boot.
    fn unseal(&self, sealed: &SealedKey) -> Result<VaultKey, IdentityError>;

    /// From now on, images of an epoch below `epoch` cannot open the vault. Nothing without a TPM.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn commit_epoch(&self, epoch: u32) -> Result<(), IdentityError>;
}

/// Where an identity finds what it needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// TCTI of the TPM; `None` looks for the kernel's resource manager.
    pub tcti: Option<String>,
    /// The signed policy of the running image: `tpm2-pcr-signature.json` and `tpm2-pcr-public-key.pem`.
    pub boot_dir: PathBuf,
    /// Directory of the software keys, used when there is no TPM. It need not exist before the first key is asked for:
    /// it may lie in the vault.
    pub software_dir: PathBuf,
}

impl Options {
    /// Those of a running device.
    pub fn device() -> Self {
        Self { tcti: None, boot_dir: "/run/holdfast/boot".into(), software_dir: "/data/identity".into() }
    }
}

/// Opens the identity: in the TPM when there is one that works, else in files. Never fails for want of a TPM; why it is
/// not used is in [`Strength::weaknesses`].
pub fn open(options: &Options) -> Arc<dyn Identity> {
    let tcti = match &options.tcti {
        Some(tcti) => tcti.clone(),
        None if Path::new("/dev/tpmrm0").exists() => DEVICE_TCTI.to_owned(),
        None => {
            let reason = "this machine has no TPM, or it is switched off in the firmware";
            return Arc::new(SoftwareIdentity::new(&options.software_dir, reason));
        }
    };
    // What is decided at the first boot stays: a TPM that only stutters must not make a device without one.
    let mut pause = Duration::from_millis(500);
    for _attempt in 1..OPEN_ATTEMPTS {
        match HardwareIdentity::open(&tcti, &options.boot_dir) {
            Ok(identity) => return Arc::new(identity),
            Err(TpmError::Unexpected { .. }) => break,
            Err(_) => std::thread::sleep(pause),
        }
        pause *= 2;
    }
    match HardwareIdentity::open(&tcti, &options.boot_dir) {
        Ok(identity) => Arc::new(identity),
        Err(e) => Arc::new(SoftwareIdentity::new(&options.software_dir, &e.to_string())),
    }
}
