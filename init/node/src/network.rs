//! The networks of the device: `net/plan` decides, `net/engine` orders, `net/kernel` acts; here they meet the config, the
//! leases and the clock.

use crate::boot::{Boot, Paths};
use crate::machine;
use crate::parts::app::decide::Readiness;
use crate::parts::app::vm::Nic;
use crate::ports::{self, PortTest, Using};
use crate::services::{LeaseEvent, Units};
use crate::supervisor::Supervisor;
use anyhow::{Context, Result};
use holdfast_engine::{Backoff, Change, Engine, Fact, Facts, Graph, Report, State, diff, drive};
use holdfast_format::site::{self, Site};
use holdfast_model::app::App;
use holdfast_model::contract::network::{Lease, Reply, Request};
use holdfast_model::desired::Desired;
use holdfast_model::net::{Adapter, Addressing4, Addressing6, Prefix, Static};
use holdfast_model::observed::{AppInterfaceStatus, AppState, InstanceStatus, PortStatus};
use holdfast_model::trouble::{self, Object, ObjectKind, Severity, Trouble};
use holdfast_netkernel::cards::{card_facts, physical_links};
use holdfast_netkernel::monitor::Event;
use holdfast_netkernel::{Monitor, NetDriver, Services as _};
use holdfast_plan::kinds::service::{Service, ServiceKind};
use holdfast_plan::kinds::{Address, Guest};
use holdfast_plan::{Allocations, Input, ItemKey, LinkFact, NetItem, Plan, TapPlan, last_resort, plan};
use holdfast_plan::{names, path};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use tokio::sync::mpsc;
use uuid::Uuid;

/// All networks.
pub struct Network {
    engine: Engine<NetItem>,
    driver: NetDriver<Units>,
    monitor: Monitor,
    site: Option<Site>,
    hosts: PathBuf,
    hosts_written: String,
    leases: BTreeMap<String, Lease>,
    plan: Option<Plan>,
    states: BTreeMap<ItemKey, State>,
    adopted: bool,
    /// Something of ours may be gone from the kernel.
    gone: bool,
    carriers: BTreeMap<String, bool>,
    carriers_to_tell: Vec<String>,
    /// Something changed that the plan or the kernel's state depends on.
    dirty: bool,
    retry: Option<std::time::Instant>,
    planned_for: Option<(Desired, Allocations)>,
    /// Apps whose VM ran in the last turn.
    running: BTreeSet<Uuid>,
    test: PortTest,
    /// The config that the test is about.
    tested: ports::Config,
}

impl Network {
    /// Connects to the kernel. Leases come through the receiver.
    ///
    /// # Errors
    /// When netlink cannot be opened.
    pub fn new(
        boot: &Boot,
        paths: &Paths,
        supervisor: Rc<RefCell<Supervisor>>,
        queue: usize,
    ) -> Result<(Self, mpsc::Receiver<LeaseEvent>)> {
        let (sender, receiver) = mpsc::channel(queue);
        let run = paths.run.parent().unwrap_or(&paths.run).to_owned();
        let driver = NetDriver::new(Units::new(supervisor, paths.control(), sender), run.join("resolv.conf"))?;
        let network = Self {
            engine: Engine::new(Backoff::default()),
            driver,
            monitor: Monitor::new().context("network monitor")?,
            site: boot.site.clone(),
            hosts: run.join("hosts"),
            hosts_written: String::new(),
            leases: BTreeMap::new(),
            plan: None,
            states: BTreeMap::new(),
            adopted: false,
            gone: false,
            carriers: BTreeMap::new(),
            carriers_to_tell: Vec::new(),
            dirty: true,
            retry: None,
            planned_for: None,
            running: BTreeSet::new(),
            test: PortTest::new(machine::now(), false),
            tested: ports::Config::default(),
        };
        Ok((network, receiver))
    }

    /// The next change of an interface or address.
    ///
    /// # Errors
    /// When the kernel ends the subscription.
    pub async fn changed(&mut self) -> io::Result<Event> {
        self.monitor.next().await
    }

