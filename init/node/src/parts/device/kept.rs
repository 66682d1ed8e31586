//! What the part keeps in its file.

use holdfast_model::observed::RebootRecord;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The part's file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Reboot counter acted on; none before the first config.
    pub reboot_counter: Option<u32>,
    /// Shutdown counter acted on, as above.
    pub shutdown_counter: Option<u32>,
    /// The boot in which all apps were shut down by order: none starts again before the next one.
    pub shut_down_in_boot: Option<u64>,
    /// A reboot ordered by the agent, taken over by the first agent of the next boot.
    pub ordered_reboot: Option<RebootRecord>,
    /// The boot that is counted so, and why the one before it ended: a restarted agent says the same.
    pub last_reboot: Option<(u64, RebootRecord)>,
    /// Debugging orders that were followed, by property; see [`crate::debug`].
    pub debug: BTreeMap<String, String>,
}
