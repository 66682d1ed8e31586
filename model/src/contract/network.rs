//! The network service (`netsvc`): its document, and the packets of its control socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Document, Version};
use crate::net::Addresses;

/// A MAC address.
pub type Mac = [u8; 6];

/// The document on `--config-fd`. Descriptors are numbers in the service's own table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDocument {
    /// Version of this shape.
    pub version: Version<1>,
    /// Listening SOCK_SEQPACKET socket for [`Request`].
    pub control_fd: i32,
    /// What to do.
    #[serde(flatten)]
    pub mode: Mode,
}

impl Document for ServiceDocument {
    const KIND: &'static str = "network service document";
    const VERSION: u32 = 1;
    const MAX_BYTES: usize = 1 << 20;
}

/// The two kinds of service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum Mode {
    /// DHCP server and DNS forwarder of one network.
    Network {
        /// Its sockets.
        sockets: NetworkSockets,
        /// Its tables.
        service: NetworkService,
    },
    /// DHCP client of one port.
    DhcpClient {
        /// Its socket.
        sockets: ClientSockets,
        /// Its parameters.
        service: ClientService,
    },
}

/// Sockets of a network service, opened by its parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSockets {
    /// UDP socket bound to port 67 and to the bridge.
    pub dhcp: i32,
    /// AF_PACKET SOCK_DGRAM socket, protocol 0, for answers to clients that have no address yet.
    pub dhcp_packet: i32,
    /// Interface index of the bridge.
    pub interface_index: u32,
    /// UDP socket bound to the gateway's port 53.
    pub dns_udp: i32,
    /// TCP socket listening on the gateway's port 53.
    pub dns_tcp: i32,
    /// Unbound UDP sockets for upstream queries, one for each query under way. Empty = air-gapped.
    pub upstream_udp: Vec<i32>,
    /// Unbound TCP sockets for upstream queries.
    pub upstream_tcp: Vec<i32>,
}

/// Tables of a network service; all of it may change while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkService {
    /// What concerns IPv4 alone.
    pub v4: NetworkV4,
    /// Fixed addresses.
    pub assignments: Vec<Assignment>,
    /// Domain handed out and appended to app names; empty when none.
    pub domain: String,
    /// MTU handed out.
    pub mtu: Option<u16>,
    /// Lease time in seconds.
    pub lease_seconds: u32,
    /// Static names.
    pub names: Vec<(String, Vec<IpAddr>)>,
    /// Servers that other names are asked of, best first.
    pub upstreams: Vec<SocketAddr>,
}

/// A network service in IPv4.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkV4 {
    /// Address of the bridge: DHCP server identifier and name server.
    pub gateway: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix_length: u8,
    /// Default router handed out; `None` for an air-gapped network.
    pub router: Option<Ipv4Addr>,
    /// First and last address for clients that no assignment names; `None` = such clients get nothing.
    pub pool: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Classless static routes handed out (RFC 3442), besides the default route.
    pub routes: Vec<StaticRoute>,
}

/// Fixed addresses of one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Client's MAC.
    pub mac: Mac,
    /// Its addresses. DHCP hands out the IPv4 one; DNS answers with both.
    pub addresses: Addresses,
    /// Its host name; empty when none. Answered by DNS.
    pub host_name: String,
}

/// A route handed to clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticRoute {
    /// Destination network.
    pub destination: Ipv4Addr,
    /// Its prefix length.
    pub prefix_length: u8,
    /// Router.
    pub router: Ipv4Addr,
}

/// Socket of a DHCP client, opened by its parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientSockets {
    /// AF_PACKET SOCK_DGRAM socket, protocol IPv4, bound to the interface.
    pub packet: i32,
    /// Interface index.
    pub interface_index: u32,
    /// MAC of the interface.
    pub mac: Mac,
}

/// Parameters of a DHCP client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientService {
    /// Interface name, for messages.
    pub interface: String,
    /// Host name to announce; empty when none.
    pub host_name: String,
}

/// A lease that a DHCP client holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix_length: u8,
    /// Default routers, best first.
    pub routers: Vec<Ipv4Addr>,
    /// Name servers, best first.
    pub dns: Vec<Ipv4Addr>,
    /// Domain; empty when none.
    pub domain: String,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
    /// MTU, when the server gave one.
    pub mtu: Option<u16>,
    /// Classless static routes; when given, `routers` is already replaced by their default route (RFC 3442).
    pub routes: Vec<StaticRoute>,
    /// The server.
    pub server: Ipv4Addr,
    /// Seconds the lease lasts from when it was given.
    pub lease_seconds: u32,
}

/// State of a DHCP client (RFC 2131 figure 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientState {
    /// Waiting for an offer.
    Selecting,
    /// Waiting for the confirmation of an offer.
    Requesting,
    /// Asking for the address it had before.
    Rebooting,
    /// Holding a lease.
    Bound,
    /// Asking the server for more time.
    Renewing,
    /// Asking any server for more time.
    Rebinding,
    /// The link has no carrier.
    Stopped,
}

/// What a DHCP server knows of one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseEntry {
    /// Client.
    pub mac: Mac,
    /// Address.
    pub address: Ipv4Addr,
    /// Host name the client gave; empty when none. A stranger's text: printable ASCII, at most 63 bytes.
    pub host_name: String,
    /// Seconds until it ends.
    pub remaining_seconds: u32,
}

/// Counters of a network service since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// DHCP messages answered.
    pub dhcp_answered: u64,
    /// DHCP packets refused or not understood.
    pub dhcp_refused: u64,
    /// DNS queries answered from own tables.
    pub dns_local: u64,
    /// DNS queries answered by an upstream server.
    pub dns_forwarded: u64,
    /// DNS queries that failed or found the table full.
    pub dns_failed: u64,
    /// DNS packets not understood.
    pub dns_malformed: u64,
}

/// A packet to the service, JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Replace the tables of a network service.
    Update {
        /// The new ones.
        service: NetworkService,
    },
    /// Tell the state.
    Query,
    /// Send [`Reply::Lease`] (client) or [`Reply::Client`] (network) from now on, beginning with the present state.
    Subscribe,
    /// Carrier of the port went or came (client).
    Carrier {
        /// Present.
        up: bool,
    },
    /// Get a new lease now (client).
    Renew,
    /// Announce another host name from the next message on (client).
    SetHostName {
        /// The name; empty = none.
        host_name: String,
    },
}

/// A packet from the service, JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done.
    Ok,
    /// Refused.
    Error {
        /// Why.
        text: String,
    },
    /// State of a network service.
    Network {
        /// Leases in force.
        leases: Vec<LeaseEntry>,
        /// Counters.
        counters: Counters,
    },
    /// State of a DHCP client; also an event when it changes.
    Lease {
        /// State.
        state: ClientState,
        /// The lease it holds.
        lease: Option<Lease>,
    },
    /// Event: a client got or renewed its address.
    Client {
        /// The lease.
        lease: LeaseEntry,
    },
}
