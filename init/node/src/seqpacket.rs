//! JSON packets over the control sockets of our own services (`netsvc`, `vmm`): connect, ask, listen.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv, send, socket,
};
use serde::{Serialize, de::DeserializeOwned};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// Largest packet.
const MAX_PACKET: usize = 64 * 1024;

/// A connection to one service.
#[derive(Debug)]
pub struct Connection {
    fd: AsyncFd<OwnedFd>,
    what: String,
}

impl Connection {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn open(path: &Path) -> Result<Self> {
        let fd =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?).with_context(|| format!("control socket {}", path.display()))?;
        Ok(Self { fd: holdfast_netkernel::sys::register(fd)?, what: path.display().to_string() })
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// When the service is gone or does not read.
    pub async fn send(&self, packet: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(packet)?;
        if bytes.len() > MAX_PACKET {
            bail!("{}: packet of {} bytes, at most {MAX_PACKET}", self.what, bytes.len());
        }
        loop {
            let mut ready = self.fd.writable().await?;
            match send(ready.get_inner().as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(e) => return Err(e).with_context(|| self.what.clone()),
            }
        }
    }

    /// The next packet.
    ///
    /// # Errors
    /// When the service is gone or says something else than `T`.
    pub async fn receive<T: DeserializeOwned>(&self) -> Result<T> {
        let mut buffer = vec![0u8; MAX_PACKET];
        loop {
            let mut ready = self.fd.readable().await?;
            match recv(ready.get_inner().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(0) => bail!("{}: closed by the service", self.what),
                Ok(n) => {
                    return serde_json::from_slice(&buffer[..n])
                        .with_context(|| format!("{}: unexpected packet", self.what));
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(e) => return Err(e).with_context(|| self.what.clone()),
            }
        }
    }

    /// One question, one answer, within `deadline`.
    ///
    /// # Errors
    /// As [`Connection::send`] and [`Connection::receive`], or no answer in time.
    pub async fn ask<T: DeserializeOwned>(&self, packet: &impl Serialize, deadline: Duration) -> Result<T> {
        timeout(deadline, async {
            self.send(packet).await?;
            self.receive().await
        })
        .await
        .with_context(|| format!("{}: no answer within {} s", self.what, deadline.as_secs()))?
    }
}

/// A listening socket at `path`; one that an earlier run left there is replaced.
///
/// # Errors
/// When the folder is not there.
pub fn listen_at(path: &Path) -> Result<OwnedFd> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?).with_context(|| format!("cannot bind {}", path.display()))?;
    listen(&fd, Backlog::new(4)?)?;
    Ok(fd)
}
