//! The socket device.

use serde::{Deserialize, Serialize};

use super::{ConfigError, FdList, FileRef, range};

/// Least context id of a guest: below it are the hypervisor (0), the loopback (1) and the host (2).
pub const MIN_CID: u32 = 3;
/// Greatest context id of a guest: above it is "any".
pub const MAX_CID: u32 = u32::MAX - 1;

/// virtio sockets: streams between guest and host without a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address, [`MIN_CID`]..=[`MAX_CID`]; no other VM of this host may have it.
    pub cid: u32,
    /// `/dev/vhost-vsock`.
    pub vhost: FileRef,
}

impl VsockConfig {
    pub(super) fn validate(&self, name: &str) -> Result<(), ConfigError> {
        let expected = format!("{MIN_CID} to {MAX_CID}");
        range(&format!("{name}.cid"), &self.cid, &expected, (MIN_CID..=MAX_CID).contains(&self.cid))
    }

    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        fds.add(&format!("{name}.vhost"), Some(&self.vhost));
    }
}
