//! Slots: the two places a base OS image can live, and what the device says about them.
//!
//! The words are those of EVE's `ZInfoDevSW`; `attest/api` turns them into wire numbers.

use crate::observed::Tens;
use crate::trouble::{Object, ObjectKind, Trouble};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One of the two base OS slots. Slot `A` is ESP-A + OS-A, slot `B` is ESP-B + OS-B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Slot {
    /// ESP-A and OS-A, where flashing puts the first image.
    A,
    /// ESP-B and OS-B.
    B,
}

impl Slot {
    /// Both slots, A first.
    pub const ALL: [Slot; 2] = [Slot::A, Slot::B];

    /// The slot that this one is not.
    #[must_use]
    pub const fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Slot::A => "A",
            Slot::B => "B",
        })
    }
}

/// State of a slot as a controller sees it (EVE `partitionState`: the lower-case words of `as_str`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionState {
    /// Committed: what boots by itself.
    Active,
    /// Under trial now, or (on the slot that is not running) tried and failed.
    InProgress,
    /// Being written, or written and waiting for its trial.
    Updating,
    /// Neither; it may hold an older good image.
    Unused,
}

impl PartitionState {
    /// EVE's word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            PartitionState::Active => "active",
            PartitionState::InProgress => "inprogress",
            PartitionState::Updating => "updating",
            PartitionState::Unused => "unused",
        }
    }
}

/// Overall state of the image in a slot (EVE `BaseOsStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseOsStatus {
    /// Nothing to say.
    None,
    /// The payload is being fetched.
    Downloading,
    /// The payload is complete and verified.
    DownloadDone,
    /// Being installed, rebooted into, or tested: see [`BaseOsSubStatus`].
    Updating,
    /// Committed.
    Updated,
    /// Running again after another version failed.
    Fallback,
    /// Tried and failed.
    Failed,
}

/// Finer state while [`BaseOsStatus::Updating`] (EVE `BaseOsSubStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseOsSubStatus {
    /// Nothing to say.
    None,
    /// Being written to the other slot.
    Installing,
    /// Written; the reboot into the trial is due or under way.
    Rebooting,
    /// Trial under way; progress counts the seconds left.
    Testing,
}

/// What is said about one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Which slot.
    pub slot: Slot,
    /// The system runs from it now.
    pub running: bool,
    /// Version text of its image; empty when unknown or unusable.
    pub version: String,
    /// State of the partition.
    pub partition_state: PartitionState,
    /// Overall state.
    pub status: BaseOsStatus,
    /// Finer state.
    pub sub_status: BaseOsSubStatus,
    /// Seconds left of the trial while testing, percent that came while [`BaseOsStatus::Downloading`], else 0.
    pub sub_status_progress: Tens,
    /// Why it failed or what is wrong; empty when all is well.
    pub reason: String,
}

impl SlotStatus {
    /// What is wrong with it: an error when its image failed, a warning while the slot serves.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        let trouble = Trouble::from_text(Object::new(ObjectKind::BaseOs, self.slot, &self.version), &self.reason)?;
        Some(if self.status == BaseOsStatus::Failed { trouble } else { Trouble::warning(trouble.on, trouble.text) })
    }
}
