//! Ports: from adapters, parameter sets, present interfaces and leases to addresses, routes and resolver.

use crate::kinds::route::Hop;
use crate::kinds::service::ServiceKind;
use crate::kinds::{Address, NetItem, Resolver, Route, Service, Sysctl};
use crate::links::{self, Lower, Tag};
use crate::{Input, names};
use holdfast_engine::Graph;
use holdfast_model::contract::network::{ClientService, Lease};
use holdfast_model::desired::Desired;
use holdfast_model::net::{Adapter, Addressing4, Addressing6, Port, PortUsage, Prefix};
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uuid::Uuid;

/// Main routing table.
pub const MAIN_TABLE: u32 = 254;
const DEFAULT_MTU: u32 = 1500;
const ANYWHERE: Prefix = Prefix { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 };
const ANYWHERE_6: Prefix = Prefix { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 };

/// An adapter as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    /// Adapter name.
    pub name: String,
    /// Kernel interface.
    pub interface: String,
    /// Its place, when it is a VLAN.
    pub vlan: Option<Tag>,
    /// May be used to reach the controller.
    pub management: bool,
    /// Lower preferred.
    pub cost: u8,
    /// Labels besides the implicit ones.
    pub labels: Vec<String>,
    /// Addresses come by DHCP.
    pub dhcp: bool,
    /// Our addresses, with prefix length.
    pub addresses: Vec<Prefix>,
    /// Default router.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Domain; empty when none.
    pub domain: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// No IP at all: may be put into a switch.
    pub layer2: bool,
}

impl PortPlan {
    /// True when a network instance's port text means this adapter.
    #[must_use]
    pub fn answers_to(&self, text: &str) -> bool {
        match text {
            "all" => true,
            "uplink" => self.management,
            "freeuplink" => self.management && self.cost == 0,
            _ => self.name == text || self.labels.iter().any(|l| l == text),
        }
    }

    /// Its first IPv4 address.
    #[must_use]
    pub fn address_v4(&self) -> Option<Prefix> {
        self.addresses.iter().copied().find(|p| p.address.is_ipv4())
    }
}

/// Plans all adapters; best (lowest cost) first.
pub(crate) fn plan(input: &Input, graph: &mut Graph<NetItem>, faults: &mut Vec<Trouble>) -> Vec<PortPlan> {
    let desired = input.desired;
    let mut adapters: Vec<&Adapter> = desired.adapters.iter().collect();
    adapters.sort_by_key(|a| a.cost);
    let mut plans: Vec<PortPlan> = Vec::new();
    for adapter in adapters {
        match one(input, adapter, &plans) {
            Ok(p) => plans.push(p),
            Err(text) => faults.push(Trouble::error(
                Object::new(ObjectKind::Adapter, &adapter.name, &adapter.name),
                format!("adapter {}: {text}", adapter.name),
            )),
        }
    }
    links::items(plans.iter().map(|p| (p.interface.as_str(), p.vlan.as_ref(), p.mtu)), graph);
    for (rank, p) in plans.iter().enumerate() {
        items(p, rank, input.leases.get(&p.interface), &desired.device_name, graph);
    }
    let mut servers: Vec<IpAddr> = Vec::new();
    let mut domains: Vec<String> = Vec::new();
    for p in plans.iter().filter(|p| p.management) {
        servers.extend(p.dns.iter().filter(|d| !servers.contains(d)).copied().collect::<Vec<_>>());
        if !p.domain.is_empty() && !domains.contains(&p.domain) {
            domains.push(p.domain.clone());
        }
    }
    graph.insert(NetItem::Resolver(Resolver { servers, domains }));
    plans
}

fn one(input: &Input, adapter: &Adapter, planned: &[PortPlan]) -> Result<PortPlan, String> {
    let Lower { interface, vlan } = links::lower(input, &adapter.on)?;
    if let Some(other) = planned.iter().find(|p| p.interface == interface) {
        return Err(format!("interface {interface} already belongs to adapter {}", other.name));
    }
    if let Some(other) = planned.iter().find(|p| vlan.is_some() && p.vlan == vlan) {
        return Err(format!("the VLAN's tag is already that of adapter {} on the same port", other.name));
    }
    let mut plan = PortPlan {
        name: adapter.name.clone(),
        interface: interface.clone(),
        vlan,
        management: adapter.management,
        cost: adapter.cost,
        labels: adapter.labels.clone(),
        dhcp: false,
        addresses: Vec::new(),
        gateway: None,
        dns: adapter.dns.clone(),
        domain: adapter.domain.clone(),
        mtu: adapter.mtu.map_or(DEFAULT_MTU, u32::from),
        layer2: !adapter.has_ip(),
    };
    match adapter.v4 {
        Addressing4::None => {}
        Addressing4::Dhcp => {
            plan.dhcp = true;
            if let Some(lease) = input.leases.get(&interface) {
                apply_lease(&mut plan, lease, adapter.mtu.is_none());
            }
        }
        Addressing4::Static(fixed) => {
            plan.addresses.push(fixed.prefix());
            plan.gateway = fixed.router();
        }
    }
    match adapter.v6 {
        Addressing6::None => {}
        // The kernel takes what routers advertise; name servers come with IPv4 or from the config.
        Addressing6::Auto if adapter.v4 == Addressing4::None && adapter.dns.is_empty() => {
            return Err(
                "has IPv6 by router advertisement only, and no name server: this version takes name servers from DHCP \
                        for IPv4 or from the config"
                    .to_owned(),
            );
        }
        Addressing6::Auto => {}
        Addressing6::Static(fixed) => {
            plan.addresses.push(fixed.prefix());
            plan.gateway = plan.gateway.or(fixed.router());
        }
    }
    Ok(plan)
}

