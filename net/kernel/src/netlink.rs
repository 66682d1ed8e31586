//! Netlink messages as nf_tables needs them: building, a transaction, reading (`netlink(7)`).
//!
//! Links, addresses, routes and rules have a crate ([`crate::rtnl`]). The kernel answers nf_tables within the send call,
//! so this socket is synchronous.

use crate::error::NetlinkError;
use crate::sys;
use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;

const HEADER: usize = 16;

/// A message under construction.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request; `NLM_F_REQUEST` is added.
    #[must_use]
    pub fn new(kind: u16, flags: i32, family_header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(family_header);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute.
    pub fn attr(&mut self, kind: u16, data: &[u8]) -> &mut Self {
        let len = u16::try_from(data.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(data);
        self.pad();
        self
    }

    /// Adds a string with its NUL.
    pub fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut data = text.as_bytes().to_vec();
        data.push(0);
        self.attr(kind, &data)
    }

    /// Adds a number in network order.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Adds a number in network order.
    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Adds an attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        let kind = kind | libc::NLA_F_NESTED as u16;
        self.attr(kind, &[]);
        fill(self);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// Bytes of the finished message.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The finished message with its length and sequence number.
    #[must_use]
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Reads attributes; stops at the first malformed one.
pub fn attributes(data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(rest.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        // NLA_F_NESTED and NLA_F_NET_BYTEORDER are the two top bits.
        Some((kind & 0x3fff, value))
    })
}

/// Value of the first attribute of that kind.
#[must_use]
pub fn attribute(data: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(data).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// A text up to its NUL.
#[must_use]
pub fn string(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// One received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Message type.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// Sequence number of the request.
    pub sequence: u32,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// Splits a datagram into messages; stops at the first malformed one.
pub fn messages(data: &[u8]) -> impl Iterator<Item = Answer> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(rest.get(0..4)?.try_into().ok()?) as usize;
        let answer = Answer {
            kind: u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(rest.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(rest.get(8..12)?.try_into().ok()?),
            body: rest.get(HEADER..len)?.to_vec(),
        };
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(answer)
    })
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

/// Seconds to wait for an answer; the kernel gives it at once or never.
const ANSWER_SECONDS: i64 = 5;

impl Netlink {
    /// For nftables.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        let open = || -> io::Result<OwnedFd> {
            let fd = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)?;
            sys::bind_netlink(&fd, 0)?;
            sys::set_receive_timeout(&fd, ANSWER_SECONDS)?;
            // Kernel texts for errors, without the request echoed back.
            sys::set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
            sys::set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
            // A transaction is one datagram, and a refused one brings an answer for each of its messages.
            let _ = sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 8 << 20);
            let _ = sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 2 << 20);
            Ok(fd)
        };
        Ok(Self {
            fd: open().map_err(|source| NetlinkError::Socket { what: "open".into(), source })?,
            sequence: Cell::new(0),
        })
    }

    fn next_sequence(&self) -> u32 {
        self.sequence.set(self.sequence.get().wrapping_add(1));
        self.sequence.get()
    }

    fn receive(&self, what: &str, wait: bool) -> Result<Vec<u8>, NetlinkError> {
        let mut buffer = vec![0; 64 << 10];
        let n = sys::receive(&self.fd, &mut buffer, wait)
            .map_err(|source| NetlinkError::Socket { what: what.to_owned(), source })?;
        if n > buffer.len() {
            return Err(NetlinkError::Malformed { what: what.to_owned() });
        }
        buffer.truncate(n);
        Ok(buffer)
    }

    fn send(&self, what: &str, bytes: &[u8]) -> Result<(), NetlinkError> {
        sys::send(&self.fd, bytes).map_err(|source| NetlinkError::Socket { what: what.to_owned(), source })
    }

    /// Sends a dump request and collects its answers.
    pub fn dump(&self, what: &str, message: Message) -> Result<Vec<Answer>, NetlinkError> {
        let mut message = message;
        let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]) | libc::NLM_F_DUMP as u16;
        message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        let sequence = self.next_sequence();
        self.send(what, &message.finish(sequence))?;
        let mut answers = Vec::new();
        loop {
            for answer in messages(&self.receive(what, true)?) {
                if answer.sequence != sequence {
                    continue;
                }
                match i32::from(answer.kind) {
                    libc::NLMSG_DONE => return Ok(answers),
                    libc::NLMSG_ERROR => {
                        acknowledgement(what, &answer)?;
                        return Ok(answers);
                    }
                    _ => answers.push(answer),
                }
            }
        }
    }

    /// Sends messages between begin and end of an nftables transaction: all happen or none.
    pub fn transaction(&self, what: &str, items: Vec<(String, Message)>) -> Result<(), NetlinkError> {
        // struct nfgenmsg: family, version, resource id (the subsystem) in network order.
        let mut header = [0_u8; 4];
        header[2..4].copy_from_slice(&(libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes());
        let first = self.next_sequence();
        let mut bytes = Message::new(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, &header).finish(first);
        let mut names = vec![what.to_owned()];
        let count = items.len();
        for (i, (name, mut message)) in items.into_iter().enumerate() {
            if i + 1 == count {
                let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]) | libc::NLM_F_ACK as u16;
                message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
            }
            names.push(name);
            bytes.extend(message.finish(self.next_sequence()));
        }
        let last = self.sequence.get();
        bytes.extend(Message::new(libc::NFNL_MSG_BATCH_END as u16, 0, &header).finish(self.next_sequence()));
        self.send(what, &bytes)?;
        // The kernel has answered by now: an error for each message that failed, or for the first when the commit did,
        // and the acknowledgement of the last otherwise.
        let mut result = Err(NetlinkError::Malformed { what: what.to_owned() });
        loop {
            let data = match self.receive(what, false) {
                Err(NetlinkError::Socket { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                    return result;
                }
                other => other?,
            };
            for answer in messages(&data) {
                if answer.kind != libc::NLMSG_ERROR as u16 {
                    continue;
                }
                let index = answer.sequence.wrapping_sub(first) as usize;
                let name = names.get(index).map_or(what, String::as_str);
                match acknowledgement(&format!("{what}: {name}"), &answer) {
                    Ok(()) if answer.sequence == last && !matches!(result, Err(NetlinkError::Refused { .. })) => {
                        result = Ok(());
                    }
                    Ok(()) => {}
                    // The first error is the cause, the others follow from it.
                    Err(_) if matches!(result, Err(NetlinkError::Refused { .. })) => {}
                    Err(e) => result = Err(e),
                }
            }
        }
    }
}

