//! What the controller part tells others.

use std::time::Duration;
use uuid::Uuid;

/// How the controller is reached. Times are monotonic, since boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact {
    /// When it last answered with a config, or that the present one is current.
    pub last: Option<Duration>,
    /// The last poll or attestation that failed.
    pub last_failure: Option<Failure>,
    /// This device's id at the controller, once known.
    pub device: Option<Uuid>,
}

/// A poll that brought no config and no word that the present one is current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: Duration,
    /// By the remote side's fault (503, connection refused): a sign of life.
    pub temporary: bool,
}
