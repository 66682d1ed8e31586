//! The firewall: typed nftables, and what it is made of.
//!
//! ```text
//!  frame from a tap -> bridge table: is it the app's own MAC and IP?  else drop
//!                   -> inet forward:  answer to a known connection?   accept
//!                                     from or to a bridge, no app's?  drop
//!                                     "out" chain of the sender       drop unless a rule allows
//!                                     "in" chain of the receiver      drop unless a rule allows
//!                                     allowed pair of interfaces?     else drop
//! ```
//! A chain of an app *returns* what its rules allow, so that a packet between two apps has to please both. Only packets in the
//! direction of the connection's first packet walk the chains: a rule taken away stops the connections it allowed.
//!
//! The [`skeleton`] never changes: base chains that look things up in maps. What comes and goes with apps and instances are
//! chains and elements of those maps, each an item of the graph. The name of a chain ends in a digest of its rules, so that
//! other rules are another chain: it is created, the elements that lead to the old one are changed, the old one is removed, all
//! in one transaction. What is found after a restart is known by its name.
//!
//! Reading order: this file (values), [`skeleton`], [`flow`] (access rules compiled), `apps` and `instances` (items).

pub(crate) mod apps;
pub mod flow;
pub(crate) mod instances;
pub mod skeleton;

use holdfast_model::net::{Mac, Prefix};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use uuid::Uuid;

/// Name of the table in each family.
pub const TABLE: &str = "holdfast";

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6, routed.
    Inet,
    /// Frames in bridges.
    Bridge,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        })
    }
}

/// Attachment of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base {
    /// Type.
    pub kind: ChainKind,
    /// Hook.
    pub hook: Hook,
    /// Lower runs first.
    pub priority: i32,
    /// What happens to packets that no rule decides.
    pub policy: Policy,
}

/// Type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// Filters.
    Filter,
    /// Translates addresses; sees only the first packet of a connection.
    Nat,
}

/// Netfilter hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
}

/// Default of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Let through.
    Accept,
    /// Drop.
    Drop,
}

/// A rule: all matches must hold; then count, decide.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Conditions in order of evaluation.
    pub matches: Vec<Match>,
    /// The chain's counter counts packets and bytes.
    pub counted: bool,
    /// What happens.
    pub verdict: Verdict,
}

impl Rule {
    /// A rule that counts nothing.
    #[must_use]
    pub fn new(matches: Vec<Match>, verdict: Verdict) -> Self {
        Self { matches, counted: false, verdict }
    }

    /// The same, counted by the chain's counter.
    #[must_use]
    pub fn counted(mut self) -> Self {
        self.counted = true;
        self
    }
}

/// A set or map that rules look up: hashed, without ranges.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Map {
    /// Name.
    pub name: &'static str,
    /// Parts of a key, in order.
    pub key: &'static [PartType],
    /// Its elements lead to verdicts; else it is a set.
    pub verdicts: bool,
}

/// Type of a part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartType {
    /// Name of an interface.
    Interface,
    /// IPv4 address.
    Address4,
    /// Layer-4 protocol number.
    Protocol,
    /// Port of TCP or UDP.
    Port,
}

/// A part of the key of an element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Name of an interface.
    Interface(String),
    /// IPv4 address.
    Address4(Ipv4Addr),
    /// Layer-4 protocol number.
    Protocol(u8),
    /// Port of TCP or UDP.
    Port(u16),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => f.write_str(name),
            Self::Address4(address) => write!(f, "{address}"),
            Self::Protocol(number) => write!(f, "protocol {number}"),
            Self::Port(port) => write!(f, "port {port}"),
        }
    }
}

/// A field of a packet that is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// Interface that it came in over.
    Input,
    /// Interface that it goes out over.
    Output,
    /// IPv4 source.
    Source4,
    /// IPv4 destination.
    Destination4,
    /// Layer-4 protocol.
    Protocol,
    /// Destination port of TCP or UDP.
    DestinationPort,
}

/// Whose an item is; does not tell items from each other.
#[derive(Debug, Clone, Copy, Default)]
pub struct Owner(pub Option<Uuid>);

impl PartialEq for Owner {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Raised when the same values become other messages to the kernel, so that what an older version made is replaced.
const ENCODING: u32 = 1;

/// Tells contents from each other, the same in every process of this version.
pub(crate) fn digest(content: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    ENCODING.hash(&mut hasher);
    content.hash(&mut hasher);
    hasher.finish()
}

pub(crate) fn host(ip: IpAddr) -> Prefix {
    Prefix { address: ip, length: if ip.is_ipv4() { 32 } else { 128 } }
}

/// States of a connection as bits (`enum ip_conntrack_info` as nftables shows it).
pub mod ct_state {
    /// Belongs to nothing and is malformed.
    pub const INVALID: u32 = 1;
    /// Both directions seen, or an answer.
    pub const ESTABLISHED: u32 = 2;
    /// An error about, or a helper's child of, a known connection.
    pub const RELATED: u32 = 4;
    /// First packet.
    pub const NEW: u32 = 8;
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Match {
    /// Came in over the interface.
    InputInterface(String),
    /// Goes out over the interface.
    OutputInterface(String),
    /// IP source in the prefix.
    Source(Prefix),
    /// IP destination in the prefix.
    Destination(Prefix),
    /// Layer-4 protocol number.
    Protocol(u8),
    /// Source port, after `Protocol` TCP or UDP.
    SourcePort(u16),
    /// Destination port, after `Protocol` TCP or UDP.
    DestinationPort(u16),
    /// ICMP or ICMPv6 type, after `Protocol`.
    IcmpType(u8),
    /// Connection state is one of these bits ([`ct_state`]).
    CtState(u32),
    /// The packet goes in the direction of the connection's first packet.
    CtOriginal,
    /// The packet goes against it.
    CtReply,
    /// The connection's destination was translated.
    CtDnat,
    /// Frame type (bridge family).
    EtherType(u16),
    /// Frame source is this (bridge family).
    EtherSource(Mac),
    /// Frame source is not this (bridge family).
    EtherSourceNot(Mac),
    /// ARP sender's hardware address, after `EtherType` ARP.
    ArpSenderMac(Mac),
    /// ARP sender's IP address, after `EtherType` ARP.
    ArpSenderIp(Ipv4Addr),
    /// These fields are a key of the set.
    In(&'static str, Vec<Field>),
    /// These fields are no key of the set.
    NotIn(&'static str, Vec<Field>),
    /// True up to a rate.
    Limit {
        /// Packets per unit.
        rate: u32,
        /// Unit in seconds: 1, 60, 3600.
        per_seconds: u64,
        /// Packets above the rate that pass at once.
        burst: u32,
    },
}

/// What a rule does with a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Let through this base chain.
    Accept,
    /// Drop.
    Drop,
    /// Back to the calling chain.
    Return,
    /// To another chain, and back when that does not decide.
    Jump(String),
    /// To another chain, not back.
    Goto(String),
    /// What the element with these fields as key says; on with the next rule when there is none.
    Map(&'static str, Vec<Field>),
    /// New destination.
    Dnat {
        /// Address.
        address: Ipv4Addr,
        /// Port.
        port: u16,
    },
    /// New source: the address of the output interface.
    Masquerade,
}
