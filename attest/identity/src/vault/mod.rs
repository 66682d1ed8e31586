//! The vault: ext4 over dm-crypt on the DATA partition, its key sealed by the identity.
//!
//! ```text
//!  DATA   0      header copy A (4 KiB)     generation, sealed key, volume uuid, MAC, CRC
//!         512 K  header copy B
//!         1 MiB  encrypted ext4, to the end of the partition
//! ```
//! 1. The header is written last: a volume without one was never finished and is made anew.
//! 2. A volume with a valid header is never made anew, whatever goes wrong: that is for the operator or the controller
//!    (escrow) to decide.
//! 3. The header carries a MAC under a key derived from the unsealed one, checked before anything is mounted, and the
//!    volume's identity goes into PCR 15: a foreign volume shows in every quote.
//! 4. Once the key is out, the phase `vault-open` is extended: nothing later in this boot can unseal it again.
//! 5. Running it again while the vault is open finds it open; so a restarted agent loses nothing.
//!
//! Reading order: this file, [`header`], [`platform`] (what it needs from the kernel), [`linux`] (how the kernel does it),
//! [`ext4`], [`keyring`].

pub mod ext4;
pub mod header;
pub mod keyring;
pub mod linux;
pub mod platform;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::identity::Identity;
use crate::strength::KeyProtection;
use crate::{Condition, IdentityError, SealedKey, TpmError, VaultKey};
use header::{Found, Header, Parsed};
use platform::Platform;

/// PCR that carries the volume's identity.
pub const PCR_VOLUME: u32 = 15;
/// Name of the mapped device.
pub const DEVICE_NAME: &str = "data";

/// What to open, and where.
#[derive(Debug, Clone)]
pub struct VaultOptions {
    /// The DATA partition.
    pub partition: PathBuf,
    /// Where it is mounted; an existing directory.
    pub mount_point: PathBuf,
    /// Small ext4 image that a new vault starts from.
    pub seed: PathBuf,
}

/// An open vault.
#[derive(Debug)]
pub struct Vault {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// It was made in this call: its content is empty.
    pub created: bool,
    /// How its key is kept.
    pub protection: KeyProtection,
    /// Its key, for escrow: only when this call opened it, not when it was found open.
    pub key: Option<VaultKey>,
    /// It was opened by [`recover`].
    pub recovered: Option<Recovered>,
}

/// What became of the sealed key of a vault that escrow opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// Sealed anew: the next boot of this image opens it by itself.
    Resealed,
    /// Left as it was, because this boot cannot be sealed to, and a key in clear would be worse than none; with the reason.
    LeftAsItWas(String),
}

/// The vault cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The partition cannot be read or written.
    #[error("vault on {partition}: {action}: {source}")]
    Partition {
        /// Its path.
        partition: String,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is too small.
    #[error("vault on {partition}: expected at least {expected} bytes, found {found}")]
    TooSmall {
        /// Its path.
        partition: String,
        /// Header and seed.
        expected: u64,
        /// Its size.
        found: u64,
    },
    /// Both copies of the header are damaged.
    #[error(
        "vault on {partition}: both copies of its header are damaged ({reason}); nothing is changed. If its data may go, \
         erase it and restart"
    )]
    Damaged {
        /// Its path.
        partition: String,
        /// What is wrong.
        reason: String,
    },
    /// The header was not made with the key that it holds.
    #[error(
        "vault on {partition}: its header was not made with its own key: the partition was replaced or mixed up; it is \
         not mounted"
    )]
    NotOurs {
        /// Its path.
        partition: String,
    },
    /// The key from escrow is another vault's.
    #[error("vault on {partition}: the key from escrow is not this vault's; it stays closed, and nothing is changed")]
    WrongKey {
        /// Its path.
        partition: String,
    },
    /// The key does not come out.
    #[error("vault on {partition}: {source}")]
    Key {
        /// Its path.
        partition: String,
        /// Why.
        source: IdentityError,
    },
    /// The kernel refused a step.
    #[error("vault on {partition}: {step}: {reason}")]
    Step {
        /// Its path.
        partition: String,
        /// Which step.
        step: &'static str,
        /// Why.
        reason: String,
    },
}

impl VaultError {
    /// True when the sealed key is there and this boot is not one that it opens to: then the key that the controller keeps may.
    /// Not so when the image is older than the committed epoch, and not when only the moment has passed.
    pub fn may_be_recovered(&self) -> bool {
        matches!(
            self,
            Self::Key { source: IdentityError::Tpm(TpmError::StaysSealed { condition: Condition::Boot, .. }), .. }
        )
    }
}

