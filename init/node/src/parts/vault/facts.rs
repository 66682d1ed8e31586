//! What the vault part tells others.

/// Why the vault is closed, in words; `None` once it is open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Closed(pub Option<String>);