    /// Takes a change in.
    pub fn note(&mut self, changed: io::Result<Event>) {
        match changed {
            // Which of ours is gone is asked of the kernel in the next turn: the event may be older than a new one of that name.
            Ok(Event::LinkGone(_) | Event::AddressGone(_) | Event::Overrun) => self.gone = true,
            Ok(Event::Link(link)) if link.kind.is_empty() => {
                if self.carriers.insert(link.name.clone(), link.carrier) != Some(link.carrier) {
                    self.carriers_to_tell.push(link.name);
                }
            }
            Ok(_) => {}
            Err(e) => eprintln!("network monitor: {e}"),
        }
        self.dirty = true;
    }

    /// What was lost by other hands is made anew.
    async fn look_for_lost(&mut self) {
        if !std::mem::take(&mut self.gone) || !self.adopted {
            return;
        }
        match self.driver.lost(self.engine.current()).await {
            Ok(keys) => keys.iter().for_each(|key| self.engine.mark_lost(key)),
            Err(e) => eprintln!("the present network cannot be read: {e}"),
        }
    }

    /// Leases that DHCP clients hold from before a restart of the agent: a plan without them would take the addresses away.
    async fn recall_leases(&mut self) {
        for service in self.driver.services.running().await {
            if let ServiceKind::DhcpClient(_) = service.kind
                && let Ok(Reply::Lease { lease: Some(lease), .. }) =
                    self.driver.services.ask(&service.name, &Request::Query).await
            {
                self.leases.insert(service.link.clone(), lease);
            }
        }
    }

    /// A DHCP client learns that its cable came or went.
    async fn tell_carriers(&mut self) {
        for interface in std::mem::take(&mut self.carriers_to_tell) {
            let up = self.carriers.get(&interface).copied().unwrap_or_default();
            // No client on this interface, or not yet: it looks for itself when it starts.
            let _ = self.driver.services.ask(&names::dhcp_client(&interface), &Request::Carrier { up }).await;
        }
    }

    /// What running VMs stand on stays.
    fn tell_guests(&mut self) {
        let ended = |key: &ItemKey| matches!(key, ItemKey::Guest(app) if !self.running.contains(app));
        let ended: Vec<ItemKey> = self.engine.current().iter().map(|(k, _)| k).filter(|k| ended(k)).cloned().collect();
        for key in ended {
            self.engine.tell(Fact::Absent(key));
        }
        for app in &self.running {
            let guest = Guest::of(*app, self.engine.current());
            self.engine.tell(Fact::Present(NetItem::from(guest).into()));
        }
    }

    /// Takes a lease in.
    pub fn lease(&mut self, event: LeaseEvent) {
        let changed = match &event.lease {
            Some(lease) => self.leases.insert(event.link.clone(), lease.clone()).as_ref() != Some(lease),
            None => self.leases.remove(&event.link).is_some(),
        };
        if changed {
            match &event.lease {
                Some(lease) => {
                    eprintln!("{}: {}/{} by DHCP from {}", event.link, lease.address, lease.prefix_length, lease.server)
                }
                None => eprintln!("{}: no DHCP lease", event.link),
            }
        }
        self.dirty |= changed;
    }

    /// The controller, or something that stands for it, answered.
    pub fn contact(&mut self) {
        self.test.contact(machine::now());
    }

    /// A poll brought no answer.
    pub fn no_contact(&mut self) {
        self.test.failed();
    }

    /// The config whose ports have led to the controller, by hash.
    #[must_use]
    pub fn worked(&self) -> Option<&str> {
        self.test.worked().then(|| self.tested.hash())
    }

    /// Which ports are to be used from now on; says so when they change. `worked`: the hash of a config whose ports have led to the
    /// controller before.
    fn choose_ports(&mut self, desired: &Desired, configured: bool, worked: Option<&str>) -> Option<String> {
        if !configured || !has_management(desired) {
            return None;
        }
        if !self.tested.is_of(desired) {
            self.tested = ports::Config::of(desired);
            let before = worked == Some(self.tested.hash());
            self.test = PortTest::new(machine::now(), before);
        }
        let said = self.test.judge(machine::now())?;
        self.dirty = true;
        Some(said.to_owned())
    }

