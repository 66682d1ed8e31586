//! What the device part tells others.

use holdfast_model::observed::RebootRecord;

/// Why no app may run (maintenance, shutdown, a reboot under way), in words; `None` when apps may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held(pub Option<String>);

/// The reboot that is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GoingDown(pub Option<RebootRecord>);
