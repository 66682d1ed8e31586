//! The slot record: what the machine remembers about its two images.
//!
//! It is JSON, because an older image must be able to read what a newer one wrote: fields may be added with a default,
//! never removed or given another meaning, and no [`Phase`] may be added that an older image would have to act on.

use crate::store::{RECORD, Store, StoreError};
use holdfast_model::slot::Slot;
use serde::{Deserialize, Serialize};

/// An image in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Version text.
    pub version: String,
    /// Security epoch.
    pub epoch: u32,
}

/// How far an update is. Its target is always the slot that is not committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing under way.
    Stable,
    /// The other slot is being written; what is in it is not to be booted.
    Dirty(Image),
    /// The other slot was written and read back. `forced`: this is a return to an older good image, which goes on by
    /// itself after a power cut.
    Staged {
        /// What it holds.
        image: Image,
        /// Started by the fallback counter.
        #[serde(default)]
        forced: bool,
    },
    /// BootNext points at the other slot.
    Armed(Image),
    /// The other slot has started and has to prove itself.
    Trial {
        /// What it holds.
        image: Image,
        /// Why it gave up, in its own words.
        #[serde(default)]
        reason: Option<String>,
    },
    /// It has proved itself; boot order and epoch are being changed.
    Committing(Image),
}

/// A version that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The version.
    pub version: String,
    /// Why, as both sides saw it.
    pub reason: String,
    /// It was booted or ought to have been: not tried again until `retry_update` changes. Otherwise only writing it
    /// failed, which may be repeated.
    #[serde(default)]
    pub tried: bool,
}

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The slot that boots by itself.
    pub committed: Slot,
    /// Good image in slot A.
    #[serde(default)]
    pub image_a: Option<Image>,
    /// Good image in slot B.
    #[serde(default)]
    pub image_b: Option<Image>,
    /// Highest epoch ever committed.
    #[serde(default)]
    pub committed_epoch: u32,
    /// How far an update is.
    pub phase: Phase,
    /// The last failure.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// Last `retry_update` counter that was seen.
    #[serde(default)]
    pub retry_counter: u32,
    /// Last `force.fallback.counter` that was seen; none before the first.
    #[serde(default)]
    pub fallback_counter: Option<u32>,
    /// Reboots made in a row to get firmware to the right slot.
    #[serde(default)]
    pub repairs: u32,
}

impl Record {
    /// The record of a machine that has none: what runs is what is committed.
    #[must_use]
    pub fn initial(running: Slot, image: Image) -> Record {
        let mut r = Record {
            committed: running,
            image_a: None,
            image_b: None,
            committed_epoch: image.epoch,
            phase: Phase::Stable,
            failure: None,
            retry_counter: 0,
            fallback_counter: None,
            repairs: 0,
        };
        *r.image_mut(running) = Some(image);
        r
    }

    /// The slot that updates go to.
    #[must_use]
    pub fn target(&self) -> Slot {
        self.committed.other()
    }

    /// The good image in a slot, if one is known.
    #[must_use]
    pub fn image(&self, slot: Slot) -> Option<&Image> {
        match slot {
            Slot::A => self.image_a.as_ref(),
            Slot::B => self.image_b.as_ref(),
        }
    }

    pub(crate) fn image_mut(&mut self, slot: Slot) -> &mut Option<Image> {
        match slot {
            Slot::A => &mut self.image_a,
            Slot::B => &mut self.image_b,
        }
    }

    /// Reads the record from STATE; `None` when there is none that is intact.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load(store: &(impl Store + ?Sized)) -> Result<Option<Record>, StoreError> {
        let Some(bytes) = RECORD.read(store)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| RECORD.contents_error(e))
    }

    /// Writes the record to STATE.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save(&self, store: &mut (impl Store + ?Sized)) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).map_err(|e| RECORD.contents_error(e))?;
        RECORD.write(store, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests_support::Memory;

    #[test]
    fn a_record_round_trips_through_state() {
        let mut store = Memory::new(vec![0; 3 << 20]);
        assert_eq!(Record::load(&store).unwrap(), None);
        let mut r = Record::initial(Slot::B, Image { version: "1".into(), epoch: 2 });
        r.phase = Phase::Trial { image: Image { version: "2".into(), epoch: 3 }, reason: Some("x".into()) };
        r.save(&mut store).unwrap();
        assert_eq!(Record::load(&store).unwrap(), Some(r));
    }

    #[test]
    fn a_record_of_a_later_image_is_understood() {
        let json = br#"{"committed":"A","phase":{"staged":{"image":{"version":"2","epoch":0,"later":1}}},"later":[]}"#;
        let r: Record = serde_json::from_slice(json).unwrap();
        assert!(matches!(r.phase, Phase::Staged { forced: false, .. }));
    }
}
