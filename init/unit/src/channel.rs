//! Messages over a packet socket: JSON of up to [`MAX_MESSAGE`] bytes, with descriptors.
//!
//! A message that fits into [`MAX_PACKET`] bytes is one packet and nothing but its JSON. A longer one is sent as several
//! packets, the last beginning with `=` and those before it with `+`, which no JSON text begins with. Descriptors travel
//! with the last packet.
//!
//! [`Channel`] never blocks unless a method says for how long. Its event loop waits for [`Channel::wants_write`] too.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::packet::{self, MAX_PACKET};

/// Largest message in bytes: as large as the largest document, so that whatever a program was started with can be updated.
pub const MAX_MESSAGE: usize = 1 << 20;
/// First byte of a packet that the same message goes on after.
const MORE: u8 = b'+';
/// First byte of the last packet of a message of several.
const LAST: u8 = b'=';

/// Why a message was not sent or received. After everything but [`ChannelError::TooLong`] on sending and
/// [`ChannelError::Json`] the channel is unusable: connect again.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// Nobody listens, or the socket failed.
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
    /// The peer has closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// No room or no answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    /// Over [`MAX_MESSAGE`].
    #[error("message of {found} bytes, expected at most {MAX_MESSAGE}")]
    TooLong {
        /// Its length in bytes, as far as it came.
        found: usize,
    },
    /// A packet is longer than [`MAX_PACKET`]: the peer is of another build.
    #[error("packet of {found} bytes, expected at most {MAX_PACKET}")]
    Packet {
        /// Its length in bytes.
        found: usize,
    },
    /// The message is not of the expected shape.
    #[error("message not understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// One end of a connection.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// Packets of a message whose last one has not come.
    partial: Vec<u8>,
    /// Packets that the socket had no room for.
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// A message that came.
#[derive(Debug)]
pub struct Message {
    /// Its JSON.
    pub text: Vec<u8>,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The value in it.
    ///
    /// # Errors
    /// [`ChannelError::Json`].
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ChannelError> {
        Ok(serde_json::from_slice(&self.text)?)
    }
}

impl Channel {
    /// Connects to the listener at `path`.
    ///
    /// # Errors
    /// [`ChannelError::Socket`].
    pub fn connect(path: &Path) -> Result<Self, ChannelError> {
        Self::new(packet::connect(path)?)
    }

    /// Over a connected packet socket, which becomes non-blocking.
    ///
    /// # Errors
    /// [`ChannelError::Socket`].
    pub fn new(socket: OwnedFd) -> Result<Self, ChannelError> {
        packet::set_nonblocking(socket.as_fd())?;
        Ok(Self { socket, partial: Vec::new(), waiting: VecDeque::new() })
    }

    /// Sends a message as far as the socket has room; the rest waits for [`Channel::flush`]. True when all is sent.
    ///
    /// # Errors
    /// [`ChannelError::TooLong`], [`ChannelError::Closed`], [`ChannelError::Socket`].
    pub fn send(&mut self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<bool, ChannelError> {
        self.send_text(&serde_json::to_vec(message)?, fds)
    }

    /// [`Channel::send`] of JSON that is text already.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_text(&mut self, text: &[u8], fds: &[BorrowedFd<'_>]) -> Result<bool, ChannelError> {
        if text.len() > MAX_MESSAGE {
            return Err(ChannelError::TooLong { found: text.len() });
        }
        if text.len() <= MAX_PACKET {
            self.send_packet(text.to_vec(), fds)?;
            return Ok(self.waiting.is_empty());
        }
        let mut parts = text.chunks(MAX_PACKET - 1).peekable();
        while let Some(part) = parts.next() {
            let is_last = parts.peek().is_none();
            let mut packet = Vec::with_capacity(part.len() + 1);
            packet.push(if is_last { LAST } else { MORE });
            packet.extend_from_slice(part);
            self.send_packet(packet, if is_last { fds } else { &[] })?;
        }
        Ok(self.waiting.is_empty())
    }

