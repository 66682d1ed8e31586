//! The control socket: `SOCK_SEQPACKET`, one JSON message in each packet, one reply to each request.
//!
//! The VM holds the *listening* socket, so an agent that restarts connects again. [`ControlClient`] is the agent's end.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::virtio::DeviceStats;
use crate::virtio::balloon::MemoryStats;

/// Longest message, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Connections served at once; more wait in the socket's backlog.
pub const MAX_CONNECTIONS: usize = 4;
/// Longest accepted `stop` deadline: one day.
pub const MAX_STOP_MS: u64 = 86_400_000;
/// How long a client waits for a reply.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Each vCPU's.
    pub vcpus: Vec<VcpuStats>,
    /// Each device's, by name, in PCI order.
    pub devices: Vec<(String, DeviceStats)>,
    /// The balloon's figures and the guest's of itself; absent without a balloon, and before its driver has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStats>,
}

/// Counters of one vCPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Port accesses that reached this process.
    pub pio_exits: u64,
    /// Memory-mapped accesses that reached this process.
    pub mmio_exits: u64,
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

/// The agent's end: blocking, one request at a time, each bounded by ten seconds.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    path: PathBuf,
}

impl ControlClient {
    /// Connects to a VM's control socket.
    ///
    /// # Errors
    /// [`ControlError::Io`] when nobody listens there.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ControlError> {
        let path = path.as_ref();
        let fail = |what| move |source| ControlError::Io { path: path.to_path_buf(), what, source };
        let (socket, address, len) = socket_for(path).map_err(fail("make a socket"))?;
        // SAFETY: the address is initialised and `len` is its length.
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })
            .map_err(fail("connect"))?;
        // Read and write keep packet boundaries on this socket type.
        let stream = UnixStream::from(socket);
        stream.set_read_timeout(Some(CLIENT_TIMEOUT)).map_err(fail("set a timeout"))?;
        stream.set_write_timeout(Some(CLIENT_TIMEOUT)).map_err(fail("set a timeout"))?;
        Ok(Self { stream, path: path.to_path_buf() })
    }

    /// Sends one request and waits for its reply.
    ///
    /// # Errors
    /// [`ControlError`]; a refusal is [`ControlError::Refused`].
    pub fn request(&mut self, request: &Request) -> Result<Reply, ControlError> {
        let text = serde_json::to_vec(request)
            .map_err(|e| ControlError::Reply { path: self.path.clone(), reason: e.to_string() })?;
        let path = self.path.clone();
        let fail = |what| move |source| ControlError::Io { path: path.clone(), what, source };
        self.stream.write_all(&text).map_err(fail("send"))?;
        let mut buf = vec![0; MAX_MESSAGE];
        let path = self.path.clone();
        let got = self.stream.read(&mut buf).map_err(|source| ControlError::Io { path, what: "receive", source })?;
        if got == 0 {
            return Err(ControlError::Closed { path: self.path.clone() });
        }
        match serde_json::from_slice(&buf[..got]) {
            Ok(Reply::Refused { reason }) => Err(ControlError::Refused { path: self.path.clone(), reason }),
            Ok(reply) => Ok(reply),
            Err(e) => Err(ControlError::Reply { path: self.path.clone(), reason: e.to_string() }),
        }
    }

    /// The VM's version and state.
    ///
    /// # Errors
    /// As [`ControlClient::request`].
    pub fn ping(&mut self) -> Result<RunState, ControlError> {
        match self.request(&Request::Ping)? {
            Reply::Pong { state, .. } => Ok(state),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Halts the VM.
    ///
    /// # Errors
    /// As [`ControlClient::request`].
    pub fn pause(&mut self) -> Result<(), ControlError> {
        self.done(&Request::Pause)
    }

    /// Undoes a pause.
    ///
    /// # Errors
    /// As [`ControlClient::request`].
    pub fn resume(&mut self) -> Result<(), ControlError> {
        self.done(&Request::Resume)
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// As [`ControlClient::request`].
    pub fn power_button(&mut self) -> Result<(), ControlError> {
        self.done(&Request::PowerButton)
    }

    /// Asks the guest to shut down, with force after `deadline`. The process's exit says how it went.
    ///
    /// # Errors
    /// As [`ControlClient::request`].
    pub fn stop(&mut self, deadline: Duration) -> Result<(), ControlError> {
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(MAX_STOP_MS).min(MAX_STOP_MS);
        self.done(&Request::Stop { deadline_ms })
    }

    /// Sets the size of the balloon.
    ///
    /// # Errors
    /// As [`ControlClient::request`].
    pub fn balloon(&mut self, target_mib: u32) -> Result<(), ControlError> {
        self.done(&Request::Balloon { target_mib })
    }

    /// Gives the guest another vsock address.
    ///
    /// # Errors
    /// As [`ControlClient::request`]; refused when the address is taken.
    pub fn vsock_cid(&mut self, cid: u32) -> Result<(), ControlError> {
        self.done(&Request::VsockCid { cid })
    }

    /// Counters.
    ///
    /// # Errors
    /// As [`ControlClient::request`].
    pub fn stats(&mut self) -> Result<Stats, ControlError> {
        match self.request(&Request::Stats)? {
            Reply::Stats(stats) => Ok(*stats),
            other => Err(self.unexpected(&other)),
        }
    }

    fn done(&mut self, request: &Request) -> Result<(), ControlError> {
        match self.request(request)? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    fn unexpected(&self, reply: &Reply) -> ControlError {
        ControlError::Reply { path: self.path.clone(), reason: format!("unexpected {reply:?}") }
    }
}

/// The VM's end, driven by the device thread; never blocks.
#[derive(Debug)]
pub struct ControlServer {
    listener: OwnedFd,
    connections: Vec<Option<UnixStream>>,
}

impl ControlServer {
    /// Serves a listening `SOCK_SEQPACKET` socket.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        // SAFETY: plain flag changes on a descriptor we own.
        let flags = unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_GETFL) };
        check(flags)?;
        // SAFETY: as above.
        check(unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
        Ok(Self { listener, connections: Vec::new() })
    }

    /// The listening descriptor.
    pub fn listener_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Takes a waiting connection: its number and descriptor. When all places are taken they are all closed, so that
    /// dead agents cannot lock out their successor; live ones connect again.
    ///
    /// # Errors
    /// Never for what a client can cause.
    pub fn accept(&mut self) -> io::Result<Option<(usize, RawFd)>> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the address is not wanted.
        let fd = unsafe { libc::accept4(self.listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
        if fd < 0 {
            return Ok(None);
        }
        // SAFETY: a fresh descriptor, owned by nobody else.
        let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let number = match self.connections.iter().position(Option::is_none) {
            Some(number) => number,
            None if self.connections.len() < MAX_CONNECTIONS => {
                self.connections.push(None);
                self.connections.len() - 1
            }
            None => {
                self.connections.iter_mut().for_each(|c| *c = None);
                0
            }
        };
        self.connections[number] = Some(stream);
        Ok(Some((number, fd)))
    }

    /// The request waiting on connection `number`, or what is wrong with it. `None` when there is none.
    pub fn receive(&mut self, number: usize) -> Option<Result<Request, String>> {
        let slot = self.connections.get_mut(number)?;
        let stream = slot.as_mut()?;
        let mut buf = vec![0; MAX_MESSAGE + 1];
        match stream.read(&mut buf) {
            Ok(0) => {
                *slot = None;
                None
            }
            Ok(got) => Some(parse(&buf[..got])),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
            Err(_) => {
                *slot = None;
                None
            }
        }
    }

    /// Sends a reply. A client that does not take it is disconnected.
    pub fn send(&mut self, number: usize, reply: &Reply) {
        let Some(slot) = self.connections.get_mut(number) else {
            return;
        };
        let sent = serde_json::to_vec(reply)
            .map_err(io::Error::other)
            .and_then(|text| slot.as_mut().map_or(Ok(()), |stream| stream.write_all(&text)));
        if sent.is_err() {
            *slot = None;
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn serve(
        answers: Vec<Reply>,
    ) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<Vec<Result<Request, String>>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut server = ControlServer::new(listen(&path).unwrap()).unwrap();
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for answer in answers {
                let request = loop {
                    let _ = server.accept().unwrap();
                    let found = (0..MAX_CONNECTIONS).find_map(|n| server.receive(n).map(|r| (n, r)));
                    if let Some(found) = found {
                        break found;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                };
                server.send(request.0, &answer);
                seen.push(request.1);
            }
            seen
        });
        (dir, path, thread)
    }

    #[test]
    fn requests_and_replies_travel_as_packets() {
        let pong = Reply::Pong { version: "1".into(), state: RunState::Running };
        let (_dir, path, server) = serve(vec![pong, Reply::Done]);
        let mut client = ControlClient::connect(&path).unwrap();
        assert_eq!(client.ping().unwrap(), RunState::Running);
        drop(client);
        let mut again = ControlClient::connect(&path).unwrap();
        again.stop(Duration::from_secs(5)).unwrap();
        assert_eq!(server.join().unwrap(), [Ok(Request::Ping), Ok(Request::Stop { deadline_ms: 5000 })]);
    }

    #[test]
    fn refusal_is_an_error_with_the_vms_words() {
        let (_dir, path, server) = serve(vec![Reply::Refused { reason: "busy".into() }]);
        let error = ControlClient::connect(&path).unwrap().pause().unwrap_err();
        assert!(matches!(&error, ControlError::Refused { reason, .. } if reason == "busy"));
        server.join().unwrap();
    }

    #[test]
    fn nobody_listening_names_the_socket() {
        let error = ControlClient::connect("/nonexistent/control").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/control") && error.contains("connect"), "{error}");
    }

    #[test]
    fn wire_form_is_stable() {
        let text = |request: &Request| serde_json::to_string(request).unwrap();
        assert_eq!(text(&Request::Stop { deadline_ms: 7 }), r#"{"do":"stop","deadline_ms":7}"#);
        assert_eq!(text(&Request::PowerButton), r#"{"do":"power_button"}"#);
        assert_eq!(text(&Request::Balloon { target_mib: 64 }), r#"{"do":"balloon","target_mib":64}"#);
        assert_eq!(text(&Request::VsockCid { cid: 7 }), r#"{"do":"vsock_cid","cid":7}"#);
        assert_eq!(serde_json::to_string(&Reply::Done).unwrap(), r#"{"is":"done"}"#);
        assert!(parse(br#"{"do":"stop","deadline_ms":99999999999}"#).unwrap_err().contains("at most"));
        assert!(parse(br#"{"do":"dance"}"#).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn arbitrary_packets_never_panic(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            fuzz_control(&data);
        }
    }
}
