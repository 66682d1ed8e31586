//! Network interfaces by ioctl (netdevice(7)): up, address, MTU, routes.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::ffi::CString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

/// A socket to configure interfaces with.
pub struct Interfaces(OwnedFd);

impl Interfaces {
    /// Opens the control socket.
    ///
    /// # Errors
    /// When the kernel has no IPv4.
    pub fn open() -> io::Result<Self> {
        Ok(Self(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?))
    }

    /// Sets the interface up.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn up(&self, name: &str) -> io::Result<()> {
        let mut request = request(name)?;
        self.call(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: the kernel has just filled the flags member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        self.call(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Hardware address of an Ethernet interface.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn mac(&self, name: &str) -> io::Result<[u8; 6]> {
        let mut request = request(name)?;
        self.call(libc::SIOCGIFHWADDR, &mut request)?;
        // SAFETY: the kernel has just filled the hardware address member.
        let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
        Ok(std::array::from_fn(|i| data[i].cast_unsigned()))
    }

    /// Sets the MTU in bytes.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn set_mtu(&self, name: &str, mtu: u16) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_mtu = mtu.into();
        self.call(libc::SIOCSIFMTU, &mut request)
    }

    /// Replaces the IPv4 address; the unspecified address removes it, with its routes.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn set_address(&self, name: &str, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_addr = socket_address(address);
        self.call(libc::SIOCSIFADDR, &mut request)?;
        if address.is_unspecified() {
            return Ok(());
        }
        request.ifr_ifru.ifru_netmask = socket_address(mask(prefix_len));
        self.call(libc::SIOCSIFNETMASK, &mut request)
    }

    /// Adds a route over `name`; an unspecified gateway means on the link. One that is there already is no error.
    ///
    /// # Errors
    /// When the gateway is not reachable.
    pub fn add_route(
        &self,
        name: &str,
        destination: Ipv4Addr,
        prefix_len: u8,
        gateway: Ipv4Addr,
        metric: u8,
    ) -> io::Result<()> {
        let device = CString::new(name)?;
        // SAFETY: an all-zero rtentry is a valid value of this plain C structure.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::from(u32::from(destination) & u32::from(mask(prefix_len))));
        route.rt_genmask = socket_address(mask(prefix_len));
        route.rt_flags = libc::RTF_UP;
        if !gateway.is_unspecified() {
            route.rt_gateway = socket_address(gateway);
            route.rt_flags |= libc::RTF_GATEWAY;
        }
        if prefix_len == 32 {
            route.rt_flags |= libc::RTF_HOST;
        }
        // The ioctl's metric is one more than the route's (route(8)).
        route.rt_metric = libc::c_short::from(metric) + 1;
        route.rt_dev = device.as_ptr().cast_mut();
        // SAFETY: SIOCADDRT reads one rtentry and the device name it points to; both live until the call returns.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCADDRT as libc::Ioctl, &raw const route) };
        match nix::errno::Errno::result(result) {
            Ok(_) | Err(nix::errno::Errno::EEXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn call(&self, code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: every code used here reads and writes one ifreq, which lives until the call returns.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), code as libc::Ioctl, request) };
        nix::errno::Errno::result(result)?;
        Ok(())
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero ifreq is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn mask(prefix_len: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0))
}

/// `sockaddr_in` in the shape of the generic `sockaddr`: family, two bytes of port, four of address.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_follow_the_prefix_length() {
        let cases = [(0, [0, 0, 0, 0]), (8, [255, 0, 0, 0]), (25, [255, 255, 255, 128]), (32, [255; 4])];
        for (prefix_len, octets) in cases {
            assert_eq!(mask(prefix_len), Ipv4Addr::from(octets));
        }
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert!(request("eth0").is_ok());
        assert!(request("a-name-of-16-byt").is_err());
        assert!(request("a\0b").is_err());
    }

    #[test]
    fn the_loopback_interface_has_no_hardware_address() {
        assert_eq!(Interfaces::open().unwrap().mac("lo").unwrap(), [0; 6]);
        assert!(Interfaces::open().unwrap().mac("none-such").is_err());
    }
}
