//! System calls of this crate.

use crate::buffer::Buffer;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

// Request numbers of linux/if_tun.h; the generic ioctl encoding with type 'T'.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca_u32 as libc::Ioctl;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb_u32 as libc::Ioctl;
const TUNSETOWNER: libc::Ioctl = 0x4004_54cc_u32 as libc::Ioctl;
pub(crate) const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0_u32 as libc::Ioctl;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2_u32 as libc::Ioctl;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8_u32 as libc::Ioctl;
pub(crate) const TUNSETQUEUE: libc::Ioctl = 0x4004_54d9_u32 as libc::Ioctl;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `struct ifreq`: 16 bytes of name, then a union that begins with the flags or the MTU; 40 bytes in all.
fn interface_request(name: &str, flags: u16) -> io::Result<[u8; 40]> {
    let mut request = [0; 40];
    if name.is_empty() || name.len() > 15 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    Ok(request)
}

/// MTU in bytes of the interface of that name, in the network namespace of the calling thread; `ENODEV` without one.
pub(crate) fn interface_mtu(name: &str) -> io::Result<u32> {
    let mut request = interface_request(name, 0)?;
    // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
    let fd =
        unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?) };
    // SAFETY: SIOCGIFMTU reads and writes one struct ifreq, for which `request` has room.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFMTU as libc::Ioctl, request.as_mut_ptr()) })?;
    Ok(u32::from_ne_bytes([request[16], request[17], request[18], request[19]]))
}

/// Attaches a descriptor of `/dev/net/tun` to the tap of that name, making it when absent.
pub(crate) fn tun_attach(fd: &impl AsRawFd, name: &str, flags: u16) -> io::Result<()> {
    let mut request = interface_request(name, flags)?;
    // SAFETY: TUNSETIFF reads and writes one struct ifreq, for which `request` has room.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) })?;
    Ok(())
}

/// Flags of the interface that a descriptor is attached to.
pub(crate) fn tun_flags(fd: &impl AsRawFd) -> io::Result<u16> {
    let mut request = [0u8; 40];
    // SAFETY: TUNGETIFF writes one struct ifreq, for which `request` has room.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, request.as_mut_ptr()) })?;
    Ok(u16::from_ne_bytes([request[16], request[17]]))
}

/// Lets the tap outlive its descriptors.
pub(crate) fn tun_persist(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETPERSIST, 1 as libc::c_ulong) })?;
    Ok(())
}

/// Lets that user attach to the tap.
pub(crate) fn tun_set_owner(fd: &impl AsRawFd, uid: u32) -> io::Result<()> {
    // SAFETY: TUNSETOWNER takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOWNER, libc::c_ulong::from(uid)) })?;
    Ok(())
}

/// Size of the virtio-net header before each frame.
pub(crate) fn tun_set_header_size(fd: &impl AsRawFd, bytes: i32) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) })?;
    Ok(())
}

/// `TUN_F_*` bits that the reader of the tap takes over.
pub(crate) fn tun_set_offloads(fd: &impl AsRawFd, bits: libc::c_ulong) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, bits) })?;
    Ok(())
}

/// `IFF_ATTACH_QUEUE` or `IFF_DETACH_QUEUE` for one queue of a multi-queue tap.
pub(crate) fn tun_set_queue(fd: &impl AsRawFd, flag: u16) -> io::Result<()> {
    let mut request = [0u8; 40];
    request[16..18].copy_from_slice(&flag.to_ne_bytes());
    // SAFETY: TUNSETQUEUE reads one struct ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETQUEUE, request.as_ptr()) })?;
    Ok(())
}

/// Makes a descriptor non-blocking.
pub(crate) fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: plain flag changes on a descriptor.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// An integer socket option.
pub(crate) fn socket_option(fd: &impl AsRawFd, name: libc::c_int) -> io::Result<libc::c_int> {
    let (mut value, mut len) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `len` bytes to `value`.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len) })?;
    Ok(value)
}

/// Whether a socket has a peer; `ENOTCONN` when not.
pub(crate) fn peer(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `address`.
    check(unsafe { libc::getpeername(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) })?;
    Ok(())
}

/// Two connected packet sockets.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for both descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    // SAFETY: fresh descriptors, owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

fn count(buffers: &[Buffer]) -> libc::c_int {
    buffers.len().min(crate::MAX_BUFFERS) as libc::c_int
}

/// `readv(2)`.
pub(crate) fn read(fd: RawFd, buffers: &[Buffer]) -> io::Result<usize> {
    // SAFETY: a `Buffer` is an iovec, of memory that is mapped while it is used.
    let got = unsafe { libc::readv(fd, buffers.as_ptr().cast(), count(buffers)) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// `writev(2)`.
pub(crate) fn write(fd: RawFd, buffers: &[Buffer]) -> io::Result<usize> {
    // SAFETY: as in `read`.
    let sent = unsafe { libc::writev(fd, buffers.as_ptr().cast(), count(buffers)) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Moves the calling thread into a new network namespace.
#[cfg(test)]
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    Ok(())
}