/// Opens the vault, or makes it when there is none. Blocks for as long as the TPM and the disk take.
///
/// # Errors
/// [`VaultError`]. A finished vault is never overwritten.
pub fn open_or_create(options: &VaultOptions, identity: &dyn Identity) -> Result<Vault, VaultError> {
    open_or_create_on(options, identity, &linux::Linux)
}

/// Opens a vault whose sealed key no longer opens with the key that the controller kept in escrow, and seals that key anew
/// for this boot's policy, if it can ([`Vault::recovered`]).
///
/// # Errors
/// [`VaultError::WrongKey`] when it is another vault's key.
pub fn recover(options: &VaultOptions, identity: &dyn Identity, key: VaultKey) -> Result<Vault, VaultError> {
    recover_on(options, identity, key, &linux::Linux)
}

/// Makes the data unreadable at once: the sealed key is overwritten, then the blocks are discarded where the disk can.
///
/// # Errors
/// [`VaultError::Partition`].
pub fn erase(partition: &Path) -> Result<(), VaultError> {
    let file = open_partition(partition)?;
    header::wipe(&file).map_err(partition_error(partition, "overwrite the header"))?;
    // Thorough, but not needed: without the key the rest is noise.
    linux::discard(&file);
    Ok(())
}

/// [`open_or_create`] over any platform, for tests.
///
/// # Errors
/// As [`open_or_create`].
pub fn open_or_create_on(
    options: &VaultOptions,
    identity: &dyn Identity,
    platform: &dyn Platform,
) -> Result<Vault, VaultError> {
    let ctx = Ctx { options, identity, platform, file: open_partition(&options.partition)? };
    match header::read(&ctx.file).map_err(ctx.io("read the header"))? {
        Found::Nothing => ctx.create(),
        Found::Damaged(reason) => Err(VaultError::Damaged { partition: ctx.name(), reason }),
        Found::Header(parsed) => ctx.open(&parsed, None),
    }
}

/// [`recover`] over any platform, for tests.
///
/// # Errors
/// As [`recover`].
pub fn recover_on(
    options: &VaultOptions,
    identity: &dyn Identity,
    key: VaultKey,
    platform: &dyn Platform,
) -> Result<Vault, VaultError> {
    let ctx = Ctx { options, identity, platform, file: open_partition(&options.partition)? };
    match header::read(&ctx.file).map_err(ctx.io("read the header"))? {
        Found::Header(parsed) => ctx.open(&parsed, Some(key)),
        Found::Nothing => Err(VaultError::Damaged { partition: ctx.name(), reason: "there is no header".into() }),
        Found::Damaged(reason) => Err(VaultError::Damaged { partition: ctx.name(), reason }),
    }
}

struct Ctx<'a> {
    options: &'a VaultOptions,
    identity: &'a dyn Identity,
    platform: &'a dyn Platform,
    file: File,
}

