//! Packets that may carry one descriptor (`SCM_RIGHTS`, unix(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Room for the header and one descriptor; aligned as the header wants.
type Control = [u64; 4];

const FD_BYTES: u32 = size_of::<RawFd>() as u32;

/// A message header over `part` and `control`, of which `control_bytes` count.
fn header(part: &mut libc::iovec, control: &mut Control, control_bytes: usize) -> libc::msghdr {
    // SAFETY: all zeros is a valid header: no name, no parts.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = part;
    header.msg_iovlen = 1;
    if control_bytes > 0 {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control_bytes as _;
    }
    header
}

/// Sends `text` as one packet, and `fd` with it.
///
/// # Errors
/// As sendmsg(2).
pub(super) fn send(socket: RawFd, text: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
    let mut control: Control = [0; 4];
    // SAFETY: a calculation.
    let space = unsafe { libc::CMSG_SPACE(FD_BYTES) } as usize;
    let header = header(&mut part, &mut control, if fd.is_some() { space } else { 0 });
    if let Some(fd) = fd {
        // SAFETY: `control` has room for one header and one descriptor, which is what the length says.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(FD_BYTES) as _;
            libc::CMSG_DATA(message).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        }
    }
    // SAFETY: the header describes `text` and `control`, which live until the call returns.
    let sent = unsafe { libc::sendmsg(socket, &header, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(sent) if sent == text.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Receives one packet into `buf`, and at most one descriptor; the kernel closes others.
///
/// # Errors
/// As recvmsg(2).
pub(super) fn receive(socket: RawFd, buf: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut control: Control = [0; 4];
    // SAFETY: a calculation. One descriptor fits, not two.
    let space = unsafe { libc::CMSG_LEN(FD_BYTES) } as usize;
    let mut header = header(&mut part, &mut control, space);
    // SAFETY: the header describes `buf` and `control`, which live until the call returns.
    let got = unsafe { libc::recvmsg(socket, &mut header, libc::MSG_CMSG_CLOEXEC) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled in as much as `msg_controllen` says; the pointer is null when that is no message.
    let fd = unsafe {
        let message = libc::CMSG_FIRSTHDR(&header);
        let is_fd = !message.is_null()
            && (*message).cmsg_level == libc::SOL_SOCKET
            && (*message).cmsg_type == libc::SCM_RIGHTS
            && (*message).cmsg_len as usize >= space;
        // The kernel made the descriptor for us, and nobody else owns it.
        is_fd.then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(message).cast::<RawFd>().read_unaligned()))
    };
    Ok((got, fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn packet_arrives_with_its_descriptor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut kept, given) = UnixStream::pair().unwrap();
        send(ours.as_raw_fd(), b"take this", Some(&given.into())).unwrap();
        let mut buf = [0; 32];
        let (got, fd) = receive(theirs.as_raw_fd(), &mut buf).unwrap();
        assert_eq!(&buf[..got], b"take this");
        // The sender's copy is closed: the one that arrived is the last.
        drop(fd.unwrap());
        assert_eq!(kept.read(&mut buf).unwrap(), 0);
        send(ours.as_raw_fd(), b"nothing", None).unwrap();
        assert!(matches!(receive(theirs.as_raw_fd(), &mut buf), Ok((7, None))));
    }
}