    /// Makes the networks as they are wanted; returns the allocations to keep and what is worth saying. The taps of apps
    /// that are `running` keep their kind.
    pub async fn turn(
        &mut self,
        desired: &Desired,
        configured: bool,
        worked: Option<&str>,
        uid_of: &dyn Fn(Uuid) -> u32,
        allocations: &Allocations,
        running: &BTreeSet<Uuid>,
    ) -> (Allocations, Vec<String>) {
        let mut texts: Vec<String> = self.choose_ports(desired, configured, worked).into_iter().collect();
        let due = self.retry.is_some_and(|at| std::time::Instant::now() >= at);
        let same = self.planned_for.as_ref().is_some_and(|(d, a)| d == desired && a == allocations);
        let same_guests = self.running == *running;
        if same && !self.dirty && !due && same_guests {
            return (allocations.clone(), texts);
        }
        self.dirty = false;
        if !self.adopted {
            self.recall_leases().await;
        }
        self.look_for_lost().await;
        let links = physical_links(self.driver.netlink()).await.unwrap_or_default();
        let effective = self.effective(desired, configured, &links);
        let paths = path::Facts { carrier: self.carriers.clone(), ..path::Facts::default() };
        let app_uids: BTreeMap<Uuid, u32> = effective.apps.iter().map(|a| (a.id, uid_of(a.id))).collect();
        let made = plan(&Input {
            desired: &effective,
            links: &links,
            leases: &self.leases,
            allocations,
            paths: &paths,
            app_uids: &app_uids,
        });
        for fault in &made.faults {
            texts.push(fault.text.clone());
        }
        if !self.adopted {
            match self.driver.discover(&made.graph).await {
                Ok(found) => self.engine.adopt(found),
                Err(e) => texts.push(format!("the present network cannot be read: {e}")),
            }
            self.adopted = true;
        }
        self.running.clone_from(running);
        for fact in card_facts(&links, self.engine.current()) {
            self.engine.tell(fact);
        }
        let before = self.states.clone();
        self.engine.set_intended(made.graph.clone());
        let leaving = services_to_stop(&made.graph, self.engine.current());
        self.driver.services.begin_to_stop(&leaving);
        let mut report = Report::default();
        // The second time, what VMs have left for another bridge can go.
        for _ in 0..2 {
            self.tell_guests();
            report = drive(&mut self.engine, &self.driver, std::time::Instant::now()).await;
        }
        self.retry = report.next_retry;
        self.states = self.engine.states();
        for (key, state) in &self.states {
            if let State::Failed { error, .. } = state
                && before.get(key) != Some(state)
            {
                texts.push(format!("{key}: {error}; it is tried again"));
            }
        }
        self.tell_carriers().await;
        self.write_hosts();
        let kept = made.allocations.clone();
        self.planned_for = Some((desired.clone(), kept.clone()));
        self.plan = Some(made);
        (kept, texts)
    }

    /// The config's networks; where it has no port to the controller, those of the first boot; where it has some that do not lead
    /// there, those on the config's ports.
    fn effective(&self, desired: &Desired, configured: bool, links: &[LinkFact]) -> Desired {
        match (configured && has_management(desired), self.test.using()) {
            (true, Using::Configured) => desired.clone(),
            (true, Using::Fallback) => ports::with_fallback(desired, &self.first_boot(links), links),
            (false, _) => {
                let Desired { ports, links, adapters, .. } = self.first_boot(links);
                Desired { ports, links, adapters, ..desired.clone() }
            }
        }
    }

    /// The networks of the site, else a last resort: DHCP on all Ethernet ports.
    fn first_boot(&self, links: &[LinkFact]) -> Desired {
        let wanted = self.site.as_ref().and_then(|s| s.network.interface.clone());
        let chosen: Vec<LinkFact> =
            links.iter().filter(|l| wanted.as_ref().is_none_or(|w| *w == l.name)).cloned().collect();
        let mut first = last_resort(&chosen);
        if let Some(site::Addressing::Static { address, prefix_len, gateway, dns }) =
            self.site.as_ref().map(|s| &s.network.addressing)
        {
            for adapter in &mut first.adapters {
                let fixed = Static { address: *address, prefix_length: *prefix_len, gateway: *gateway };
                (adapter.v4, adapter.v6) = (Addressing4::Static(fixed), Addressing6::None);
                adapter.dns.clone_from(dns);
            }
        }
        first
    }

    /// `/run/hosts`: names that the site gives addresses for.
    fn write_hosts(&mut self) {
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
        if let Some(site) = &self.site {
            if let (Some(address), Ok((name, _))) = (site.server_address, site.host_port()) {
                let _ = writeln!(text, "{address} {name}");
            }
            for host in &site.hosts {
                let _ = writeln!(text, "{} {}", host.address, host.name);
            }
        }
        if text != self.hosts_written {
            match crate::store::replace(&self.hosts, text.as_bytes(), 0o644) {
                Ok(()) => self.hosts_written = text,
                Err(e) => eprintln!("{}: {e}", self.hosts.display()),
            }
        }
    }

