//! Packets over `SOCK_SEQPACKET`, and the descriptors that travel with them.
//!
//! A packet is `{"v":1,"body":...}`; the body is a [`Request`] to PID 1, a [`Reply`] or [`Event`] from it.

use crate::message::{Event, Reply, Request};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Version of the protocol; both ends refuse any other.
pub const VERSION: u32 = 1;
/// Largest packet in bytes.
pub const MAX_PACKET: usize = 64 * 1024;
/// Most descriptors in one packet.
pub const MAX_FDS: usize = 64;
/// The kernel's own limit (`SCM_MAX_FD`): with room for this many nothing is ever cut off and left open.
const KERNEL_MAX_FDS: usize = 253;

/// The outer object of each packet.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packet<T> {
    v: u32,
    body: T,
}

/// Only the version, to tell "other version" from "broken".
#[derive(Deserialize)]
struct VersionOnly {
    v: u32,
}

/// Faults of a packet or its socket.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer speaks another version.
    #[error("unit protocol: expected version {VERSION}, found {found}")]
    Version {
        /// What it speaks.
        found: u32,
    },
    /// Not the expected JSON.
    #[error("unit protocol: packet is not a valid message: {0}")]
    Json(#[from] serde_json::Error),
    /// Over [`MAX_PACKET`].
    #[error("unit protocol: packet of {found} bytes, expected at most {MAX_PACKET}")]
    TooLong {
        /// Its size, or [`MAX_PACKET`] + 1 when it was cut on arrival.
        found: usize,
    },
    /// Over [`MAX_FDS`].
    #[error("unit protocol: {found} descriptors in one packet, expected at most {MAX_FDS}")]
    TooManyFds {
        /// How many.
        found: usize,
    },
    /// The peer has closed the connection.
    #[error("unit protocol: the peer closed the connection")]
    Closed,
    /// Nothing to read, or no room to write, on a non-blocking socket.
    #[error("unit protocol: socket not ready")]
    WouldBlock,
    /// Any other error of the socket.
    #[error("unit protocol: socket: {0}")]
    Socket(Errno),
}

impl From<Errno> for WireError {
    fn from(errno: Errno) -> WireError {
        match errno {
            Errno::EAGAIN => WireError::WouldBlock,
            Errno::EPIPE | Errno::ECONNRESET => WireError::Closed,
            other => WireError::Socket(other),
        }
    }
}

/// Sends a request with the descriptors of a unit.
pub fn send_request(socket: BorrowedFd<'_>, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    send(socket, request, fds)
}

/// Sends a reply.
pub fn send_reply(socket: BorrowedFd<'_>, reply: &Reply) -> Result<(), WireError> {
    send(socket, reply, &[])
}

/// Sends an event.
pub fn send_event(socket: BorrowedFd<'_>, event: &Event) -> Result<(), WireError> {
    send(socket, event, &[])
}

/// Receives a request with its descriptors, all close-on-exec.
pub fn receive_request(socket: BorrowedFd<'_>) -> Result<(Request, Vec<OwnedFd>), WireError> {
    let (bytes, fds) = receive(socket)?;
    Ok((parse(&bytes)?, fds))
}

/// Receives a reply.
pub fn receive_reply(socket: BorrowedFd<'_>) -> Result<Reply, WireError> {
    parse(&receive(socket)?.0)
}

/// Receives an event.
pub fn receive_event(socket: BorrowedFd<'_>) -> Result<Event, WireError> {
    parse(&receive(socket)?.0)
}

/// The packet of a reply, so that PID 1 can see its size before sending.
pub fn encode_reply(reply: &Reply) -> Result<Vec<u8>, WireError> {
    encode(reply)
}

fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, WireError> {
    let bytes = serde_json::to_vec(&Packet { v: VERSION, body })?;
    if bytes.len() > MAX_PACKET {
        return Err(WireError::TooLong { found: bytes.len() });
    }
    Ok(bytes)
}

fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, WireError> {
    match serde_json::from_slice::<Packet<T>>(bytes) {
        Ok(Packet { v: VERSION, body }) => Ok(body),
        Ok(Packet { v, .. }) => Err(WireError::Version { found: v }),
        Err(error) => match serde_json::from_slice::<VersionOnly>(bytes) {
            Ok(VersionOnly { v }) if v != VERSION => Err(WireError::Version { found: v }),
            _ => Err(error.into()),
        },
    }
}

