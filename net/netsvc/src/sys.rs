//! System calls that the standard library does not have.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

fn check(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Interest of one descriptor in [`poll`].
#[derive(Debug, Clone, Copy)]
pub struct Interest {
    /// The descriptor.
    pub fd: RawFd,
    /// Wait for room to write (or a connection made) instead of for data.
    pub write: bool,
}

/// Waits until one is ready (or in error) or the time is over; says which are.
pub fn poll(interests: &[Interest], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut fds: Vec<libc::pollfd> = interests
        .iter()
        .map(|i| libc::pollfd { fd: i.fd, events: if i.write { libc::POLLOUT } else { libc::POLLIN }, revents: 0 })
        .collect();
    let time = timeout.map(|t| libc::timespec {
        tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(t.subsec_nanos() as i32),
    });
    let time_pointer = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and its length belong together; the time is null or outlives the call; no signal mask.
    let n = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, time_pointer, std::ptr::null()) };
    match check(n as isize) {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(vec![false; fds.len()]),
        Err(e) => Err(e),
        Ok(_) => Ok(fds.iter().map(|f| f.revents != 0).collect()),
    }
}

/// Receives one datagram or packet.
pub fn receive(fd: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buffer`.
    check(unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_TRUNC) })
}

/// Sends one packet on a connected socket.
pub fn send(fd: &impl AsRawFd, data: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `data`.
    check(unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL) })?;
    Ok(())
}

/// A packet from a packet socket.
#[derive(Debug)]
pub struct PacketInfo {
    /// Bytes received.
    pub len: usize,
    /// MAC it came from.
    pub from: [u8; 6],
    /// Its UDP checksum was left to hardware and is not filled in.
    pub checksum_pending: bool,
}

/// Receives from an AF_PACKET SOCK_DGRAM socket with PACKET_AUXDATA.
pub fn receive_packet(fd: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<PacketInfo> {
    // SAFETY: all zeroes are valid values of these structures.
    let (mut address, mut header): (libc::sockaddr_ll, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut control = [0_u64; 16];
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    header.msg_name = (&raw mut address).cast();
    header.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = std::mem::size_of_val(&control) as _;
    // SAFETY: `header` points to buffers that outlive the call, each with its length.
    let len = check(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, 0) })?;
    let mut checksum_pending = false;
    // SAFETY: the kernel filled `control` and set its length; CMSG_* stay within it, and the data of a PACKET_AUXDATA
    // message is a tpacket_auxdata, read unaligned.
    unsafe {
        let mut c = libc::CMSG_FIRSTHDR(&raw const header);
        while !c.is_null() {
            if (*c).cmsg_level == libc::SOL_PACKET && (*c).cmsg_type == libc::PACKET_AUXDATA {
                let aux: libc::tpacket_auxdata = std::ptr::read_unaligned(libc::CMSG_DATA(c).cast());
                checksum_pending = aux.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0;
            }
            c = libc::CMSG_NXTHDR(&raw const header, c);
        }
    }
    let mut from = [0; 6];
    from.copy_from_slice(&address.sll_addr[..6]);
    Ok(PacketInfo { len, from, checksum_pending })
}

/// Sends an IPv4 packet over an AF_PACKET SOCK_DGRAM socket to a MAC.
pub fn send_packet(fd: &impl AsRawFd, interface_index: u32, to: [u8; 6], data: &[u8]) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = 0x0800_u16.to_be();
    address.sll_ifindex = interface_index.cast_signed();
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&to);
    // SAFETY: pointers and lengths describe `data` and `address`.
    check(unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            libc::MSG_NOSIGNAL,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Disconnects a socket, then connects it: it gets a fresh random port. A TCP connection may still be under way after it.
pub fn reconnect(fd: &impl AsRawFd, to: SocketAddr) -> io::Result<()> {
    disconnect(fd)?;
    let SocketAddr::V4(to) = to else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: pointer and length describe `address`.
    let n = unsafe {
        libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_in>() as libc::socklen_t)
    };
    match check(n as isize) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other.map(drop),
    }
}

/// Ends a connection and keeps the socket.
pub fn disconnect(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sockaddr, of family AF_UNSPEC; pointer and length describe it.
    let n = unsafe {
        let address: libc::sockaddr = std::mem::zeroed();
        libc::connect(fd.as_raw_fd(), &raw const address, size_of::<libc::sockaddr>() as libc::socklen_t)
    };
    match check(n as isize) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
        other => other.map(drop),
    }
}

/// Accepts from a listening socket; non-blocking, close-on-exec.
pub fn accept(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: null address is allowed; a non-negative result is a fresh descriptor.
    unsafe {
        let n = libc::accept4(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        );
        check(n as isize)?;
        Ok(OwnedFd::from_raw_fd(n))
    }
}

/// A random number from the kernel.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // SAFETY: pointer and length describe `bytes`.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if check(n)? != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(u64::from_ne_bytes(bytes))
}

/// Gives up the right to gain privileges by exec.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } as isize)?;
    Ok(())
}
