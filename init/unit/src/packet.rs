//! One packet of a `SOCK_SEQPACKET` socket, with descriptors (`SCM_RIGHTS`, unix(7)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Largest packet in bytes: fits an ordinary send buffer (208 KiB) three times.
pub const MAX_PACKET: usize = 64 * 1024;
/// Most descriptors in one packet: the largest app (its own files, 20 disks, 16 pairs of tap and vhost) twice over, and
/// below the kernel's 253 (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 128;
/// What the kernel may deliver at once: with room for it nothing is cut off.
const KERNEL_MAX_FDS: usize = 253;
/// Words of a control buffer for as many descriptors; `u64` for the header's alignment.
const CONTROL_WORDS: usize = 2 + KERNEL_MAX_FDS * size_of::<RawFd>() / 8 + 2;

/// A packet that arrived.
#[derive(Debug)]
pub struct Packet {
    /// Its length in bytes, which may be more than the buffer had room for; 0 when the peer has closed.
    pub length: usize,
    /// Its descriptors in order, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

fn header(part: &mut libc::iovec, control: &mut [u64], bytes: usize) -> libc::msghdr {
    // SAFETY: all zeros is a valid header: no name, no parts.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = part;
    header.msg_iovlen = 1;
    if bytes > 0 {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = bytes as _;
    }
    header
}

/// Sends `bytes` as one packet with these descriptors.
///
/// # Errors
/// As sendmsg(2); more than [`MAX_FDS`] descriptors are `InvalidInput`.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} descriptors in one packet", fds.len())));
    }
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = [0u64; CONTROL_WORDS];
    let payload = (fds.len() * size_of::<RawFd>()) as u32;
    // SAFETY: a calculation.
    let space = if fds.is_empty() { 0 } else { unsafe { libc::CMSG_SPACE(payload) as usize } };
    let header = header(&mut part, &mut control, space);
    if !fds.is_empty() {
        // SAFETY: `control` has room for one header and MAX_FDS descriptors, which is what the lengths say.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(payload) as _;
            let data = libc::CMSG_DATA(message).cast::<RawFd>();
            for (n, fd) in fds.iter().enumerate() {
                data.add(n).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: the header describes `bytes` and `control`, which live until the call returns.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}

/// Receives one packet into `buffer`.
///
/// # Errors
/// As recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Packet> {
    loop {
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut control = [0u64; CONTROL_WORDS];
        let mut header = header(&mut part, &mut control, CONTROL_WORDS * 8);
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC;
        // SAFETY: the header describes `buffer` and `control`, which live until the call returns.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, flags) };
        let Ok(length) = usize::try_from(got) else {
            match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => continue,
                e => return Err(e),
            }
        };
        return Ok(Packet { length, fds: rights(&header) });
    }
}

/// The descriptors that the kernel put into a header's control buffer.
fn rights(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled in as many messages as `msg_controllen` says, each with its own length; the pointers
    // of the macros stay inside the buffer or are null.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS {
                let bytes = ((*message).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                for n in 0..bytes / size_of::<RawFd>() {
                    // The kernel made the descriptor for us, and nobody else owns it.
                    fds.push(OwnedFd::from_raw_fd(data.add(n).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    fds
}

/// A connected pair of packet sockets, close-on-exec and blocking.
///
/// # Errors
/// As socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: the kernel writes two numbers.
    let done =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: two fresh descriptors, owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// A non-blocking, close-on-exec packet socket and the address of `path`.
fn socket_for(path: &Path) -> io::Result<(OwnedFd, libc::sockaddr_un)> {
    // SAFETY: all zeros is a valid address structure.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket path is longer than 107 bytes"));
    }
    for (slot, byte) in address.sun_path.iter_mut().zip(bytes) {
        *slot = *byte as libc::c_char;
    }
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory involved.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor, owned by nobody else.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address))
}

const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

/// A non-blocking socket connected to the listener at `path`.
///
/// # Errors
/// As connect(2): `NotFound` or `ConnectionRefused` when nobody listens, `WouldBlock` when too many wait already.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let (socket, address) = socket_for(path)?;
    // SAFETY: the address is initialised and the length is its size.
    let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// A non-blocking listener at `path`, where up to `backlog` connections wait. A socket that an earlier run left there is
/// replaced.
///
/// # Errors
/// When the old one cannot be removed, or as bind(2) and listen(2).
pub fn listen(path: &Path, backlog: u8) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (socket, address) = socket_for(path)?;
    // SAFETY: the address is initialised and the length is its size.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no memory involved.
    if unsafe { libc::listen(socket.as_raw_fd(), backlog.into()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// A waiting connection of a listener, non-blocking and close-on-exec; `None` when none waits.
///
/// # Errors
/// As accept(2).
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the address is not wanted.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    if fd < 0 {
        return match io::Error::last_os_error() {
            e if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => Ok(None),
            e => Err(e),
        };
    }
    // SAFETY: a fresh descriptor, owned by nobody else.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Makes a descriptor non-blocking.
///
/// # Errors
/// As fcntl(2).
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: reads flags.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: sets flags.
    if flags < 0 || unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Waits until `fd` can be read or, with `write`, be written (or is in error). False when `timeout` passed first.
///
/// # Errors
/// As ppoll(2).
pub fn wait(fd: BorrowedFd<'_>, write: bool, deadline: std::time::Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let time = libc::timespec {
            tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(left.subsec_nanos().cast_signed()),
        };
        let events = if write { libc::POLLOUT } else { libc::POLLIN };
        let mut slot = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        // SAFETY: one slot, a time that lives until the call returns, no signal mask.
        match unsafe { libc::ppoll(&mut slot, 1, &time, std::ptr::null()) } {
            0 if left.is_zero() => return Ok(false),
            0 => {}
            n if n > 0 => return Ok(true),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsFd as _;

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn as_many_descriptors_as_allowed_arrive_in_order() {
        let (a, b) = pair().unwrap();
        let files: Vec<File> = (0..MAX_FDS).map(|n| file(&n.to_string())).collect();
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(|f| f.as_fd()).collect();
        send(a.as_fd(), b"take these", &fds).unwrap();
        let mut buffer = [0; 32];
        let packet = receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..packet.length], packet.fds.len()), (&b"take these"[..], MAX_FDS));
        for (n, fd) in packet.fds.into_iter().enumerate() {
            // SAFETY: reads a flag.
            assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
            let mut text = String::new();
            File::from(fd).read_to_string(&mut text).unwrap();
            assert_eq!(text, n.to_string());
        }
    }

    #[test]
    fn one_descriptor_too_many_is_not_sent() {
        let (a, _b) = pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let fds = vec![null.as_fd(); MAX_FDS + 1];
        assert_eq!(send(a.as_fd(), b"x", &fds).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_packet_longer_than_the_buffer_tells_its_length() {
        let (a, b) = pair().unwrap();
        send(a.as_fd(), &[7; 100], &[]).unwrap();
        assert_eq!(receive(b.as_fd(), &mut [0; 10]).unwrap().length, 100);
    }

    #[test]
    fn a_listener_replaces_the_socket_of_an_earlier_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl");
        drop(listen(&path, 1).unwrap());
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let listener = listen(&path, 1).unwrap();
        assert!(accept(listener.as_fd()).unwrap().is_none());
        let client = connect(&path).unwrap();
        let server = accept(listener.as_fd()).unwrap().unwrap();
        send(client.as_fd(), b"hello", &[]).unwrap();
        assert_eq!(receive(server.as_fd(), &mut [0; 8]).unwrap().length, 5);
    }
}
