//! The virtio console and the serial port.

use serde::{Deserialize, Serialize};

use super::{FdList, FileRef};

/// Name of the console port on which a guest says how it ends: JSON lines of [`End`](crate::contract::end::End), of which
/// the last one counts, with a class that begins with `guest-`. The VMM takes it as the reason of a power-off.
pub const GUEST_END_PORT: &str = "holdfast.end";

/// The virtio console: `hvc0`, and byte streams with names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where the guest's output goes; stdout when absent.
    #[serde(default = "stdout")]
    pub output: FileRef,
    /// Where its input comes from; nothing when absent. May be the same as `output`: a stream socket, a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<FileRef>,
    /// Size of the window at start.
    #[serde(default)]
    pub size: WindowSize,
    /// Further ports, in the order of the guest's `/dev/vport0p1`, `/dev/vport0p2`, ..; at most 15.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortConfig>,
}

/// A port of the virtio console. Without files it is there for those who attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// Name that the guest sees and that clients attach to, as `org.example.agent`: 1..=64 printable ASCII characters
    /// without `/`; unique, and neither `console` nor `serial`.
    pub name: String,
    /// Where the guest's output goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<FileRef>,
    /// Where its input comes from. May be the same as `output`.
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
    /// Where its input comes from; nothing when absent. May be the same as `output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<FileRef>,
}

/// Size of a terminal window, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Default for WindowSize {
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

impl ConsoleConfig {
    /// Output to `output`, no input, no further ports.
    pub fn to(output: FileRef) -> Self {
        Self { output, input: None, size: WindowSize::default(), ports: Vec::new() }
    }

    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        list_ends(name, Some(&self.output), self.input.as_ref(), fds);
        for (n, port) in self.ports.iter().enumerate() {
            list_ends(&format!("{name}.ports[{n}]"), port.output.as_ref(), port.input.as_ref(), fds);
        }
    }
}

impl SerialConfig {
    /// Output to `output`, no input.
    pub fn to(output: FileRef) -> Self {
        Self { output, input: None }
    }

    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        list_ends(name, Some(&self.output), self.input.as_ref(), fds);
    }
}

/// One descriptor may be both ends of one console.
fn list_ends(name: &str, output: Option<&FileRef>, input: Option<&FileRef>, fds: &mut FdList) {
    fds.add(&format!("{name}.output"), output);
    fds.add(&format!("{name}.input"), input.filter(|input| Some(*input) != output));
}

fn stdout() -> FileRef {
    FileRef::Fd(1)
}
