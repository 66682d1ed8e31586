//! The socket device: its address.

use holdfast_model::contract::vm::{MAX_CID, MIN_CID, VsockConfig};

use super::{ConfigError, range};

/// Checks the socket device, called `name` in messages.
pub(super) fn validate(vsock: &VsockConfig, name: &str) -> Result<(), ConfigError> {
    let expected = format!("{MIN_CID} to {MAX_CID}");
    range(&format!("{name}.cid"), &vsock.cid, &expected, (MIN_CID..=MAX_CID).contains(&vsock.cid))
}
