//! Carrying effects out, in order, stopping at the first that fails.

use crate::record::Record;
use crate::step::{Effect, Event, Refused, step};
use crate::store::{Store, StoreError};
use holdfast_model::observed::BootReason;
use holdfast_model::slot::Slot;

/// What effects act on besides STATE. [`crate::firmware::EfiBoot`] is the real one.
pub trait Firmware {
    /// Its errors.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes sure that both slots have a boot entry.
    ///
    /// # Errors
    /// Its own.
    fn ensure_entries(&mut self) -> Result<(), Self::Error>;

    /// Boot order = `first`, the other slot, then what else was there.
    ///
    /// # Errors
    /// Its own.
    fn set_boot_order(&mut self, first: Slot) -> Result<(), Self::Error>;

    /// Boots `slot` next time, once.
    ///
    /// # Errors
    /// Its own.
    fn set_boot_next(&mut self, slot: Slot) -> Result<(), Self::Error>;
}

/// A reboot that is now due; the caller stops what runs and restarts the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebootDue {
    /// Class.
    pub reason: BootReason,
    /// Text.
    pub text: String,
}

/// Why an event was not carried out to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E: std::error::Error + 'static> {
    /// The rules say no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// STATE.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Boot variables.
    #[error("boot variables: {0}")]
    Firmware(E),
    /// The TPM.
    #[error("cannot commit security epoch {epoch} to the TPM: {cause}")]
    Epoch {
        /// The epoch.
        epoch: u32,
        /// Why.
        cause: String,
    },
}

/// Sends `event` through [`step`] and carries the effects out; `record` becomes what was last written. After an error
/// it is what STATE holds, and sending the event again (or the next boot) goes on from there.
///
/// `commit_epoch` sets the epoch's bit in the TPM; PID 1, which never commits, passes [`no_epoch`].
///
/// # Errors
/// [`RunError`].
pub fn run<F: Firmware>(
    record: &mut Record,
    event: Event,
    store: &mut (impl Store + ?Sized),
    firmware: &mut F,
    commit_epoch: &mut dyn FnMut(u32) -> Result<(), String>,
) -> Result<Option<RebootDue>, RunError<F::Error>> {
    let (_, effects) = step(record, event)?;
    for effect in effects {
        match effect {
            Effect::WriteRecord(r) => {
                if r != *record || Record::load(store).ok().flatten().as_ref() != Some(&r) {
                    r.save(store)?;
                }
                *record = r;
            }
            Effect::EnsureEntries => firmware.ensure_entries().map_err(RunError::Firmware)?,
            Effect::SetBootOrder(first) => firmware.set_boot_order(first).map_err(RunError::Firmware)?,
            Effect::SetBootNext(slot) => firmware.set_boot_next(slot).map_err(RunError::Firmware)?,
            Effect::CommitEpoch(epoch) => {
                commit_epoch(epoch).map_err(|cause| RunError::Epoch { epoch, cause })?;
            }
            Effect::Reboot { reason, text } => return Ok(Some(RebootDue { reason, text })),
        }
    }
    Ok(None)
}

/// For callers that cannot reach the TPM.
///
/// # Errors
/// Always.
pub fn no_epoch(_: u32) -> Result<(), String> {
    Err("this program does not reach the TPM".into())
}
