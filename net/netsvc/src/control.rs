//! The control socket: JSON packets of at most [`MAX_PACKET`] bytes over SOCK_SEQPACKET.
//!
//! The service keeps the listening end; [`Client`] is for its parent, which may come and go.

use crate::sys::{self, Interest};
use holdfast_model::contract::network::{Reply, Request};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use thiserror::Error;

/// Largest packet in bytes.
pub const MAX_PACKET: usize = 256 << 10;

/// Why a request failed.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket failed; the service may be gone.
    #[error("control socket: {0}")]
    Socket(#[from] io::Error),
    /// The service closed the connection.
    #[error("control socket closed by the service")]
    Closed,
    /// Not JSON, or of an unknown shape.
    #[error("control packet: {0}")]
    Packet(#[from] serde_json::Error),
    /// The service refused.
    #[error("refused: {0}")]
    Refused(String),
}

/// A parent's connection to a service.
#[derive(Debug)]
pub struct Client {
    fd: OwnedFd,
}

impl Client {
    /// Connects; every later call waits no longer than `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ControlError> {
        Ok(Self { fd: sys::seqpacket_connect(path, timeout)? })
    }

    /// Sends a request and waits for its reply. Do not use on a connection that subscribed: events come in between.
    pub fn request(&mut self, request: &Request) -> Result<Reply, ControlError> {
        sys::send(&self.fd, &serde_json::to_vec(request)?)?;
        match self.receive()? {
            Reply::Error { text } => Err(ControlError::Refused(text)),
            reply => Ok(reply),
        }
    }

    /// Sends without waiting.
    pub fn send(&mut self, request: &Request) -> Result<(), ControlError> {
        Ok(sys::send(&self.fd, &serde_json::to_vec(request)?)?)
    }

    /// The next packet, waiting for it.
    pub fn receive(&mut self) -> Result<Reply, ControlError> {
        let mut buffer = vec![0; MAX_PACKET];
        match sys::receive(&self.fd, &mut buffer)? {
            0 => Err(ControlError::Closed),
            n => Ok(serde_json::from_slice(buffer.get(..n).unwrap_or(&buffer))?),
        }
    }

    /// The next packet, if one is here.
    pub fn try_receive(&mut self) -> Result<Option<Reply>, ControlError> {
        let interest = Interest { fd: self.fd.as_raw_fd(), write: false };
        if sys::poll(&[interest], Some(Duration::ZERO))? == [true] {
            return self.receive().map(Some);
        }
        Ok(None)
    }
}

impl AsFd for Client {
    /// For readiness in the parent's own event loop.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// Parents that a service serves at the same time.
const MAX_PEERS: usize = 4;

#[derive(Debug)]
struct Peer {
    fd: OwnedFd,
    subscribed: bool,
}

/// The service's end.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    peers: Vec<Peer>,
}

impl Server {
    /// Over an inherited listening socket.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        sys::set_nonblocking(&listener)?;
        Ok(Self { listener, peers: Vec::new() })
    }

    /// Descriptors to wait for.
    #[must_use]
    pub fn interests(&self) -> Vec<Interest> {
        let peers = self.peers.iter().map(|p| p.fd.as_raw_fd());
        let listener = (self.peers.len() < MAX_PEERS).then(|| self.listener.as_raw_fd());
        peers.chain(listener).map(|fd| Interest { fd, write: false }).collect()
    }

    /// Accepts connections and answers all requests that are here. `events` are told to a new subscriber at once.
    pub fn turn(&mut self, mut answer: impl FnMut(Request) -> Reply, mut events: impl FnMut() -> Vec<Reply>) {
        while self.peers.len() < MAX_PEERS {
            match sys::accept(&self.listener) {
                Ok(fd) => self.peers.push(Peer { fd, subscribed: false }),
                Err(_) => break,
            }
        }
        self.peers.retain_mut(|peer| {
            let mut buffer = vec![0; MAX_PACKET];
            loop {
                let n = match sys::receive(&peer.fd, &mut buffer) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                    Err(_) | Ok(0) => return false,
                    Ok(n) => n,
                };
                let replies = match buffer.get(..n).map(serde_json::from_slice::<Request>) {
                    None => {
                        vec![Reply::Error { text: format!("request of {n} bytes, at most {MAX_PACKET} are accepted") }]
                    }
                    Some(Err(e)) => vec![Reply::Error { text: format!("request not understood: {e}") }],
                    Some(Ok(Request::Subscribe)) => {
                        peer.subscribed = true;
                        std::iter::once(Reply::Ok).chain(events()).collect()
                    }
                    Some(Ok(request)) => vec![answer(request)],
                };
                if !replies.iter().all(|r| deliver(peer, r)) {
                    return false;
                }
            }
        });
    }

    /// Tells all subscribers. One that does not read is dropped: it will connect again and ask for the state.
    pub fn publish(&mut self, event: &Reply) {
        self.peers.retain(|p| !p.subscribed || deliver(p, event));
    }
}

fn deliver(peer: &Peer, reply: &Reply) -> bool {
    serde_json::to_vec(reply).is_ok_and(|bytes| sys::send(&peer.fd, &bytes).is_ok())
}
