//! The few system calls that both sides need.

use std::ffi::CString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

pub fn mount(kind: &str, target: &str) {
    let _ = std::fs::create_dir_all(target);
    let (kind, target) = (CString::new(kind).unwrap(), CString::new(target).unwrap());
    // SAFETY: valid C strings; no data.
    unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
}

pub fn power_off() -> ! {
    // SAFETY: numbers only; does not return for PID 1.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    std::process::exit(0)
}

/// `ifreq`: a name and 24 bytes.
#[repr(C)]
pub struct Ifreq {
    pub name: [u8; 16],
    pub data: [u8; 24],
}

pub fn ifreq(name: &str) -> Ifreq {
    let mut request = Ifreq { name: [0; 16], data: [0; 24] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request
}

pub fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives an interface an address in a /24 and brings it up.
pub fn configure(name: &str, address: Ipv4Addr) -> io::Result<()> {
    // SAFETY: numbers only.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(socket)?;
    let inet = |address: Ipv4Addr| {
        let mut request = ifreq(name);
        request.data[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        request.data[4..8].copy_from_slice(&address.octets());
        request
    };
    let mut up = ifreq(name);
    up.data[..2].copy_from_slice(&(libc::IFF_UP as u16).to_ne_bytes());
    for (number, request) in [
        (libc::SIOCSIFADDR, inet(address)),
        (libc::SIOCSIFNETMASK, inet(Ipv4Addr::new(255, 255, 255, 0))),
        (libc::SIOCSIFFLAGS, up),
    ] {
        // SAFETY: the kernel reads one `ifreq`.
        check(unsafe { libc::ioctl(socket, number, &request) })?;
    }
    // SAFETY: ours.
    check(unsafe { libc::close(socket) })
}

/// Has the kernel cut TCP into frames itself for this interface, instead of leaving that to it (TSO off).
pub fn send_frame_by_frame(name: &str) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    /// Of linux/ethtool.h.
    const ETHTOOL_STSO: u32 = 0x1f;
    // `struct ethtool_value`: what to set, and to what.
    let value = [ETHTOOL_STSO, 0];
    let mut request = ifreq(name);
    request.data[..8].copy_from_slice(&(value.as_ptr() as usize).to_ne_bytes());
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the kernel reads one `ifreq`, and the `ethtool_value` that it points at.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &mut request) })
}
