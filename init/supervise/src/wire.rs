//! Packets over `SOCK_SEQPACKET`, and the descriptors that travel with them.
//!
//! A packet is `{"v":1,"body":...}`; the body is a [`Request`] to PID 1, a [`Reply`] or [`Event`] from it.

use crate::message::{Event, Reply, Request};
use holdfast_unit::packet;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use holdfast_unit::packet::{MAX_FDS, MAX_PACKET};

/// Version of the protocol; both ends refuse any other.
pub const VERSION: u32 = 1;
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
        /// Its size in bytes.
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
    Socket(io::Error),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> WireError {
        match error.kind() {
            io::ErrorKind::WouldBlock => WireError::WouldBlock,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => WireError::Closed,
            _ => WireError::Socket(error),
        }
    }
}

#[cfg(feature = "tokio")]
impl From<holdfast_unit::ChannelError> for WireError {
    fn from(error: holdfast_unit::ChannelError) -> WireError {
        use holdfast_unit::ChannelError;
        match error {
            ChannelError::Closed => WireError::Closed,
            ChannelError::TooLong { found } | ChannelError::Packet { found } => WireError::TooLong { found },
            ChannelError::Json(error) => WireError::Json(error),
            ChannelError::Socket(error) => WireError::from(error),
            error @ ChannelError::Deadline(_) => WireError::Socket(io::Error::other(error)),
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

pub(crate) fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, WireError> {
    let bytes = serde_json::to_vec(&Packet { v: VERSION, body })?;
    if bytes.len() > MAX_PACKET {
        return Err(WireError::TooLong { found: bytes.len() });
    }
    Ok(bytes)
}

pub(crate) fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, WireError> {
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
    Ok(packet::send(socket, &encode(body)?, fds)?)
}

fn receive(socket: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), WireError> {
    let mut buffer = vec![0u8; MAX_PACKET];
    let packet = packet::receive(socket, &mut buffer)?;
    if packet.length == 0 {
        return Err(WireError::Closed);
    }
    if packet.length > MAX_PACKET {
        return Err(WireError::TooLong { found: packet.length });
    }
    if packet.fds.len() > MAX_FDS {
        return Err(WireError::TooManyFds { found: packet.fds.len() });
    }
    buffer.truncate(packet.length);
    Ok((buffer, packet.fds))
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
    Ok(packet::wait(socket.as_fd(), false, deadline)?)
}

/// Waits until `socket` is writable; false when the deadline passed first.
pub(crate) fn wait_writable(socket: &impl AsFd, deadline: std::time::Instant) -> Result<bool, WireError> {
    Ok(packet::wait(socket.as_fd(), true, deadline)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{UnitName, UnitSpec};
    use holdfast_unit::packet::pair;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use proptest::prelude::*;
    use std::io::IoSlice;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsRawFd;

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