    /// Interfaces that may lead to the controller, with the addresses that they really have.
    #[must_use]
    pub fn management_addresses(&self) -> BTreeSet<(String, IpAddr)> {
        let there =
            |link: &str, prefix: Prefix| self.states.get(&Address::key_of(link, prefix)) == Some(&State::Created);
        let ports = self.plan.iter().flat_map(|plan| &plan.ports).filter(|port| port.management);
        ports
            .flat_map(|port| {
                let addresses = port.addresses.iter().filter(|prefix| there(&port.interface, **prefix));
                addresses.map(|prefix| (port.interface.clone(), prefix.address))
            })
            .collect()
    }

    fn taps(&self, app: Uuid) -> Vec<&TapPlan> {
        let mut list: Vec<&TapPlan> = self.plan.iter().flat_map(|p| p.taps.iter()).filter(|t| t.app == app).collect();
        list.sort_by_key(|t| t.index);
        list
    }

    /// The NICs that a start of the app would use.
    ///
    /// # Errors
    /// What is missing: a network instance that is not there yet, or a fault.
    pub fn nics(&self, app: &App) -> Result<Vec<Nic>, Readiness> {
        let taps = self.taps(app.id);
        let mut nics = Vec::new();
        for (index, interface) in app.interfaces.iter().enumerate() {
            if let Some(fault) = self.app_fault(app.id) {
                return Err(Readiness::Failed(format!("app {}: {}", app.name, fault.text)));
            }
            if let Some(fault) = self.instance_fault(interface.instance) {
                return Err(Readiness::Failed(format!("app {}: {}", app.name, fault.text)));
            }
            let Some(tap) = taps.iter().find(|t| t.index == index) else {
                return Err(Readiness::Coming(AppState::AwaitNetworkInstance));
            };
            for key in [
                ItemKey::Link(tap.tap.clone()),
                ItemKey::BridgePort(tap.tap.clone()),
                ItemKey::Link(tap.bridge.clone()),
            ] {
                match self.states.get(&key) {
                    Some(State::Created) => {}
                    Some(State::Failed { error, .. }) => {
                        return Err(Readiness::Failed(format!("app {}: {key}: {error}", app.name)));
                    }
                    _ => return Err(Readiness::Coming(AppState::AwaitNetworkInstance)),
                }
            }
            nics.push(Nic {
                tap: tap.tap.clone(),
                mac: tap.mac,
                mtu: u16::try_from(tap.mtu).unwrap_or(1500),
                queue_pairs: tap.queue_pairs,
            });
        }
        Ok(nics)
    }

    /// What keeps an app from its network; warnings do not.
    fn app_fault(&self, app: Uuid) -> Option<&Trouble> {
        self.faults(ObjectKind::App, app).find(|fault| fault.severity == Severity::Error)
    }

    fn instance_fault(&self, instance: Uuid) -> Option<&Trouble> {
        self.faults(ObjectKind::NetworkInstance, instance).find(|fault| fault.severity == Severity::Error)
    }

    fn faults(&self, kind: ObjectKind, id: impl ToString) -> impl Iterator<Item = &Trouble> {
        let id = id.to_string();
        self.plan.iter().flat_map(|plan| &plan.faults).filter(move |fault| fault.on.is(kind, &id))
    }

    /// Interfaces of an app as they are reported.
    #[must_use]
    pub fn app_interfaces(&self, app: &App) -> Vec<AppInterfaceStatus> {
        self.taps(app.id)
            .into_iter()
            .map(|t| AppInterfaceStatus {
                name: t.name.clone(),
                mac: t.mac,
                addresses: t.address.map(IpAddr::V4).into_iter().collect(),
                tap: t.tap.clone(),
            })
            .collect()
    }

