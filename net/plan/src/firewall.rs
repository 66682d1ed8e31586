//! Typed nftables: tables, chains and rules as values. `net/kernel` encodes them for the kernel.

use holdfast_model::net::{Mac, Prefix};
use std::net::Ipv4Addr;

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6, routed.
    Inet,
    /// Frames in bridges.
    Bridge,
}

/// A table; always replaced as a whole, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: String,
    /// Chains; a chain is defined before any that jump to it may be, the order here does not matter.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name, at most 127 bytes.
    pub name: String,
    /// Where packets enter it; `None` = only by jump.
    pub base: Option<Base>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// Attachment of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Filters.
    Filter,
    /// Translates addresses; sees only the first packet of a connection.
    Nat,
}

/// Netfilter hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Let through.
    Accept,
    /// Drop.
    Drop,
}

/// A rule: all matches must hold; then count, log, decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions in order of evaluation.
    pub matches: Vec<Match>,
    /// Count packets and bytes.
    pub counter: bool,
    /// What happens.
    pub verdict: Verdict,
}

impl Rule {
    /// A rule without counter.
    #[must_use]
    pub fn new(matches: Vec<Match>, verdict: Verdict) -> Self {
        Self { matches, counter: false, verdict }
    }

    /// The same with a counter.
    #[must_use]
    pub fn counted(mut self) -> Self {
        self.counter = true;
        self
    }
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
