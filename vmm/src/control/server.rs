//! The VM's end of the control socket.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use holdfast_model::contract::vm::{Reply, Request};

use super::{MAX_CONNECTIONS, MAX_MESSAGE, check, parse, rights};

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

    /// Sends a reply, with a descriptor if there is one. A client that does not take it is disconnected.
    pub fn send(&mut self, number: usize, reply: &Reply, fd: Option<OwnedFd>) {
        let Some(slot) = self.connections.get_mut(number) else {
            return;
        };
        let sent = serde_json::to_vec(reply).map_err(io::Error::other).and_then(|text| {
            slot.as_ref().map_or(Ok(()), |stream| rights::send(stream.as_raw_fd(), &text, fd.as_ref()))
        });
        if sent.is_err() {
            *slot = None;
        }
    }
}
