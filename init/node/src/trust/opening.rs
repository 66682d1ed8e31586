//! Opening the identity and the vault, or learning why the vault stays closed.

use super::grow::grow_data;
use super::key_escrow::from_escrow;
use crate::boot::{Boot, Paths};
use anyhow::{Context, Result};
use holdfast_controller_client::identity::EscrowKey;
use holdfast_identity::vault::{VaultOptions, open_or_create, recover};
use holdfast_identity::{Identity, Options, Recovered, Vault};
use std::sync::Arc;

/// What came of opening the vault.
pub enum Opening {
    /// It is open.
    Open(Opened),
    /// This boot cannot unseal it; see [`crate::parts::vault`].
    Locked(Locked),
}

/// The identity and the open vault.
pub struct Opened {
    /// The keys.
    pub identity: Arc<dyn Identity>,
    /// The vault.
    pub vault: Vault,
    /// What is to be reported about how it was opened; empty when there is nothing to say.
    pub note: String,
}

/// The identity, and a vault that stays closed to this boot.
pub struct Locked {
    /// The keys.
    pub identity: Arc<dyn Identity>,
    /// Why it stays closed.
    pub why: String,
    options: VaultOptions,
}

/// File below `/run/holdfast` with the note of [`Opened`], for an agent that is restarted in this boot and finds the vault open.
const NOTE: &str = "vault-note";

impl Locked {
    /// Opens the vault with a key from escrow, and seals it to this boot.
    ///
    /// # Errors
    /// When the key is none of this device's, or not this vault's: nothing is changed then.
    pub fn open_with(&self, key: &EscrowKey) -> Result<Vault> {
        Ok(recover(&self.options, self.identity.as_ref(), from_escrow(self.identity.as_ref(), key)?)?)
    }

    /// The open vault with the note of how it was opened.
    #[must_use]
    pub fn opened(&self, vault: Vault, paths: &Paths) -> Opened {
        let how = match &vault.recovered {
            Some(Recovered::LeftAsItWas(reason)) => {
                format!("it was opened with the key from escrow, and must be again at the next boot: {reason}")
            }
            _ => "it was opened with the key from escrow and sealed anew to the running image".to_owned(),
        };
        let note = format!("{}; {how}", self.why);
        if let Err(e) = std::fs::write(paths.run.join(NOTE), &note) {
            eprintln!("{NOTE}: {e}");
        }
        Opened { identity: self.identity.clone(), vault, note }
    }
}

/// Opens the identity and the vault.
///
/// # Errors
/// When the vault does not open and escrow cannot help: the text says which step and what was expected.
pub fn open(boot: &Boot, paths: &Paths) -> Result<Opening> {
    let options = Options { tcti: None, boot_dir: paths.run.join("boot"), software_dir: paths.data("identity") };
    let identity = holdfast_identity::open(&options);
    grow_data(&boot.facts.partitions.disk, &boot.facts.partitions.data).context("growing DATA to the disk's end")?;
    let options = VaultOptions {
        partition: (&boot.facts.partitions.data).into(),
        mount_point: paths.data.clone(),
        seed: paths.seed(),
    };
    match open_or_create(&options, identity.as_ref()) {
        Ok(vault) => {
            let note = std::fs::read_to_string(paths.run.join(NOTE)).unwrap_or_default();
            Ok(Opening::Open(Opened { identity, vault, note }))
        }
        Err(e) if e.may_be_recovered() => Ok(Opening::Locked(Locked { identity, why: e.to_string(), options })),
        Err(e) => Err(e.into()),
    }
}
