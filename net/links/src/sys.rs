//! System calls of this crate.

use crate::buffer::Buffer;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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

/// Locks one byte of a file for this open file alone (fcntl(2), `F_OFD_SETLK`), waiting for it or not; `WouldBlock` when it
/// is taken.
pub(crate) fn lock_byte(file: &impl AsRawFd, at: u8, wait: bool) -> io::Result<()> {
    let command = if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
    loop {
        return match set_lock(file, at, command, libc::F_WRLCK) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            // Either number means that it is taken (POSIX fcntl).
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => Err(io::ErrorKind::WouldBlock.into()),
            other => other,
        };
    }
}

/// Ends [`lock_byte`].
pub(crate) fn unlock_byte(file: &impl AsRawFd, at: u8) -> io::Result<()> {
    set_lock(file, at, libc::F_OFD_SETLK, libc::F_UNLCK)
}

fn set_lock(file: &impl AsRawFd, at: u8, command: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    let request = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at.into(),
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the kernel reads one structure.
    check(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const request) })?;
    Ok(())
}

/// A packet socket that never waits, and the address of `path`.
fn packet_socket(path: &Path) -> io::Result<(OwnedFd, libc::sockaddr_un)> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a path of 1 to 107 bytes"));
    }
    for (slot, byte) in address.sun_path.iter_mut().zip(bytes) {
        *slot = *byte as libc::c_char;
    }
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: a fresh descriptor, owned by nobody else.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address))
}

const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

/// A packet socket that listens at `path`, which must not exist.
pub(crate) fn listen_for_packets(path: &Path, backlog: libc::c_int) -> io::Result<OwnedFd> {
    let (fd, address) = packet_socket(path)?;
    // SAFETY: the kernel reads one address of that length.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    Ok(fd)
}

/// A packet socket connected to the one that listens at `path`; `WouldBlock` when too many wait there.
pub(crate) fn connect_for_packets(path: &Path) -> io::Result<OwnedFd> {
    let (fd, address) = packet_socket(path)?;
    // SAFETY: the kernel reads one address of that length.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) })?;
    Ok(fd)
}

/// The next connection, which never waits; `WouldBlock` when there is none.
pub(crate) fn accept_packets(listener: &impl AsRawFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the address is not wanted.
    let fd = check(unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) })?;
    // SAFETY: a fresh descriptor, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that is readable when one of those it watches has news.
pub(crate) fn watch() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) })
}

/// Watches `fd`, edge-triggered in both directions, until it is closed.
pub(crate) fn watch_edges(watch: &OwnedFd, fd: &impl AsRawFd) -> io::Result<()> {
    let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET) as u32, u64: 0 };
    // SAFETY: the kernel reads one event.
    check(unsafe { libc::epoll_ctl(watch.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event) })?;
    Ok(())
}

/// Whether something that is watched has news; looking takes them.
#[cfg(test)]
pub(crate) fn watch_has_news(watch: &OwnedFd) -> bool {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the kernel writes at most one event.
    unsafe { libc::epoll_wait(watch.as_raw_fd(), &raw mut event, 1, 0) == 1 }
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
