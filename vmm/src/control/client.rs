//! The agent's end of the control socket.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ControlError, MAX_MESSAGE, check, rights, socket_for};
use holdfast_model::contract::vm::{MAX_STOP_MS, Reply, Request, RunState, Stats, WindowSize};

/// How long a client waits for a reply.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

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
        self.exchange(request).map(|(reply, _)| reply)
    }

    fn exchange(&mut self, request: &Request) -> Result<(Reply, Option<OwnedFd>), ControlError> {
        let text = serde_json::to_vec(request)
            .map_err(|e| ControlError::Reply { path: self.path.clone(), reason: e.to_string() })?;
        let path = self.path.clone();
        let fail = |what| move |source| ControlError::Io { path: path.clone(), what, source };
        self.stream.write_all(&text).map_err(fail("send"))?;
        let mut buf = vec![0; MAX_MESSAGE];
        let path = self.path.clone();
        let fail = |source| ControlError::Io { path: path.clone(), what: "receive", source };
        let (got, fd) = rights::receive(self.stream.as_raw_fd(), &mut buf).map_err(fail)?;
        if got == 0 {
            return Err(ControlError::Closed { path: self.path.clone() });
        }
        match serde_json::from_slice(&buf[..got]) {
            Ok(Reply::Refused { reason }) => Err(ControlError::Refused { path: self.path.clone(), reason }),
            Ok(reply) => Ok((reply, fd)),
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

    /// A stream to a console (blocking), its name, and how many bytes of earlier output come first.
    ///
    /// # Errors
    /// As [`ControlClient::request`].
    pub fn attach(&mut self, console: Option<&str>, replay: bool) -> Result<(UnixStream, String, u64), ControlError> {
        let request = Request::AttachConsole { console: console.map(str::to_owned), replay };
        match self.exchange(&request)? {
            (Reply::Attached { console, replayed }, Some(fd)) => {
                let stream = UnixStream::from(fd);
                stream.set_nonblocking(false).map_err(|source| ControlError::Io {
                    path: self.path.clone(),
                    what: "use the stream",
                    source,
                })?;
                Ok((stream, console, replayed))
            }
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// Tells the guest the size of a console's window.
    ///
    /// # Errors
    /// As [`ControlClient::request`]; refused when the guest's driver cannot be told.
    pub fn resize(&mut self, console: Option<&str>, size: WindowSize) -> Result<(), ControlError> {
        self.done(&Request::ResizeConsole { console: console.map(str::to_owned), size })
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
