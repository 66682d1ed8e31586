//! Network instances and the interfaces of apps in them.

use crate::address::Space;
use crate::kinds::route::Hop;
use crate::kinds::service::ServiceKind;
use crate::kinds::{Address, Bridge, BridgePort, NetItem, PolicyRule, Route, Service, Sysctl, Tap};
use crate::path;
use crate::ports::{MAIN_TABLE, PortPlan};
use crate::taps::{self, TapPlan};
use crate::{Input, names};
use holdfast_engine::Graph;
use holdfast_model::contract::network::{Assignment, NetworkService, NetworkV4};
use holdfast_model::net::{InstanceKind, NetworkInstance, Prefix};
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use uuid::Uuid;

const DEFAULT_MTU: u32 = 1500;
const LEASE_SECONDS: u32 = 3600;
/// Priorities of the two routing rules of an instance; after `local` (0), before `main` (32766).
const CONNECTED_RULE: u32 = 1000;
const UPLINK_RULE: u32 = 1001;
const ANYWHERE: Prefix = Prefix { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 };

/// A network instance as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstancePlan {
    /// Its id.
    pub id: Uuid,
    /// Label.
    pub name: String,
    /// Kind.
    pub kind: InstanceKind,
    /// Bridge.
    pub bridge: String,
    /// Address of the bridge with prefix length (`Local`).
    pub address: Option<Prefix>,
    /// Kernel interface of the uplink; `None` = air-gapped.
    pub uplink: Option<String>,
    /// Adapter of the uplink.
    pub uplink_adapter: Option<String>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Unit name of its service (`Local`).
    pub service: Option<String>,
}

pub(crate) struct Instances {
    pub(crate) instances: Vec<InstancePlan>,
    pub(crate) taps: Vec<TapPlan>,
    pub(crate) allocations: crate::Allocations,
}

/// Checked parameters of a `Local` instance.
struct Local {
    space: Space<Ipv4Addr>,
    address: Prefix,
}

pub(crate) fn plan(
    input: &Input,
    ports: &[PortPlan],
    graph: &mut Graph<NetItem>,
    faults: &mut Vec<Trouble>,
) -> Instances {
    let mut out = Instances {
        instances: Vec::new(),
        taps: Vec::new(),
        allocations: crate::Allocations { v4: BTreeMap::new(), v6: input.allocations.v6.clone() },
    };
    let subnets = ports.iter().flat_map(|p| p.addresses.iter().map(|a| (*a, format!("port {}", p.name)))).collect();
    let mut taken = Taken { subnets, switched: BTreeMap::new() };
    for instance in input.desired.instances.iter().filter(|i| i.activate) {
        match one(input, instance, ports, &mut taken) {
            Ok((plan, local)) => {
                limits(input, instance, &plan, ports, faults);
                let (taps, kept) = taps::plan(input, &plan, local.as_ref().map(|local| &local.space), faults);
                items(input, instance, &plan, local.as_ref(), ports, &taps, graph);
                out.allocations.v4.insert(plan.id, kept);
                out.instances.push(plan);
                out.taps.extend(taps);
            }
            Err(text) => {
                faults.push(Trouble::error(object(instance), format!("network instance {}: {text}", instance.name)))
            }
        }
    }
    // What one that is not made now had given out is its apps' again when it is.
    for instance in &input.desired.instances {
        if let Some(kept) = input.allocations.v4.get(&instance.id) {
            out.allocations.v4.entry(instance.id).or_insert_with(|| kept.clone());
        }
    }
    taps::check(input, ports, &out, faults);
    out
}

fn object(instance: &NetworkInstance) -> Object {
    Object::new(ObjectKind::NetworkInstance, instance.id, &instance.name)
}

/// What the uplink cannot give, though the instance is made.
fn limits(
    input: &Input,
    instance: &NetworkInstance,
    plan: &InstancePlan,
    ports: &[PortPlan],
    faults: &mut Vec<Trouble>,
) {
    let Some(uplink) = ports.iter().find(|p| Some(&p.interface) == plan.uplink.as_ref()) else { return };
    let mut say = |text: String| {
        faults.push(Trouble::warning(object(instance), format!("network instance {}: {text}", instance.name)));
    };
    if plan.mtu > uplink.mtu {
        let (own, limit) = (plan.mtu, uplink.mtu);
        say(format!("mtu {own} is above the {limit} of its port {}: larger packets do not leave it", uplink.name));
    }
    if plan.kind == InstanceKind::Switch {
        let wanted = |p: &PortPlan| p.layer2 && instance.uplinks.iter().any(|label| p.answers_to(label));
        let all: Vec<&str> = path::rank(ports, input.paths, wanted).iter().map(|p| p.name.as_str()).collect();
        if all.len() > 1 {
            let (labels, all) = (instance.uplinks.join(", "), all.join(", "));
            say(format!(
                "{labels:?} means the ports {all}, but a switch of several ports is not supported by this version: only \
                 {} is in it",
                uplink.name
            ));
        }
    }
}

