//! The host's network as the part acts on it: the kernel, and `netsvc` processes beside it.

use crate::world::Local;
use holdfast_engine::{Action, Graph};
use holdfast_model::contract::network::Lease;
use holdfast_model::net::Mac;
use holdfast_netkernel::Event;
use holdfast_plan::{ItemKey, LinkFact, NetItem};
use std::collections::BTreeMap;

/// An interface, as the kernel sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interface {
    /// MAC.
    pub mac: Mac,
    /// Administratively up.
    pub up: bool,
    /// Has carrier.
    pub carrier: bool,
    /// It is hardware, and nothing that was made here.
    pub physical: bool,
}

/// The interfaces that are present.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    /// The cards.
    pub cards: Vec<LinkFact>,
    /// All interfaces by name.
    pub interfaces: BTreeMap<String, Interface>,
}

/// What the part acts through. Every future ends within a deadline of its own.
pub trait Host {
    /// Looks at the interfaces.
    fn look(&self) -> Local<Result<Sight, String>>;

    /// Asks the DHCP clients that run, started by an agent before this one, for their leases.
    fn leases(&self) -> Local<BTreeMap<String, Lease>>;

    /// What exists of what was made here.
    fn discover(&self, intended: Graph<NetItem>) -> Local<Result<Graph<NetItem>, String>>;

    /// What is believed to exist and does not.
    fn lost(&self, believed: Graph<NetItem>) -> Local<Result<Vec<ItemKey>, String>>;

    /// Executes actions in order, with a result for each.
    fn run(&self, actions: Vec<Action<NetItem>>) -> Local<Vec<Result<(), String>>>;

    /// Tells the DHCP client of an interface that its cable came or went. One that does not run looks for itself when it starts.
    fn tell_carrier(&self, interface: String, up: bool) -> Local<()>;

    /// Replaces the file of static host names.
    fn write_hosts(&self, text: String) -> Local<Result<(), String>>;
}

/// News: interfaces or addresses changed, in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed(pub Vec<Event>);

/// News: what a DHCP client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseNews {
    /// The port's interface.
    pub interface: String,
    /// The lease that it holds.
    pub lease: Option<Lease>,
}
