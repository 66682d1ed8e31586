//! The control socket: `SOCK_SEQPACKET`, one JSON message in each packet, one reply to each request.
//!
//! The VM holds the *listening* socket, so an agent that restarts connects again. [`ControlClient`] is the agent's end.
//!
//! Descriptors go one way only: to a client that attaches to a console. The VM makes that socket pair itself, so it never
//! holds a file of a stranger's choice; what a client sends along with a packet, the kernel closes unseen.

mod client;
mod rights;
mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::client::ControlClient;
pub use self::server::ControlServer;
use crate::terminal::{ConsoleStats, WindowSize};
use crate::vcpu::exits::Hot;
use crate::virtio::DeviceStats;
use crate::virtio::balloon::MemoryStats;

/// Longest message, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Connections served at once; more wait in the socket's backlog.
pub const MAX_CONNECTIONS: usize = 4;
/// Longest accepted `stop` deadline: one day.
pub const MAX_STOP_MS: u64 = 86_400_000;

/// What an agent asks of a VM. In JSON: `{"do": "stop", "deadline_ms": 10000}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Are you there?
    Ping,
    /// Halt vCPUs and devices. Answered when nothing moves.
    Pause,
    /// Undo a pause.
    Resume,
    /// Press the ACPI power button: the guest is asked to shut down.
    PowerButton,
    /// Press the power button, and end the VM by force at the deadline. Answered at once.
    Stop {
        /// Milliseconds until force, at most [`MAX_STOP_MS`].
        deadline_ms: u64,
    },
    /// Have the guest give up memory: the balloon grows or shrinks to this size. Answered at once; how far the guest has
    /// followed is in the counters.
    Balloon {
        /// MiB taken from the guest, 0 to give all back.
        target_mib: u32,
    },
    /// Give the guest another vsock address. Its open connections end; listening sockets stay.
    VsockCid {
        /// Context id, from 3 on.
        cid: u32,
    },
    /// Counters.
    Stats,
    /// A stream to a console: a connected `SOCK_STREAM` socket comes with the reply (`SCM_RIGHTS`). What the guest writes
    /// can be read from it, what is written to it the guest reads; closing it detaches.
    AttachConsole {
        /// `console` (hvc0), the name of a port, or `serial`; the first that there is when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        console: Option<String>,
        /// Begin with the output that is kept, at most the last 64 KiB.
        #[serde(default = "yes")]
        replay: bool,
    },
    /// The window of the one who looks at a console has this size.
    ResizeConsole {
        /// As in [`Request::AttachConsole`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        console: Option<String>,
        /// The size.
        size: WindowSize,
    },
}

/// The answer. In JSON: `{"is": "done"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// To [`Request::Ping`].
    Pong {
        /// Version of this program.
        version: String,
        /// What the VM does.
        state: RunState,
    },
    /// It is done (or begun, for a stop).
    Done,
    /// To [`Request::Stats`].
    Stats(Box<Stats>),
    /// To [`Request::AttachConsole`]; the stream comes in the same packet.
    Attached {
        /// Name of the console.
        console: String,
        /// Bytes of earlier output that come first.
        replayed: u64,
    },
    /// It was not done.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What a VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Guest code runs.
    Running,
    /// Halted by `pause`.
    Paused,
    /// Asked to stop, deadline running.
    Stopping,
}

/// Counters of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// What it does.
    pub state: RunState,
    /// Time since the device thread started.
    pub uptime_ms: u64,
    /// CPU time of this process before the first guest instruction.
    #[serde(default)]
    pub setup_cpu_us: u64,
    /// Each vCPU's.
    pub vcpus: Vec<VcpuStats>,
    /// Each device's, by name, in PCI order.
    pub devices: Vec<(String, DeviceStats)>,
    /// The balloon's figures and the guest's of itself; absent without a balloon, and before its driver has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStats>,
    /// Each console's, by name.
    #[serde(default)]
    pub consoles: Vec<(String, ConsoleStats)>,
}

/// Counters of one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Port accesses that reached this process.
    pub pio_exits: u64,
    /// Memory-mapped accesses that reached this process.
    pub mmio_exits: u64,
    /// Processor time of its thread, in the guest and for its exits.
    #[serde(default)]
    pub cpu_ns: u64,
    /// Other returns to this process: pause, stop, interrupt windows.
    #[serde(default)]
    pub other_exits: u64,
    /// Every exit, most of them answered in the kernel; 0 where the kernel does not tell.
    #[serde(default)]
    pub all_exits: u64,
    /// Of those, the guest's `HLT`: how often this vCPU went idle.
    #[serde(default)]
    pub halt_exits: u64,
    /// Ports and addresses with the most exits, hottest first.
    #[serde(default)]
    pub hottest: Vec<Hot>,
}

/// The socket failed.
#[derive(Debug, Error)]
pub enum ControlError {
    /// A system call failed.
    #[error("control socket {path}: cannot {what}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// The VM has ended: it closed the connection.
    #[error("control socket {path}: the VM has closed it")]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// The other end does not speak our language.
    #[error("control socket {path}: reply is not understood: {reason}")]
    Reply {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The VM did not do it.
    #[error("control socket {path}: refused: {reason}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The VM's words.
        reason: String,
    },
}

/// Makes a listening control socket at `path`, replacing a stale one. For the parent of a VM, and for stand-alone use.
///
/// # Errors
/// [`ControlError::Io`].
pub fn listen(path: &Path) -> Result<OwnedFd, ControlError> {
    let fail = |what| move |source| ControlError::Io { path: path.to_path_buf(), what, source };
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(fail("replace the old socket")(e));
        }
        _ => {}
    }
    let (socket, address, len) = socket_for(path).map_err(fail("make a socket"))?;
    // SAFETY: the address is initialised and `len` is its length.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) }).map_err(fail("bind"))?;
    // SAFETY: no memory involved.
    check(unsafe { libc::listen(socket.as_raw_fd(), MAX_CONNECTIONS as libc::c_int) }).map_err(fail("listen"))?;
    Ok(socket)
}

fn parse(message: &[u8]) -> Result<Request, String> {
    if message.len() > MAX_MESSAGE {
        return Err(format!("message is longer than {MAX_MESSAGE} bytes"));
    }
    match serde_json::from_slice(message).map_err(|e| format!("not a request: {e}"))? {
        Request::Stop { deadline_ms } if deadline_ms > MAX_STOP_MS => {
            Err(format!("stop: deadline_ms is {deadline_ms}, expected at most {MAX_STOP_MS}"))
        }
        request => Ok(request),
    }
}

fn yes() -> bool {
    true
}

/// Fuzz entry: arbitrary packets become a request or a reason.
#[doc(hidden)]
pub fn fuzz_control(data: &[u8]) {
    if let Ok(request) = parse(data) {
        let text = serde_json::to_vec(&request).unwrap_or_default();
        assert_eq!(parse(&text), Ok(request));
    }
    let _ = serde_json::from_slice::<Reply>(data);
}

fn socket_for(path: &Path) -> io::Result<(OwnedFd, libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all zeros is a valid address structure.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket path is longer than 107 bytes"));
    }
    for (slot, byte) in address.sun_path.iter_mut().zip(bytes) {
        *slot = *byte as libc::c_char;
    }
    // SAFETY: no memory involved.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: a fresh descriptor, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((socket, address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
