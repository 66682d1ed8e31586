//! A tap in a network namespace of its own, and a packet socket beside it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

const NAME: &[u8] = b"tap0";
/// `TUNSETIFF`, `_IOW('T', 202, int)`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// `ifreq`: a name and 24 bytes.
#[repr(C)]
struct Ifreq {
    name: [u8; 16],
    data: [u8; 24],
}

fn ifreq() -> Ifreq {
    let mut request = Ifreq { name: [0; 16], data: [0; 24] };
    request.name[..NAME.len()].copy_from_slice(NAME);
    request
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(fd: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: callers pass what a system call has just made.
    check(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A tap and the host's end of it. Both live in a network namespace that ends with them.
#[derive(Debug)]
pub struct Cable {
    /// For [`crate::Setup::tap`].
    pub tap: OwnedFd,
    /// The host's end.
    pub host: Frames,
}

/// Sends and receives whole Ethernet frames.
#[derive(Debug)]
pub struct Frames {
    socket: OwnedFd,
}

impl Cable {
    /// Makes one. The calling thread stays in its namespace.
    ///
    /// # Errors
    /// Without the rights to make namespaces and taps.
    pub fn new() -> io::Result<Self> {
        // Namespaces belong to threads.
        std::thread::spawn(Self::make).join().unwrap_or_else(|_| Err(io::Error::other("thread died")))
    }

    fn make() -> io::Result<Self> {
        // SAFETY: flags only.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        // SAFETY: the path is a C string.
        let tap = own(unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })?;
        let mut request = ifreq();
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
        request.data[..2].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the kernel reads and writes one `ifreq`.
        check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF as _, &mut request) })?;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: numbers only.
        let socket =
            own(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) })?;
        // Up before the socket is bound, or the socket remembers that it was down.
        let mut request = ifreq();
        request.data[..2].copy_from_slice(&(libc::IFF_UP as u16).to_ne_bytes());
        // SAFETY: the kernel reads one `ifreq`.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })?;
        let mut request = ifreq();
        // SAFETY: the kernel reads and writes one `ifreq`.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX as _, &mut request) })?;
        let index = i32::from_ne_bytes([request.data[0], request.data[1], request.data[2], request.data[3]]);
        // SAFETY: all zeros is a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is initialised and `len` is its length.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(Self { tap, host: Frames { socket } })
    }
}

impl Frames {
    /// Sends a frame.
    ///
    /// # Errors
    /// When the interface is gone or its queue is full.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame within `limit`; 0 when there is none. Frames that we sent come, too.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn receive(&self, frame: &mut [u8], limit: Duration) -> io::Result<usize> {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd.
        if check(unsafe { libc::poll(&mut poll, 1, ms) })? == 0 {
            return Ok(0);
        }
        // SAFETY: the buffer is valid for its length.
        let got = unsafe { libc::recv(self.socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }
}
