//! The memory balloon.

use serde::{Deserialize, Serialize};

use super::yes;

/// How memory that the guest does not need comes back to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// The guest names what it has freed, by itself.
    #[serde(default = "yes")]
    pub free_page_reporting: bool,
    /// The guest may take memory back from the balloon rather than end a program.
    #[serde(default = "yes")]
    pub deflate_on_oom: bool,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self { free_page_reporting: true, deflate_on_oom: true }
    }
}
