//! What the device part tells others.

/// Why no app may run (maintenance, shutdown, a reboot under way), in words; `None` when apps may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held(pub Option<String>);
