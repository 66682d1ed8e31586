//! A cable straight to another VM or program: a Unix packet socket, no kernel network in between.
//!
//! One packet is one complete Ethernet frame, without any header of ours, as QEMU's `-netdev dgram` has it. Since the
//! other end is a stranger, nothing is left to it: no checksum, no segmentation. Give both ends a large MTU (up to
//! 65521) for speed.

use crate::buffer::{after, write_at};
use crate::{Buffer, HEADER, Link, sys};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// One end of the cable.
#[derive(Debug)]
pub struct UnixLink {
    fd: OwnedFd,
    /// `SOCK_SEQPACKET`: an empty packet means that the other end is gone.
    ends: bool,
}

/// Both ends of a new cable, to be given to two VMMs. `SOCK_SEQPACKET`: more frames fit than into `SOCK_DGRAM`, and an end
/// sees that the other is gone.
///
/// # Errors
/// When descriptors run out.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    sys::packet_pair()
}

impl UnixLink {
    /// Takes a connected `SOCK_SEQPACKET` or `SOCK_DGRAM` socket.
    ///
    /// # Errors
    /// When it is something else.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let (domain, kind) = (sys::socket_option(&fd, libc::SO_DOMAIN)?, sys::socket_option(&fd, libc::SO_TYPE)?);
        if domain != libc::AF_UNIX || !matches!(kind, libc::SOCK_DGRAM | libc::SOCK_SEQPACKET) {
            let text = "expected a Unix socket of type SOCK_SEQPACKET or SOCK_DGRAM";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        sys::peer(&fd)?;
        sys::set_nonblocking(&fd)?;
        Ok(Self { fd, ends: kind == libc::SOCK_SEQPACKET })
    }

    /// Takes a connected `SOCK_SEQPACKET` socket that never waits, without looking.
    pub(crate) fn connected(fd: OwnedFd) -> Self {
        Self { fd, ends: true }
    }
}

impl Link for UnixLink {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn receive(&self, buffers: &mut [Buffer]) -> io::Result<usize> {
        let got = after(buffers, HEADER, |rest| sys::read(self.fd(), rest)).unwrap_or(Ok(0))?;
        if got == 0 && self.ends {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        write_at(buffers, 0, &[0; HEADER]);
        Ok(HEADER + got)
    }

    /// The header is not looked at: a driver that was offered nothing has nothing to say there.
    fn transmit(&self, buffers: &mut [Buffer]) -> io::Result<usize> {
        let empty = || Err(io::ErrorKind::InvalidInput.into());
        let sent = after(buffers, HEADER, |rest| sys::write(self.fd(), rest)).unwrap_or_else(empty)?;
        Ok(HEADER + sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Offloads;

    fn cable() -> (UnixLink, UnixLink) {
        let (a, b) = pair().unwrap();
        (UnixLink::adopt(a).unwrap(), UnixLink::adopt(b).unwrap())
    }

    /// Buffers of `memory`, cut at every `piece` bytes.
    fn pieces(memory: &mut [u8], piece: usize) -> Vec<Buffer> {
        // SAFETY: the callers keep the memory and read it only after the last use of the buffers.
        #[allow(unsafe_code)]
        memory.chunks_mut(piece).map(|chunk| unsafe { Buffer::new(chunk.as_mut_ptr(), chunk.len()) }).collect()
    }

    #[test]
    fn frames_arrive_whole_behind_an_empty_header() {
        let (a, b) = cable();
        for piece in [5, HEADER, 64, 4096] {
            let mut sent: Vec<u8> = (0..212).map(|n| n as u8).collect();
            assert_eq!(a.transmit(&mut pieces(&mut sent, piece)).unwrap(), sent.len());
            let mut got = vec![0xee; 300];
            assert_eq!(b.receive(&mut pieces(&mut got, piece)).unwrap(), sent.len());
            assert_eq!(got[..HEADER], [0; HEADER]);
            assert_eq!(got[HEADER..sent.len()], sent[HEADER..]);
            assert_eq!(got[sent.len()..], [0xee; 88]);
        }
    }

    #[test]
    fn full_cable_blocks_and_lost_end_is_an_error() {
        let (a, b) = cable();
        let mut frame = vec![1; 60_000];
        let full = (0..1000).find_map(|_| a.transmit(&mut pieces(&mut frame, 4096)).err()).expect("never full");
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let mut got = vec![0; 70_000];
        assert_eq!(b.receive(&mut pieces(&mut got, 4096)).unwrap(), 60_000);
        drop(b);
        // Reset while frames were under way, then a broken pipe; never "try again".
        for _ in 0..2 {
            assert_ne!(a.transmit(&mut pieces(&mut frame, 4096)).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        assert_eq!(a.receive(&mut pieces(&mut got, 4096)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn only_connected_packet_sockets_are_taken() {
        use std::os::unix::net::{UnixDatagram, UnixStream};
        let stream = UnixStream::pair().unwrap().0;
        assert!(UnixLink::adopt(stream.into()).unwrap_err().to_string().contains("SOCK_SEQPACKET"));
        assert!(UnixLink::adopt(UnixDatagram::unbound().unwrap().into()).is_err(), "no peer");
        let (one, _other) = UnixDatagram::pair().unwrap();
        let link = UnixLink::adopt(one.into()).unwrap();
        assert_eq!(link.offloads(), Offloads::NONE);
        link.set_offloads(Offloads::NONE).unwrap();
        let refused = link.set_offloads(Offloads { checksum: true, ..Offloads::NONE }).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    }
}