    fn send_packet(&mut self, packet: Vec<u8>, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        if self.waiting.is_empty() {
            match packet::send(self.socket.as_fd(), &packet, fds) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(fault(e)),
            }
        }
        let fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>()?;
        self.waiting.push_back((packet, fds));
        Ok(())
    }

    /// Sends what waits, as far as the socket has room. True when nothing waits any more.
    ///
    /// # Errors
    /// [`ChannelError::Closed`], [`ChannelError::Socket`].
    pub fn flush(&mut self) -> Result<bool, ChannelError> {
        while let Some((packet, fds)) = self.waiting.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match packet::send(self.socket.as_fd(), packet, &borrowed) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(fault(e)),
            }
        }
        Ok(true)
    }

    /// Whether packets wait for room in the socket.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next whole message, if it is here.
    ///
    /// # Errors
    /// [`ChannelError::Closed`], [`ChannelError::Socket`], [`ChannelError::Packet`], [`ChannelError::TooLong`].
    pub fn try_receive(&mut self) -> Result<Option<Message>, ChannelError> {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            let packet = match packet::receive(self.socket.as_fd(), &mut buffer) {
                Ok(packet) => packet,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(fault(e)),
            };
            let bytes = match packet.length {
                0 => return Err(ChannelError::Closed),
                length => buffer.get(..length).ok_or(ChannelError::Packet { found: length })?,
            };
            let (goes_on, part) = match bytes.split_first() {
                Some((&MORE, rest)) => (true, rest),
                Some((&LAST, rest)) => (false, rest),
                // A whole message. It also ends one that its sender gave up half way.
                _ => {
                    self.partial.clear();
                    buffer.truncate(packet.length);
                    return Ok(Some(Message { text: buffer, fds: packet.fds }));
                }
            };
            let length = self.partial.len() + part.len();
            if length > MAX_MESSAGE {
                return Err(ChannelError::TooLong { found: length });
            }
            self.partial.extend_from_slice(part);
            if !goes_on {
                return Ok(Some(Message { text: std::mem::take(&mut self.partial), fds: packet.fds }));
            }
        }
    }

    /// Sends a message, waiting for room at most until `timeout` has passed.
    ///
    /// # Errors
    /// As [`Channel::send`], or [`ChannelError::Deadline`].
    pub fn send_within(
        &mut self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(), ChannelError> {
        let deadline = Instant::now() + timeout;
        let mut done = self.send(message, fds)?;
        while !done {
            if !packet::wait(self.socket.as_fd(), true, deadline)? {
                return Err(ChannelError::Deadline(timeout));
            }
            done = self.flush()?;
        }
        Ok(())
    }

    /// The next message, waiting for it at most until `timeout` has passed.
    ///
    /// # Errors
    /// As [`Channel::try_receive`], or [`ChannelError::Deadline`].
    pub fn receive_within(&mut self, timeout: Duration) -> Result<Message, ChannelError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(message) = self.try_receive()? {
                return Ok(message);
            }
            if !packet::wait(self.socket.as_fd(), false, deadline)? {
                return Err(ChannelError::Deadline(timeout));
            }
        }
    }

    /// One question and its answer, each within `timeout`.
    ///
    /// # Errors
    /// As [`Channel::send_within`] and [`Channel::receive_within`]; [`ChannelError::Json`] for another answer than `T`.
    pub fn ask<T: DeserializeOwned>(&mut self, message: &impl Serialize, timeout: Duration) -> Result<T, ChannelError> {
        self.send_within(message, &[], timeout)?;
        self.receive_within(timeout)?.parse()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn fault(error: io::Error) -> ChannelError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ChannelError::Closed,
        _ => ChannelError::Socket(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SOON: Duration = Duration::from_secs(5);

    fn pair() -> (Channel, Channel) {
        let (a, b) = packet::pair().unwrap();
        (Channel::new(a).unwrap(), Channel::new(b).unwrap())
    }

    #[test]
    fn a_short_message_is_one_packet_of_plain_json() {
        let (mut a, b) = pair();
        assert!(a.send(&"hello", &[]).unwrap());
        let mut buffer = [0; 32];
        let packet = packet::receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..packet.length], br#""hello""#);
    }

    #[test]
    fn a_message_as_long_as_allowed_arrives_with_its_descriptor() {
        let (mut a, mut b) = pair();
        let text = "x".repeat(MAX_MESSAGE - 2);
        let null = std::fs::File::open("/dev/null").unwrap();
        // More than the socket holds: the rest waits until the other end has read.
        assert!(!a.send(&text, &[null.as_fd()]).unwrap());
        assert!(a.wants_write());
        let receiver = std::thread::spawn(move || b.receive_within(SOON).unwrap());
        let deadline = Instant::now() + SOON;
        while !a.flush().unwrap() {
            assert!(packet::wait(a.as_fd(), true, deadline).unwrap(), "the other end reads");
        }
        let message = receiver.join().unwrap();
        assert_eq!((message.parse::<String>().unwrap(), message.fds.len()), (text, 1));
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_on_both_ends() {
        let (mut a, mut b) = pair();
        let long = "x".repeat(MAX_MESSAGE);
        assert!(matches!(a.send(&long, &[]), Err(ChannelError::TooLong { .. })));
        let sender = std::thread::spawn(move || {
            let middle = vec![MORE; MAX_PACKET];
            let deadline = Instant::now() + SOON;
            for _ in 0..=MAX_MESSAGE / MAX_PACKET {
                while packet::wait(a.as_fd(), true, deadline).unwrap() {
                    match packet::send(a.as_fd(), &middle, &[]) {
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        _ => break,
                    }
                }
            }
        });
        assert!(matches!(b.receive_within(SOON), Err(ChannelError::TooLong { .. })));
        drop(b);
        sender.join().unwrap();
    }

    #[test]
    fn silence_ends_at_the_deadline_and_a_closed_peer_is_told_from_it() {
        let (mut a, b) = pair();
        assert!(matches!(a.receive_within(Duration::from_millis(10)), Err(ChannelError::Deadline(_))));
        drop(b);
        assert!(matches!(a.receive_within(SOON), Err(ChannelError::Closed)));
        assert!(matches!(a.send(&1, &[]), Err(ChannelError::Closed)));
    }

    #[test]
    fn an_answer_of_another_shape_is_named() {
        let (mut a, mut b) = pair();
        b.send(&"text", &[]).unwrap();
        assert!(matches!(a.ask::<u32>(&"question", SOON), Err(ChannelError::Json(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Wherever the cuts fall, and whatever byte follows one.
        #[test]
        fn texts_of_any_length_and_content_survive(length in 0usize..4 * MAX_PACKET, plus in any::<bool>()) {
            let (mut a, mut b) = pair();
            let text = vec![if plus { MORE } else { b'7' }; length];
            let text = [&b"1"[..], &text].concat();
            let sent = text.clone();
            let sender = std::thread::spawn(move || {
                let mut done = a.send_text(&sent, &[]).unwrap();
                while !done {
                    assert!(packet::wait(a.as_fd(), true, Instant::now() + SOON).unwrap());
                    done = a.flush().unwrap();
                }
                a
            });
            prop_assert_eq!(b.receive_within(SOON).unwrap().text, text);
            sender.join().unwrap();
        }
    }
}
