//! What the network of a device is made of, as items of a graph.

use crate::firewall::{Family, Table};
use crate::rules::TABLE;
use holdfast_engine::{Item, Need, Transition};
use holdfast_model::contract::network::{ClientService, NetworkService};
use holdfast_model::net::{Mac, Prefix, mac_text};
use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;

/// Names an item.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ItemKey {
    /// A network interface, physical or made by us.
    Link(String),
    /// The membership of an interface in a bridge.
    BridgePort(String),
    /// An address (with prefix length) on an interface.
    Address(String, String),
    /// A route by table, destination and metric.
    Route(u32, String, u32),
    /// A policy routing rule by priority and input interface.
    PolicyRule(u32, String),
    /// A kernel variable, path below `/proc/sys`.
    Sysctl(String),
    /// A whole nftables table.
    Nftables(&'static str, String),
    /// The list of name servers the host itself uses.
    Resolver,
    /// A running service, by unit name.
    Service(String),
}

impl fmt::Display for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(n) => write!(f, "interface {n}"),
            Self::BridgePort(n) => write!(f, "bridge port {n}"),
            Self::Address(n, a) => write!(f, "address {a} on {n}"),
            Self::Route(t, d, m) => write!(f, "route {d} metric {m} in table {t}"),
            Self::PolicyRule(p, n) => write!(f, "routing rule {p} for {n}"),
            Self::Sysctl(p) => write!(f, "kernel variable {p}"),
            Self::Nftables(family, n) => write!(f, "nftables table {family} {n}"),
            Self::Resolver => f.write_str("resolver configuration"),
            Self::Service(n) => write!(f, "service {n}"),
        }
    }
}

/// One thing in the kernel or a service beside it.
#[derive(Debug, Clone, PartialEq)]
pub enum NetItem {
    /// A physical interface: it exists by itself, the item brings it up.
    Port(Port),
    /// A VLAN interface over another.
    Vlan(Vlan),
    /// A bridge, up.
    Bridge(Bridge),
    /// A persistent tap, up, for one VM.
    Tap(Tap),
    /// An interface in a bridge.
    BridgePort(BridgePort),
    /// An address of the host.
    Address(Address),
    /// A route.
    Route(Route),
    /// A routing rule.
    PolicyRule(PolicyRule),
    /// A kernel variable.
    Sysctl(Sysctl),
    /// An nftables table, replaced as a whole.
    Nftables(Table),
    /// The host's resolver.
    Resolver(Resolver),
    /// A `netsvc` process.
    Service(Service),
}

/// A physical interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Kernel name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
}

/// A VLAN interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlan {
    /// Kernel name.
    pub name: String,
    /// Interface it lies over.
    pub parent: String,
    /// 1..=4094.
    pub id: u16,
    /// MTU in bytes.
    pub mtu: u32,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Kernel name.
    pub name: String,
    /// Its own MAC, fixed so that neighbours keep the gateway's address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
}

/// A persistent tap interface with virtio-net header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Kernel name.
    pub name: String,
    /// User that may attach to it.
    pub owner_uid: u32,
    /// For several queues, one descriptor each; a tap of one queue is of the other kind. The kernel lets nobody change it.
    pub multi_queue: bool,
    /// MTU in bytes.
    pub mtu: u32,
}

/// An interface in a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgePort {
    /// The interface.
    pub port: String,
    /// The bridge.
    pub bridge: String,
    /// Frames do not pass between isolated ports: they go up to the bridge and are routed, through the firewall.
    pub isolated: bool,
}

/// An address of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub link: String,
    /// Address and prefix length; the address is the host's own, not the network's.
    pub prefix: Prefix,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hop {
    /// Over a router that is reachable by an address of ours on that interface.
    Gateway {
        /// The router.
        router: IpAddr,
        /// The interface.
        link: String,
        /// Our own address there, used as source.
        source: Prefix,
    },
    /// Directly on the interface.
    Link {
        /// The interface.
        link: String,
        /// Our own address there, used as source.
        source: Prefix,
    },
    /// Nowhere: senders are told so.
    Unreachable,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Routing table; 254 is main.
    pub table: u32,
    /// Destination.
    pub destination: Prefix,
    /// Lower wins.
    pub metric: u32,
    /// Where to.
    pub hop: Hop,
}

/// A routing rule for what comes in over one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// Lower is looked at first.
    pub priority: u32,
    /// Input interface.
    pub input: String,
    /// Table to look in.
    pub table: u32,
    /// Ignore routes of this prefix length or shorter; 0 = ignore default routes.
    pub suppress_prefix_length: Option<u32>,
}

/// A kernel variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Below `/proc/sys`, with slashes.
    pub path: String,
    /// Text to write.
    pub value: String,
    /// The interface it belongs to, if it comes and goes with one.
    pub link: Option<String>,
}

/// The host's resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// Name servers, best first.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub domains: Vec<String>,
}

impl Resolver {
    /// Text of `resolv.conf`. The C library reads at most three servers.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.domains.is_empty() {
            text.push_str(&format!("search {}\n", self.domains.join(" ")));
        }
        for s in self.servers.iter().take(3) {
            text.push_str(&format!("nameserver {s}\n"));
        }
        text
    }
}

/// A `netsvc` process to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Unit name.
    pub name: String,
    /// Interface it serves.
    pub link: String,
    /// What it does.
    pub kind: ServiceKind,
}

