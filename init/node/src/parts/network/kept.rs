//! What the part keeps in its file.

use holdfast_model::net::Layers;
use holdfast_plan::Allocations;
use serde::{Deserialize, Serialize};

/// The part's file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Addresses given to apps.
    pub addresses: Allocations,
    /// The device's own network by the last config that led to the controller.
    pub worked: Option<Layers>,
}
