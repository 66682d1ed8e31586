//! The base OS that is wanted. What is there and how far it is: [`crate::slot`].

use serde::{Deserialize, Serialize};
use uuid::Uuid;

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