fn send<T: Serialize>(socket: BorrowedFd<'_>, body: &T, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    if fds.len() > MAX_FDS {
        return Err(WireError::TooManyFds { found: fds.len() });
    }
    let bytes = encode(body)?;
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let iov = [IoSlice::new(&bytes)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn receive(socket: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), WireError> {
    // One byte more than allowed, so that a packet of exactly the limit is told from a longer one.
    let mut buffer = vec![0u8; MAX_PACKET + 1];
    let mut control = cmsg_space!([RawFd; KERNEL_MAX_FDS]);
    let (length, flags, fds) = loop {
        let mut iov = [IoSliceMut::new(&mut buffer)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let mut fds = Vec::new();
                for item in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(raw) = item {
                        for fd in raw {
                            // SAFETY: the kernel has just made this descriptor for this process and nobody else knows it.
                            fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                        }
                    }
                }
                break (message.bytes, message.flags, fds);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    if length == 0 {
        return Err(WireError::Closed);
    }
    if flags.contains(MsgFlags::MSG_TRUNC) || length > MAX_PACKET {
        return Err(WireError::TooLong { found: length.max(MAX_PACKET + 1) });
    }
    if fds.len() > MAX_FDS {
        return Err(WireError::TooManyFds { found: fds.len() });
    }
    buffer.truncate(length);
    Ok((buffer, fds))
}

/// A connected pair of sockets of the protocol's type, close-on-exec: for tests and for a parent that serves one child.
pub fn pair() -> Result<(OwnedFd, OwnedFd), WireError> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Feeds any bytes to all parsers.
#[doc(hidden)]
pub fn fuzz_packet(data: &[u8]) {
    if let Ok(Request::Start(spec)) = parse::<Request>(data) {
        let _ = spec.validate();
    }
    let _ = parse::<Reply>(data);
    let _ = parse::<Event>(data);
}

/// Waits until `socket` is readable (or hung up); false when the deadline passed first.
pub(crate) fn wait_readable(socket: &impl AsFd, deadline: std::time::Instant) -> Result<bool, WireError> {
    wait(socket, nix::poll::PollFlags::POLLIN, deadline)
}

/// Waits until `socket` is writable; false when the deadline passed first.
pub(crate) fn wait_writable(socket: &impl AsFd, deadline: std::time::Instant) -> Result<bool, WireError> {
    wait(socket, nix::poll::PollFlags::POLLOUT, deadline)
}

fn wait(socket: &impl AsFd, what: nix::poll::PollFlags, deadline: std::time::Instant) -> Result<bool, WireError> {
    use nix::poll::{PollFd, PollTimeout, poll};
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        // Rounded up: a wait of 0 ms in the last millisecond would spin.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), what)], timeout) {
            Ok(0) if std::time::Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{UnitName, UnitSpec};
    use proptest::prelude::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn descriptors_arrive_in_order_and_close_on_exec() {
        let (a, b) = pair().unwrap();
        let mut files: Vec<std::fs::File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        for (number, file) in files.iter_mut().enumerate() {
            write!(file, "{number}").unwrap();
            file.rewind().unwrap();
        }
        let spec = UnitSpec::new(UnitName::new("u").unwrap(), "/bin/u", 1);
        let sent = Request::Start(Box::new(spec));
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send_request(a.as_fd(), &sent, &fds).unwrap();

        let (received, fds) = receive_request(b.as_fd()).unwrap();

        assert_eq!(received, sent);
        for (number, fd) in fds.into_iter().enumerate() {
            let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_ne!(flags & nix::fcntl::FdFlag::FD_CLOEXEC.bits(), 0);
            let mut text = String::new();
            std::fs::File::from(fd).read_to_string(&mut text).unwrap();
            assert_eq!(text, number.to_string());
        }
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (a, b) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let raw = [file.as_raw_fd(); MAX_FDS + 1];
        let bytes = encode(&Request::Heartbeat).unwrap();
        let control = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(&bytes)], &control, MsgFlags::empty(), None).unwrap();
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();

        let result = receive_request(b.as_fd());

        assert!(matches!(result, Err(WireError::TooManyFds { found }) if found == MAX_FDS + 1));
        let still_open = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|e| std::fs::read_link(e.ok()?.path()).ok())
            .filter(|target| *target == path)
            .count();
        assert_eq!(still_open, 1, "only the test's own descriptor stays open");
    }

    #[test]
    fn long_packets_are_refused_on_both_ends() {
        let (a, b) = pair().unwrap();
        let long = Request::Reboot { reason: "x".repeat(MAX_PACKET) };
        assert!(matches!(send_request(a.as_fd(), &long, &[]), Err(WireError::TooLong { .. })));
        let bytes = vec![b' '; MAX_PACKET + 10];
        sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(&bytes)], &[], MsgFlags::empty(), None).unwrap();
        assert!(matches!(receive_request(b.as_fd()), Err(WireError::TooLong { .. })));
    }

    #[test]
    fn other_versions_are_named_even_with_unknown_bodies() {
        for text in [r#"{"v":2,"body":"heartbeat"}"#, r#"{"v":2,"body":"dance","more":1}"#] {
            assert!(matches!(parse::<Request>(text.as_bytes()), Err(WireError::Version { found: 2 })));
        }
        assert!(matches!(parse::<Request>(br#"{"v":1,"body":"heartbeat","x":1}"#), Err(WireError::Json(_))));
        assert!(matches!(parse::<Request>(br#"{"v":1,"body":"heartbeat"}"#), Ok(Request::Heartbeat)));
    }

    #[test]
    fn closed_peer_is_told_from_an_idle_one() {
        let (a, b) = pair().unwrap();
        drop(a);
        assert!(matches!(receive_request(b.as_fd()), Err(WireError::Closed)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..512)) {
            fuzz_packet(&data);
        }
    }
}
