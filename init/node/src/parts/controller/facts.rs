//! What the controller part tells others.

use holdfast_model::net::Tried;
use holdfast_model::observed::AttestationState;
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

/// News: what an exchange with the controller brought over each adapter that it was tried over (the client's `take_tried`, after
/// each poll, whatever came of it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Polled(pub Vec<Tried>);

/// The stored config was looked for. Published once it is known whether one comes; it comes as
/// [`Event::Config`](crate::part::Event::Config) no later than in the next turn. Until then, networks stay as they were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// There is one.
    pub found: bool,
}

/// How attestation stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attestation {
    /// State.
    pub state: AttestationState,
    /// Why the last pass failed; empty when it did not.
    pub error: String,
}