fn apply_lease(plan: &mut PortPlan, lease: &Lease, take_mtu: bool) {
    plan.addresses.push(Prefix { address: lease.address.into(), length: lease.prefix_length });
    plan.gateway = lease.routers.first().map(|r| IpAddr::V4(*r));
    // What is configured comes first.
    for server in lease.dns.iter().map(|d| IpAddr::V4(*d)) {
        if !plan.dns.contains(&server) {
            plan.dns.push(server);
        }
    }
    if plan.domain.is_empty() {
        plan.domain.clone_from(&lease.domain);
    }
    // A server may make packets smaller, not larger than the port was configured or made for.
    if let Some(mtu) = lease.mtu.filter(|_| take_mtu) {
        plan.mtu = u32::from(mtu).clamp(576, DEFAULT_MTU);
    }
}

/// Metric of a port's routes: by cost, then by order; no two ports share one.
fn metric(cost: u8, rank: usize) -> u32 {
    1000 + u32::from(cost) * 1000 + rank as u32
}

fn items(p: &PortPlan, rank: usize, lease: Option<&Lease>, host_name: &str, graph: &mut Graph<NetItem>) {
    let link = p.interface.clone();
    // Loose: a reply may come in over another port than the route back would take.
    graph.insert(NetItem::Sysctl(Sysctl {
        path: format!("net/ipv4/conf/{link}/rp_filter"),
        value: "2".into(),
        link: Some(link.clone()),
    }));
    if p.dhcp {
        graph.insert(NetItem::Service(Service {
            name: names::dhcp_client(&link),
            link: link.clone(),
            kind: ServiceKind::DhcpClient(ClientService {
                interface: link.clone(),
                host_name: names::host_label(host_name),
            }),
        }));
    }
    for prefix in &p.addresses {
        graph.insert(NetItem::Address(Address { link: link.clone(), prefix: *prefix }));
    }
    let mut add = |destination: Prefix, router: IpAddr| {
        let Some(source) = p.addresses.iter().find(|own| own.address.is_ipv4() == router.is_ipv4()).copied() else {
            return;
        };
        let hop = if router.is_unspecified() {
            Hop::Link { link: link.clone(), source }
        } else {
            Hop::Gateway { router, link: link.clone(), source }
        };
        graph.insert(NetItem::Route(Route { table: MAIN_TABLE, destination, metric: metric(p.cost, rank), hop }));
    };
    if let Some(router) = p.gateway {
        add(if router.is_ipv4() { ANYWHERE } else { ANYWHERE_6 }, router);
    }
    for r in lease.filter(|_| p.dhcp).into_iter().flat_map(|l| &l.routes) {
        let mask = u32::MAX.checked_shl(32 - u32::from(r.prefix_length)).unwrap_or(0);
        let destination =
            Prefix { address: Ipv4Addr::from(u32::from(r.destination) & mask).into(), length: r.prefix_length };
        add(destination, r.router.into());
    }
}

/// A configuration for a device that has none yet: DHCP on every present interface, all for management.
#[must_use]
pub fn last_resort(links: &[crate::LinkFact]) -> Desired {
    let network = Uuid::from_u128(0x4c61_7374_2052_4573_8f72_7400_0000_0001);
    let mut desired = Desired::default();
    for link in links {
        desired.ports.push(Port {
            label: link.name.clone(),
            physical_label: link.name.clone(),
            interface: link.name.clone(),
            pci: String::new(),
            usage: PortUsage::ManagementAndApps,
        });
        desired.adapters.push(Adapter {
            name: link.name.clone(),
            on: link.name.clone(),
            network: Some(network),
            v4: Addressing4::Dhcp,
            v6: Addressing6::Auto,
            dns: Vec::new(),
            domain: String::new(),
            mtu: None,
            cost: 0,
            management: true,
            labels: Vec::new(),
        });
    }
    desired
}