/// Kind of a service.
#[derive(Debug, Clone, PartialEq)]
pub enum ServiceKind {
    /// DHCP and DNS for a network instance.
    Network {
        /// Address of the bridge with its prefix length.
        address: Prefix,
        /// Interface that upstream DNS queries leave through; `None` = air-gapped.
        uplink: Option<String>,
        /// What may change while it runs.
        service: NetworkService,
    },
    /// DHCP client of a port.
    DhcpClient(ClientService),
}

impl NetItem {
    /// Key of the interface item of that name.
    #[must_use]
    pub fn link_key(name: &str) -> ItemKey {
        ItemKey::Link(name.to_owned())
    }

    /// Key of an address.
    #[must_use]
    pub fn address_key(link: &str, prefix: Prefix) -> ItemKey {
        ItemKey::Address(link.to_owned(), prefix.to_string())
    }
}

impl Item for NetItem {
    type Key = ItemKey;
    type Condition = Infallible;
    type Batch = Infallible;
    type Owner = Infallible;

    fn key(&self) -> ItemKey {
        match self {
            Self::Port(i) => Self::link_key(&i.name),
            Self::Vlan(i) => Self::link_key(&i.name),
            Self::Bridge(i) => Self::link_key(&i.name),
            Self::Tap(i) => Self::link_key(&i.name),
            Self::BridgePort(i) => ItemKey::BridgePort(i.port.clone()),
            Self::Address(i) => Self::address_key(&i.link, i.prefix),
            Self::Route(i) => ItemKey::Route(i.table, i.destination.to_string(), i.metric),
            Self::PolicyRule(i) => ItemKey::PolicyRule(i.priority, i.input.clone()),
            Self::Sysctl(i) => ItemKey::Sysctl(i.path.clone()),
            Self::Nftables(i) => ItemKey::Nftables(
                match i.family {
                    Family::Inet => "inet",
                    Family::Bridge => "bridge",
                },
                i.name.clone(),
            ),
            Self::Resolver(_) => ItemKey::Resolver,
            Self::Service(i) => ItemKey::Service(i.name.clone()),
        }
    }

    fn needs(&self) -> Vec<Need<ItemKey, Infallible>> {
        let keys = match self {
            Self::Port(_) | Self::Bridge(_) | Self::Tap(_) | Self::Nftables(_) | Self::Resolver(_) => Vec::new(),
            Self::Vlan(i) => vec![Self::link_key(&i.parent)],
            // No frame flows before the firewall is there, nor after it is gone.
            Self::BridgePort(i) => vec![
                Self::link_key(&i.port),
                Self::link_key(&i.bridge),
                ItemKey::Nftables("inet", TABLE.into()),
                ItemKey::Nftables("bridge", TABLE.into()),
            ],
            Self::Address(i) => vec![Self::link_key(&i.link)],
            Self::Route(i) => match &i.hop {
                Hop::Gateway { link, source, .. } | Hop::Link { link, source } => {
                    vec![Self::link_key(link), Self::address_key(link, *source)]
                }
                Hop::Unreachable => Vec::new(),
            },
            Self::PolicyRule(i) => vec![Self::link_key(&i.input)],
            Self::Sysctl(i) => i.link.iter().map(|l| Self::link_key(l)).collect(),
            Self::Service(i) => {
                let mut needs = vec![Self::link_key(&i.link)];
                if let ServiceKind::Network { address, uplink, .. } = &i.kind {
                    needs.push(Self::address_key(&i.link, *address));
                    needs.extend(uplink.iter().map(|u| Self::link_key(u)));
                }
                needs
            }
        };
        keys.into_iter().map(Need::exists).collect()
    }

    fn transition(&self, new: &Self) -> Transition {
        use Transition::{Modify, Recreate};
        match (self, new) {
            (Self::Port(_), Self::Port(_))
            | (Self::Bridge(_), Self::Bridge(_))
            | (Self::Sysctl(_), Self::Sysctl(_))
            | (Self::Nftables(_), Self::Nftables(_))
            | (Self::Resolver(_), Self::Resolver(_)) => Modify,
            (Self::Tap(a), Self::Tap(b)) if a.owner_uid == b.owner_uid && a.multi_queue == b.multi_queue => Modify,
            (Self::Vlan(a), Self::Vlan(b)) if a.parent == b.parent && a.id == b.id => Modify,
            (Self::BridgePort(a), Self::BridgePort(b)) if a.bridge == b.bridge => Modify,
            (Self::Service(a), Self::Service(b)) if a.link == b.link => match (&a.kind, &b.kind) {
                (
                    ServiceKind::Network { address: x, uplink: u, .. },
                    ServiceKind::Network { address: y, uplink: v, .. },
                ) if x == y && u == v => Modify,
                // A name is told to the running client: nobody loses a lease over it.
                (ServiceKind::DhcpClient(_), ServiceKind::DhcpClient(_)) => Modify,
                _ => Recreate,
            },
            _ => Recreate,
        }
    }
}

impl fmt::Display for NetItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge(b) => write!(f, "bridge {} {} mtu {}", b.name, mac_text(b.mac), b.mtu),
            Self::Tap(t) => {
                let kind = if t.multi_queue { "several queues" } else { "one queue" };
                write!(f, "tap {} uid {} mtu {}, {kind}", t.name, t.owner_uid, t.mtu)
            }
            other => write!(f, "{}", other.key()),
        }
    }
}