    /// Adapters as they are reported.
    #[must_use]
    pub fn ports(&self) -> Vec<PortStatus> {
        let Some(plan) = &self.plan else {
            return Vec::new();
        };
        let unused = |name: &str| match self.test.using() {
            Using::Configured => None,
            Using::Fallback => Some(Trouble::warning(
                Object::new(ObjectKind::Adapter, name, name),
                "no contact with the controller over the ports as configured: the network of the first boot is in use",
            )),
        };
        let mut list: Vec<PortStatus> = plan
            .ports
            .iter()
            .map(|p| PortStatus {
                name: p.name.clone(),
                interface: p.interface.clone(),
                mac: mac_of(&p.interface),
                up: machine::line(format!("/sys/class/net/{}/operstate", p.interface)) == "up",
                management: p.management,
                dhcp: p.dhcp,
                addresses: p.addresses.iter().map(|a| a.address).collect(),
                prefix_length: p.addresses.first().map_or(0, |a| a.length),
                gateways: p.gateway.into_iter().collect(),
                dns: p.dns.clone(),
                domain: p.domain.clone(),
                mtu: p.mtu,
                cost: p.cost,
                troubles: self.faults(ObjectKind::Adapter, &p.name).cloned().chain(unused(&p.name)).collect(),
            })
            .collect();
        for fault in plan.faults.iter().filter(|f| f.on.kind == ObjectKind::Adapter) {
            if !list.iter().any(|p| p.name == fault.on.id) {
                let troubles = vec![fault.clone()];
                list.push(PortStatus { name: fault.on.id.clone(), troubles, ..PortStatus::default() });
            }
        }
        list
    }

    /// Network instances as they are reported.
    #[must_use]
    pub fn instances(&self, desired: &Desired) -> Vec<InstanceStatus> {
        let mut list = Vec::new();
        for wanted in &desired.instances {
            let planned = self.plan.iter().flat_map(|p| p.instances.iter()).find(|p| p.id == wanted.id);
            let mut troubles: Vec<Trouble> = self.faults(ObjectKind::NetworkInstance, wanted.id).cloned().collect();
            let mut keys = Vec::new();
            if let Some(p) = planned {
                keys.push(ItemKey::Link(p.bridge.clone()));
                keys.extend(p.service.as_ref().map(|s| ItemKey::Service(s.clone())));
            }
            for key in &keys {
                if let Some(State::Failed { error: text, .. }) = self.states.get(key)
                    && trouble::worst(&troubles) != Some(Severity::Error)
                {
                    let on = Object::new(ObjectKind::NetworkInstance, wanted.id, &wanted.name);
                    troubles.push(Trouble::error(on, format!("network instance {}: {key}: {text}", wanted.name)));
                }
            }
            let made = !keys.is_empty() && keys.iter().all(|k| self.states.get(k) == Some(&State::Created));
            let taps: Vec<&TapPlan> =
                self.plan.iter().flat_map(|p| p.taps.iter()).filter(|t| t.instance == wanted.id).collect();
            list.push(InstanceStatus {
                id: wanted.id,
                version: wanted.version.clone(),
                name: wanted.name.clone(),
                kind: wanted.kind,
                activated: made && wanted.activate,
                bridge: planned.map(|p| p.bridge.clone()).unwrap_or_default(),
                address: planned.and_then(|p| p.address).map(|a| a.address),
                uplink: planned.and_then(|p| p.uplink_adapter.clone()).unwrap_or_default(),
                assignments: taps.iter().filter_map(|t| t.address.map(|a| (t.mac, IpAddr::V4(a)))).collect(),
                interfaces: taps.iter().map(|t| (t.tap.clone(), t.mac, t.app)).collect(),
                troubles,
            });
        }
        list
    }
}

/// The config has a port to the controller.
fn has_management(desired: &Desired) -> bool {
    desired.adapters.iter().any(Adapter::reaches_controller)
}

/// The services that the way from `current` to `intended` ends.
fn services_to_stop(intended: &Graph<NetItem>, current: &Graph<NetItem>) -> Vec<Service> {
    let changes = diff(intended, current, &Facts::default()).changes;
    let ends = changes.into_iter().filter(|(_, change)| matches!(change, Change::Remove | Change::Recreate));
    ends.filter_map(|(key, _)| match current.get(&key) {
        Some(NetItem::Service(service)) => Some(service.clone()),
        _ => None,
    })
    .collect()
}

fn mac_of(interface: &str) -> [u8; 6] {
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(machine::line(format!("/sys/class/net/{interface}/address")).split(':')) {
        *byte = u8::from_str_radix(text, 16).unwrap_or(0);
    }
    mac
}
