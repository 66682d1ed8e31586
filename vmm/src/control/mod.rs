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

use thiserror::Error;

pub use self::client::ControlClient;
pub use self::server::ControlServer;
use holdfast_model::contract::vm::{MAX_STOP_MS, Reply, Request};

/// Longest message, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Connections served at once; more wait in the socket's backlog.
pub const MAX_CONNECTIONS: usize = 4;

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