/// What instances before this one have taken.
struct Taken {
    /// Subnets and whose they are.
    subnets: Vec<(Prefix, String)>,
    /// Interfaces in switches, and the name of the instance.
    switched: BTreeMap<String, String>,
}

fn one(
    input: &Input,
    instance: &NetworkInstance,
    ports: &[PortPlan],
    taken: &mut Taken,
) -> Result<(InstancePlan, Option<Local>), String> {
    let labels = instance.uplinks.join(", ");
    let named = path::rank(ports, input.paths, |p| instance.uplinks.iter().any(|label| p.answers_to(label)));
    if named.is_empty() && !labels.is_empty() {
        return Err(format!("port {labels:?} is not an adapter or label of this device"));
    }
    // The host's own addresses and a switch exclude each other on one port.
    let switch = instance.kind == InstanceKind::Switch;
    let uplink = named.iter().copied().find(|p| p.layer2 == switch);
    if let (None, Some(other)) = (uplink, named.first()) {
        return Err(if switch {
            format!("a switch needs a port without IP configuration, but {} has one", other.name)
        } else {
            format!("a local network needs a port with IP configuration, but {} has none", other.name)
        });
    }
    let mut plan = InstancePlan {
        id: instance.id,
        name: instance.name.clone(),
        kind: instance.kind,
        bridge: names::bridge(instance.id),
        address: None,
        uplink: uplink.map(|p| p.interface.clone()),
        uplink_adapter: uplink.map(|p| p.name.clone()),
        mtu: instance.mtu.map_or(DEFAULT_MTU, u32::from),
        service: None,
    };
    match instance.kind {
        InstanceKind::Switch => {
            if let Some(p) = uplink {
                if let Some(other) = taken.switched.get(&p.interface) {
                    return Err(format!("port {} is already in the switch of network instance {other}", p.name));
                }
                taken.switched.insert(p.interface.clone(), instance.name.clone());
            }
            Ok((plan, None))
        }
        InstanceKind::Local => {
            let local = check_local(instance, &taken.subnets)?;
            plan.address = Some(local.address);
            plan.service = Some(names::network_service(instance.id));
            taken.subnets.push((local.address, format!("network instance {}", instance.name)));
            Ok((plan, Some(local)))
        }
    }
}

fn check_local(instance: &NetworkInstance, subnets: &[(Prefix, String)]) -> Result<Local, String> {
    if let Some(v6) = instance.v6 {
        return Err(format!("subnet {} is not IPv4, which is all that is supported", v6.prefix()));
    }
    let wanted = instance.v4.ok_or("has no subnet")?;
    let (network, subnet) = (wanted.network, wanted.prefix());
    if !(8..=30).contains(&subnet.length) {
        return Err(format!("subnet {subnet} must have a prefix length of 8 to 30"));
    }
    if let Some((reserved, what)) = subnet.reserved() {
        return Err(format!("subnet {subnet} lies in {reserved}, which is reserved ({what})"));
    }
    for (other, whose) in subnets {
        if other.overlaps(&subnet) {
            return Err(format!("subnet {subnet} overlaps {other} of {whose}"));
        }
    }
    let mut space =
        Space { network, prefix_length: subnet.length, gateway: Ipv4Addr::UNSPECIFIED, range: (network, network) };
    let (first, last) = space.hosts();
    space.gateway = wanted.gateway.unwrap_or(first);
    if !(first..=last).contains(&space.gateway) {
        return Err(format!("gateway {} is not a host address of {subnet}", space.gateway));
    }
    space.range = wanted.range.unwrap_or((first, last));
    let (a, b) = space.range;
    if a > b || !(first..=last).contains(&a) || !(first..=last).contains(&b) {
        return Err(format!("DHCP range {a} - {b} does not lie in {subnet}"));
    }
    Ok(Local { address: Prefix { address: space.gateway.into(), length: subnet.length }, space })
}

