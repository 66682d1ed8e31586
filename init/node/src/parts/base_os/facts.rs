//! What the base OS part tells others.

use holdfast_model::observed::BootReason;

/// An update is under way, or a trial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Busy(pub bool);

/// This boot is a trial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InTrial(pub bool);

/// A reboot that is due, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebootDue(pub Option<(BootReason, String)>);
