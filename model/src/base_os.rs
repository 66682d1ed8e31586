//! The base OS: slots, what is wanted, how far it is.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One of the two OS slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Slot {
    /// ESP-A and OS-A.
    A,
    /// ESP-B and OS-B.
    B,
}

impl Slot {
    /// The other slot.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `"A"` or `"B"`, as in partition names.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.letter())
    }
}

/// The base OS that the controller wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseOs {
    /// The content tree holding the update payload.
    pub content: Uuid,
    /// Switch to it.
    pub activate: bool,
    /// The version it must be.
    pub version: String,
    /// A failed version is tried again when this grows.
    pub retry_counter: u32,
}
