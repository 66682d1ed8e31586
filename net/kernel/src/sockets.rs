//! Opens what a `netsvc` process inherits: it has no privilege to open anything itself.

use crate::error::NetlinkError;
use crate::rtnl::Rtnl;
use crate::sys;
use holdfast_model::contract::Version;
use holdfast_model::contract::network::{ClientSockets, Mode, NetworkSockets, ServiceDocument};
use holdfast_plan::kinds::service::{Service, ServiceKind};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

/// Descriptor of the service's listening control socket; 3 is its configuration.
pub const CONTROL_FD: i32 = 4;
/// Descriptor of the first of [`Prepared::sockets`]; the others follow in order.
pub const FIRST_SOCKET_FD: i32 = 5;
/// DNS queries that a service can have under way at one upstream server.
const UPSTREAM_UDP: usize = 32;
/// The same over TCP.
const UPSTREAM_TCP: usize = 4;

/// A service ready to be started.
#[derive(Debug)]
pub struct Prepared {
    /// To be placed at [`FIRST_SOCKET_FD`] and up in the service.
    pub sockets: Vec<OwnedFd>,
    /// To be given as JSON on descriptor 3. Names the control socket as [`CONTROL_FD`].
    pub config: ServiceDocument,
}

/// Collects sockets and says the number each will have.
struct Plate(Vec<OwnedFd>);

impl Plate {
    fn put(&mut self, fd: OwnedFd) -> i32 {
        self.0.push(fd);
        FIRST_SOCKET_FD + self.0.len() as i32 - 1
    }
}

/// Opens the sockets of a service, in the network namespace of the calling thread.
pub async fn prepare(rtnl: &Rtnl, service: &Service) -> Result<Prepared, NetlinkError> {
    let link = rtnl.link(&service.link).await?;
    let mut plate = Plate(Vec::new());
    let failed = |e: io::Error| NetlinkError::io(format!("sockets of service {}", service.name), e);
    let mode = match &service.kind {
        ServiceKind::Network { uplink, service: tables, address } => {
            let IpAddr::V4(gateway) = address.address else {
                return Err(failed(io::ErrorKind::Unsupported.into()));
            };
            let sockets = (|| -> io::Result<NetworkSockets> {
                let mut upstream_udp = Vec::new();
                let mut upstream_tcp = Vec::new();
                if let Some(uplink) = uplink {
                    for _ in 0..UPSTREAM_UDP {
                        upstream_udp.push(plate.put(unbound(libc::SOCK_DGRAM, uplink)?));
                    }
                    for _ in 0..UPSTREAM_TCP {
                        upstream_tcp.push(plate.put(unbound(libc::SOCK_STREAM, uplink)?));
                    }
                }
                Ok(NetworkSockets {
                    dhcp: plate.put(dhcp_server(&service.link)?),
                    dhcp_packet: plate.put(packet(link.index, 0)?),
                    interface_index: link.index,
                    dns_udp: plate.put(dns(libc::SOCK_DGRAM, gateway, &service.link)?),
                    dns_tcp: plate.put(dns(libc::SOCK_STREAM, gateway, &service.link)?),
                    upstream_udp,
                    upstream_tcp,
                })
            })()
            .map_err(failed)?;
            Mode::Network { sockets, service: tables.clone() }
        }
        ServiceKind::DhcpClient(parameters) => Mode::DhcpClient {
            sockets: ClientSockets {
                packet: plate.put(dhcp_client(link.index).map_err(failed)?),
                interface_index: link.index,
                mac: link.mac,
            },
            service: parameters.clone(),
        },
    };
    Ok(Prepared { sockets: plate.0, config: ServiceDocument { version: Version, control_fd: CONTROL_FD, mode } })
}

fn bind_device(fd: &OwnedFd, name: &str) -> io::Result<()> {
    sys::set_option_bytes(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_bytes())
}

fn inet(kind: i32, device: &str) -> io::Result<OwnedFd> {
    let fd = sys::socket(libc::AF_INET, kind | libc::SOCK_NONBLOCK, 0)?;
    bind_device(&fd, device)?;
    Ok(fd)
}

/// The service connects and disconnects it for each query: the kernel then picks a fresh random port.
fn unbound(kind: i32, uplink: &str) -> io::Result<OwnedFd> {
    inet(kind, uplink)
}

fn dhcp_server(bridge: &str) -> io::Result<OwnedFd> {
    let fd = inet(libc::SOCK_DGRAM, bridge)?;
    sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_BROADCAST, 1)?;
    sys::bind_v4(&fd, sys::any(67))?;
    Ok(fd)
}

fn dns(kind: i32, gateway: Ipv4Addr, bridge: &str) -> io::Result<OwnedFd> {
    let fd = inet(kind, bridge)?;
    sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    sys::bind_v4(&fd, SocketAddrV4::new(gateway, 53))?;
    if kind == libc::SOCK_STREAM {
        sys::listen(&fd, 16)?;
    }
    Ok(fd)
}

fn packet(index: u32, ether_type: u16) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK;
    // Protocol 0: nothing is queued before the bind.
    let fd = sys::socket(libc::AF_PACKET, kind, 0)?;
    sys::bind_packet(&fd, index, ether_type)?;
    Ok(fd)
}

/// IPv4, UDP, not a later fragment, destination port 68; offsets from the IP header (SOCK_DGRAM packet socket).
const DHCP_REPLIES: [(u16, u8, u8, u32); 9] = [
    (0x30, 0, 0, 9),      // ldb [9]
    (0x15, 0, 6, 17),     // jeq #17
    (0x28, 0, 0, 6),      // ldh [6]
    (0x45, 4, 0, 0x1fff), // jset #0x1fff -> drop
    (0xb1, 0, 0, 0),      // ldxb 4*([0]&0xf)
    (0x48, 0, 0, 2),      // ldh [x + 2]
    (0x15, 0, 1, 68),     // jeq #68
    (0x06, 0, 0, 0x4_0000),
    (0x06, 0, 0, 0),
];

fn dhcp_client(index: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK;
    let fd = sys::socket(libc::AF_PACKET, kind, 0)?;
    sys::attach_filter(&fd, &DHCP_REPLIES)?;
    // Tells whether a checksum was left to the (virtual) hardware and is therefore not filled in.
    sys::set_option(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    sys::bind_packet(&fd, index, 0x0800)?;
    Ok(fd)
}
