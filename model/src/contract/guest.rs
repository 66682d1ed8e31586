//! What a container guest's init is told: the `config` disk, JSON padded with NUL bytes.

use serde::{Deserialize, Serialize};

use super::{Document, Version};

/// The app as the guest's init runs it (OCI image config merged with the app instance).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppDocument {
    /// Version of this shape.
    pub version: Version<1>,
    /// Host name.
    pub hostname: String,
    /// Program and arguments: `Entrypoint` then `Cmd`.
    pub argv: Vec<String>,
    /// `NAME=value`, image's first, user data's last (later wins).
    pub env: Vec<String>,
    /// OCI `User`: `user`, `uid`, `user:group`, `uid:gid`; empty = root.
    pub user: String,
    /// Working directory; empty = `/`.
    pub cwd: String,
    /// Signal that asks the app to end, a name or number; empty = SIGTERM.
    pub stop_signal: String,
    /// Seconds between that signal and SIGKILL.
    pub grace_seconds: u32,
    /// Volumes: disk serial (`vol0`, ...) and mount point.
    pub mounts: Vec<Mount>,
}

impl Document for AppDocument {
    const KIND: &'static str = "app document";
    const VERSION: u32 = 1;
    /// Kubernetes-style environments with certificates stay far below.
    const MAX_BYTES: usize = 1 << 20;
}

/// A volume in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// virtio-blk serial.
    pub disk: String,
    /// Absolute path.
    pub at: String,
    /// Read-only.
    pub read_only: bool,
}
