//! The network planner: what the device's network shall be, as a graph of items, from what the controller wants and what is
//! observed. A pure function; `net/engine` and `net/kernel` make it so.
//!
//! Principles:
//! 1. Same input, same graph: names, MACs, tables and addresses are derived or kept, never counted.
//! 2. A fault stays with its object: it is named, and everything else is planned.
//! 3. Deny by default: an app sends only as itself, reaches only what its rules allow, and the host only for DHCP, DNS and ping.
//! 4. Nothing bypasses the firewall: apps of one network are isolated from each other at layer 2 and routed.
//! 5. An app's traffic leaves over the uplink of its network instance or not at all.
//!
//! Reading order: [`kinds`] (what the graph is made of), [`links`], [`ports`], [`path`] (which adapter carries what),
//! [`instances`], [`taps`], [`firewall`], [`address`], [`names`]; beside them [`portlist`] (which ports the device reaches its
//! controller by).
#![forbid(unsafe_code)]

pub mod address;
pub mod firewall;
pub mod instances;
pub mod kinds;
pub mod links;
pub mod names;
pub mod path;
pub mod portlist;
pub mod ports;
pub mod taps;

pub use address::Allocations;
pub use instances::InstancePlan;
pub use kinds::{ItemKey, NetItem};
pub use links::link_of;
pub use ports::{PortPlan, last_resort};
pub use taps::{TapPlan, queue_pairs};

use firewall::Family;
use firewall::flow::MappedPorts;
use holdfast_engine::Graph;
use holdfast_model::contract::network::Lease;
use holdfast_model::desired::Desired;
use holdfast_model::net::Mac;
use holdfast_model::trouble::Trouble;
use kinds::FirewallSkeleton;
use std::collections::BTreeMap;
use uuid::Uuid;

/// A physical interface that is present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFact {
    /// Kernel name.
    pub name: String,
    /// MAC.
    pub mac: Mac,
    /// PCI address as `0000:00:03.0`; empty when not known.
    pub pci: String,
}

/// Everything the plan depends on.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// What the controller wants.
    pub desired: &'a Desired,
    /// Physical interfaces present now.
    pub links: &'a [LinkFact],
    /// Leases held by the DHCP clients, by interface.
    pub leases: &'a BTreeMap<String, Lease>,
    /// Addresses given to apps before.
    pub allocations: &'a Allocations,
    /// What is known of interfaces as paths.
    pub paths: &'a path::Facts,
    /// User that each app's VMM runs as.
    pub app_uids: &'a BTreeMap<Uuid, u32>,
}

/// The plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What shall exist.
    pub graph: Graph<NetItem>,
    /// What is wrong, each on its object.
    pub faults: Vec<Trouble>,
    /// Addresses of apps, to be kept for the next plan.
    pub allocations: Allocations,
    /// Adapters, best first.
    pub ports: Vec<PortPlan>,
    /// Network instances.
    pub instances: Vec<InstancePlan>,
    /// Interfaces of apps.
    pub taps: Vec<TapPlan>,
}

/// Makes the plan.
#[must_use]
pub fn plan(input: &Input) -> Plan {
    let mut graph = Graph::new();
    let mut faults = Vec::new();
    for (path, value) in GLOBAL_VARIABLES {
        graph.insert(NetItem::Sysctl(kinds::Sysctl { path: (*path).into(), value: (*value).into(), link: None }));
    }
    let ports = ports::plan(input, &mut graph, &mut faults);
    let planned = instances::plan(input, &ports, &mut graph, &mut faults);
    graph.extend([Family::Inet, Family::Bridge].map(|family| NetItem::from(FirewallSkeleton::of(family))));
    let mut mapped = MappedPorts::new();
    for instance in &planned.instances {
        firewall::instances::plan(instance, &mut graph);
    }
    for tap in &planned.taps {
        if let Some(instance) = planned.instances.iter().find(|i| i.id == tap.instance) {
            let apps = &input.desired.apps;
            firewall::apps::plan(tap, instance, &ports, apps, &mut mapped, &mut graph, &mut faults);
        }
    }
    Plan { graph, faults, allocations: planned.allocations, ports, instances: planned.instances, taps: planned.taps }
}

/// Kernel variables of the host as a whole.
const GLOBAL_VARIABLES: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    // The larger of "all" and the interface's own counts: leave it to the interfaces.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/all/accept_source_route", "0"),
    // Frames meet the bridge table only. A kernel with br_netfilter would run them through the inet table as well, and
    // would bridge a hairpin connection from one isolated port to another, which is to say drop it.
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
];

#[cfg(test)]
mod tests;