impl Ctx<'_> {
    fn create(&self) -> Result<Vault, VaultError> {
        let mount_point = &self.options.mount_point;
        // What an agent that died half way through may have left in this boot.
        self.platform.tear_down(DEVICE_NAME, mount_point).map_err(self.step("remove a half-made volume"))?;
        self.check_size()?;

        let key = VaultKey::random().map_err(self.key())?;
        let sealed = self.identity.seal(&key).map_err(self.key())?;
        let mut uuid = [0; 16];
        crate::files::random(&mut uuid).map_err(self.key())?;
        let header = Header { generation: 1, uuid, sealed };

        let device = self.activate(&key)?;
        ext4::write_seed(&self.options.seed, &device)
            .map_err(|e| self.step("write the empty file system")(e.to_string()))?;
        self.platform.mount(&device, mount_point).map_err(self.step("mount"))?;
        self.platform.grow(&device, mount_point).map_err(self.step("grow the file system"))?;
        self.seal_behind(&header, &key)?;
        header::write(&self.file, &header, &key).map_err(self.io("write the header"))?;
        Ok(Vault { created: true, key: Some(key), ..self.vault(&header.sealed) })
    }

    fn open(&self, parsed: &Parsed, escrowed: Option<VaultKey>) -> Result<Vault, VaultError> {
        let header = &parsed.header;
        if let Some(device) = self.platform.active(DEVICE_NAME).map_err(self.step("look for the open volume"))? {
            // Opened earlier in this boot, and `vault-open` extended: only the mount may be missing.
            self.mount_and_grow(&device)?;
            return Ok(self.vault(&header.sealed));
        }
        let (key, sealed, recovered) = match escrowed {
            None => {
                let key = self.identity.unseal(&header.sealed).map_err(self.key())?;
                if !parsed.is_made_with(&key) {
                    return Err(VaultError::NotOurs { partition: self.name() });
                }
                (key, header.sealed.clone(), None)
            }
            Some(key) if !parsed.is_made_with(&key) => {
                return Err(VaultError::WrongKey { partition: self.name() });
            }
            Some(key) => {
                let (sealed, recovered) = self.reseal(header, &key)?;
                (key, sealed, Some(recovered))
            }
        };
        self.seal_behind(header, &key)?;
        let device = self.activate(&key)?;
        self.mount_and_grow(&device)?;
        Ok(Vault { key: Some(key), recovered, ..self.vault(&sealed) })
    }

    /// Seals the key of a recovered vault to this boot, unless that would keep it less well than it is kept now.
    fn reseal(&self, header: &Header, key: &VaultKey) -> Result<(SealedKey, Recovered), VaultError> {
        let why_not = match self.identity.seal(key) {
            Ok(sealed @ SealedKey::Tpm { .. }) => {
                let renewed = Header { generation: header.generation + 1, uuid: header.uuid, sealed: sealed.clone() };
                header::write(&self.file, &renewed, key).map_err(self.io("write the header"))?;
                return Ok((sealed, Recovered::Resealed));
            }
            Ok(SealedKey::Clear(_)) => self.identity.strength().weaknesses.join("; "),
            Err(e) => e.to_string(),
        };
        Ok((header.sealed.clone(), Recovered::LeftAsItWas(why_not)))
    }

    /// Names the volume in PCR 15 and closes the door behind us.
    fn seal_behind(&self, header: &Header, key: &VaultKey) -> Result<(), VaultError> {
        self.identity.extend(PCR_VOLUME, &header.volume_id(key)).map_err(self.key())?;
        self.identity.extend_phase(holdfast_format::pcr::phase::VAULT_OPEN).map_err(self.key())
    }

    fn mount_and_grow(&self, device: &Path) -> Result<(), VaultError> {
        let mount_point = &self.options.mount_point;
        if !self.platform.is_mounted(device, mount_point) {
            self.platform.mount(device, mount_point).map_err(self.step("mount"))?;
        }
        self.platform.grow(device, mount_point).map_err(self.step("grow the file system"))
    }

    fn activate(&self, key: &VaultKey) -> Result<PathBuf, VaultError> {
        self.platform
            .activate(DEVICE_NAME, &self.options.partition, header::DATA_OFFSET, key)
            .map_err(self.step("open the encrypted device"))
    }

    fn check_size(&self) -> Result<(), VaultError> {
        use std::io::Seek as _;
        let found = (&self.file).seek(std::io::SeekFrom::End(0)).map_err(self.io("read its size"))?;
        let seed = std::fs::metadata(&self.options.seed)
            .map_err(|e| self.step("read the file system seed")(format!("{}: {e}", self.options.seed.display())))?
            .len();
        let expected = header::DATA_OFFSET + seed;
        if found < expected {
            return Err(VaultError::TooSmall { partition: self.name(), expected, found });
        }
        Ok(())
    }

    /// The open vault as it is found.
    fn vault(&self, sealed: &SealedKey) -> Vault {
        Vault {
            mount_point: self.options.mount_point.clone(),
            created: false,
            protection: match sealed {
                SealedKey::Tpm { epoch_bound: true, .. } => KeyProtection::SealedWithEpoch,
                SealedKey::Tpm { .. } => KeyProtection::Sealed,
                SealedKey::Clear(_) => KeyProtection::Clear,
            },
            key: None,
            recovered: None,
        }
    }

    fn name(&self) -> String {
        self.options.partition.display().to_string()
    }

    fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> VaultError {
        partition_error(&self.options.partition, action)
    }

    fn key(&self) -> impl FnOnce(IdentityError) -> VaultError {
        let partition = self.name();
        move |source| VaultError::Key { partition, source }
    }

    fn step(&self, step: &'static str) -> impl FnOnce(String) -> VaultError {
        let partition = self.name();
        move |reason| VaultError::Step { partition, step, reason }
    }
}

fn open_partition(partition: &Path) -> Result<File, VaultError> {
    OpenOptions::new().read(true).write(true).open(partition).map_err(partition_error(partition, "open"))
}

fn partition_error(partition: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> VaultError {
    let partition = partition.display().to_string();
    move |source| VaultError::Partition { partition, action, source }
}

#[cfg(test)]
mod tests;
