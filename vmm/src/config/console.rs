//! The virtio console and the serial port.

use serde::{Deserialize, Serialize};

use super::{FdList, FileRef};

/// The virtio console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where the guest's output goes; stdout when absent.
    #[serde(default = "stdout")]
    pub output: FileRef,
    /// Where its input comes from; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<FileRef>,
}

/// The serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// Where the guest's output goes; stdout when absent.
    #[serde(default = "stdout")]
    pub output: FileRef,
}

impl ConsoleConfig {
    /// Output to `output`, no input.
    pub fn to(output: FileRef) -> Self {
        Self { output, input: None }
    }

    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        fds.add(&format!("{name}.output"), Some(&self.output));
        fds.add(&format!("{name}.input"), self.input.as_ref());
    }
}

impl SerialConfig {
    /// Output to `output`.
    pub fn to(output: FileRef) -> Self {
        Self { output }
    }

    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        fds.add(&format!("{name}.output"), Some(&self.output));
    }
}

fn stdout() -> FileRef {
    FileRef::Fd(1)
}