fn items(
    input: &Input,
    instance: &NetworkInstance,
    plan: &InstancePlan,
    local: Option<&Local>,
    ports: &[PortPlan],
    taps: &[TapPlan],
    graph: &mut Graph<NetItem>,
) {
    let bridge = plan.bridge.clone();
    graph.insert(NetItem::Bridge(Bridge { name: bridge.clone(), mac: names::bridge_mac(plan.id), mtu: plan.mtu }));
    let mut variable = |link: &str, path: String, value: &str| {
        graph.insert(NetItem::Sysctl(Sysctl { path, value: value.into(), link: Some(link.to_owned()) }));
    };
    // The host itself takes no part in IPv6 of apps.
    variable(&bridge, format!("net/ipv6/conf/{bridge}/disable_ipv6"), "1");
    for t in taps {
        variable(&t.tap, format!("net/ipv6/conf/{}/disable_ipv6", t.tap), "1");
    }
    if local.is_some() {
        variable(&bridge, format!("net/ipv4/conf/{bridge}/rp_filter"), "1");
        variable(&bridge, format!("net/ipv4/conf/{bridge}/send_redirects"), "0");
        // Apps are isolated ports: the bridge answers ARP for their neighbours and routes between them, so that every
        // packet passes the firewall.
        variable(&bridge, format!("net/ipv4/conf/{bridge}/proxy_arp_pvlan"), "1");
        variable(&bridge, format!("net/ipv4/neigh/{bridge}/proxy_delay"), "0");
    }
    for t in taps {
        graph.insert(NetItem::Tap(Tap {
            name: t.tap.clone(),
            app: t.app,
            owner_uid: input.app_uids.get(&t.app).copied().unwrap_or(0),
            multi_queue: t.multi_queue(),
            mtu: t.mtu,
        }));
        graph.insert(NetItem::BridgePort(BridgePort {
            port: t.tap.clone(),
            bridge: bridge.clone(),
            isolated: local.is_some(),
            filtered: true,
        }));
    }
    let uplink = ports.iter().find(|p| Some(&p.interface) == plan.uplink.as_ref());
    let Some(local) = local else {
        if let Some(p) = uplink {
            graph.insert(NetItem::BridgePort(BridgePort {
                port: p.interface.clone(),
                bridge,
                isolated: false,
                filtered: false,
            }));
        }
        return;
    };
    graph.insert(NetItem::Address(Address { link: bridge.clone(), prefix: local.address }));
    routes(plan, uplink, graph);
    graph.insert(NetItem::Service(Service {
        name: names::network_service(plan.id),
        link: bridge,
        kind: ServiceKind::Network {
            address: local.address,
            uplink: plan.uplink.clone(),
            service: service(input, instance, local, uplink, taps),
        },
    }));
}

/// What comes from the bridge: to connected networks as `main` says, else over the uplink of this instance or nowhere.
fn routes(plan: &InstancePlan, uplink: Option<&PortPlan>, graph: &mut Graph<NetItem>) {
    let table = names::table(plan.id);
    graph.insert(NetItem::PolicyRule(PolicyRule {
        priority: CONNECTED_RULE,
        input: plan.bridge.clone(),
        table: MAIN_TABLE,
        suppress_prefix_length: Some(0),
    }));
    graph.insert(NetItem::PolicyRule(PolicyRule {
        priority: UPLINK_RULE,
        input: plan.bridge.clone(),
        table,
        suppress_prefix_length: None,
    }));
    graph.insert(NetItem::Route(Route { table, destination: ANYWHERE, metric: 10_000, hop: Hop::Unreachable }));
    if let Some(p) = uplink
        && let (Some(source), Some(router)) = (p.address_v4(), p.gateway)
    {
        graph.insert(NetItem::Route(Route {
            table,
            destination: ANYWHERE,
            metric: 100,
            hop: Hop::Gateway { router, link: p.interface.clone(), source },
        }));
    }
}

fn service(
    input: &Input,
    instance: &NetworkInstance,
    local: &Local,
    uplink: Option<&PortPlan>,
    taps: &[TapPlan],
) -> NetworkService {
    let name_of = |app: Uuid| {
        let app = input.desired.apps.iter().find(|a| a.id == app);
        app.map(|a| names::host_label(&a.name)).unwrap_or_default()
    };
    // A controller may name the network's own gateway: that is this forwarder, which asks others.
    let own: Vec<IpAddr> = instance.dns.iter().copied().filter(|ip| *ip != local.space.gateway).collect();
    let servers = match uplink {
        None => &[][..],
        Some(_) if !own.is_empty() => &own,
        Some(p) => &p.dns,
    };
    NetworkService {
        v4: NetworkV4 {
            gateway: local.space.gateway,
            prefix_length: local.space.prefix_length,
            router: uplink.map(|_| local.space.gateway),
            pool: None,
            routes: Vec::new(),
        },
        // Every app has an assignment, and nobody else can send on the bridge.
        assignments: taps
            .iter()
            .filter_map(|t| Some(Assignment { mac: t.mac, addresses: t.address?.into(), host_name: name_of(t.app) }))
            .collect(),
        domain: instance.domain.clone(),
        mtu: instance.mtu,
        lease_seconds: LEASE_SECONDS,
        names: instance.names.clone(),
        upstreams: servers.iter().filter(|s| s.is_ipv4()).map(|s| SocketAddr::new(*s, 53)).collect(),
    }
}