/// Reads an `NLMSG_ERROR` body: error number, the request's header, then attributes.
fn acknowledgement(what: &str, answer: &Answer) -> Result<(), NetlinkError> {
    let malformed = || NetlinkError::Malformed { what: what.to_owned() };
    let code = answer.body.get(0..4).ok_or_else(malformed)?;
    let code = i32::from_ne_bytes(code.try_into().map_err(|_| malformed())?);
    if code == 0 {
        return Ok(());
    }
    Err(NetlinkError::Refused {
        what: what.to_owned(),
        errno: io::Error::from_raw_os_error(code.saturating_neg()),
        message: kernel_text(answer.body.get(4..).unwrap_or(&[])),
    })
}

/// The kernel's own words (extended acknowledgement) in what follows the error number: the request's header, then
/// attributes. The socket has `NETLINK_CAP_ACK`, so the request itself is not echoed between them.
#[must_use]
pub fn kernel_text(rest: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    attribute(rest.get(HEADER..)?, NLMSGERR_ATTR_MSG).map(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_laid_out_as_netlink_7_says() {
        let mut m = Message::new(16, 0x400, &[1, 2, 3]);
        m.text(3, "ab").nest(18, |m| {
            m.be32(1, 7);
        });
        let bytes = m.finish(9);
        assert_eq!(bytes.len(), 16 + 4 + 8 + 12);
        assert_eq!(&bytes[0..4], &40_u32.to_ne_bytes());
        assert_eq!(&bytes[6..8], &0x401_u16.to_ne_bytes());
        assert_eq!(&bytes[20..28], &[7, 0, 3, 0, b'a', b'b', 0, 0]);
        assert_eq!(&bytes[28..32], &[12, 0, 18, 0x80]);
        let all: Vec<_> = attributes(&bytes[20..]).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(attribute(all[1].1, 1), Some(&[0, 0, 0, 7][..]));
    }

    #[test]
    fn truncated_answers_end_the_iteration() {
        assert_eq!(attributes(&[5, 0, 1]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(messages(&[40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
    }
}
