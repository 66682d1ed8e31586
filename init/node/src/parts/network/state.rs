//! What is known of the networks, and what is to be done next: pure. `net/plan` plans, `net/engine` orders.

use super::first;
use super::host::{Interface, Sight};
use super::kept::Kept;
use crate::parts::app::facts::Guests;
use holdfast_engine::{Backoff, Engine, Fact, Graph, Op, OpId, State as ItemState};
use holdfast_format::site::Site;
use holdfast_model::app::App;
use holdfast_model::contract::network::Lease;
use holdfast_model::desired::Desired;
use holdfast_model::net::{NetworkInstance, PortConfigSource, Tried};
use holdfast_netkernel::cards::card_facts;
use holdfast_netkernel::{Event, link::Link};
use holdfast_plan::kinds::Guest;
use holdfast_plan::portlist::{Now, PortList, overlay};
use holdfast_plan::{Allocations, Input, ItemKey, LinkFact, NetItem, Plan, path, plan};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What a change that the monitor saw asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asks {
    /// The cards have to be looked at again.
    pub look: bool,
    /// Something of ours may no longer exist.
    pub lost: bool,
    /// Cables that came or went: interface, carrier.
    pub carriers: Vec<(String, bool)>,
}

/// What a new plan says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planned {
    /// Which ports are used from now on, when they are others than before, and why.
    pub chosen: Option<String>,
    /// What is wrong.
    pub faults: Vec<String>,
}

/// The networks.
#[derive(Debug)]
pub struct State {
    site: Option<Site>,
    pub(super) engine: Engine<NetItem>,
    /// What monotonic times of the agent are counted from, for the engine's.
    zero: Instant,
    /// The list of port configurations.
    pub ports: PortList,
    cards: Vec<LinkFact>,
    /// All interfaces, as last seen.
    pub interfaces: BTreeMap<String, Interface>,
    /// Leases by interface.
    pub leases: BTreeMap<String, Lease>,
    /// Apps and their virtual machines.
    guests: Guests,
    /// Apps whose virtual machine runs and that the config no longer has, or has with a fault, as they were, with their network
    /// instances: they keep their network until they have ended.
    standing: BTreeMap<Uuid, (App, Vec<NetworkInstance>)>,
    allocations: Allocations,
    paths: path::Facts,
    /// The config that the plan is for.
    pub desired: Option<Rc<Desired>>,
    /// The plan.
    pub plan: Option<Plan>,
    /// States of all items, as of the last step.
    pub states: BTreeMap<ItemKey, ItemState>,
    /// The plan is not for what is known now.
    outdated: bool,
    /// Something changed for the engine.
    stirred: bool,
    /// What exists has been taken over.
    pub adopted: bool,
}

impl State {
    /// Nothing is known but what was kept.
    #[must_use]
    pub fn new(site: Option<Site>, kept: &Kept) -> Self {
        Self {
            site,
            engine: Engine::new(Backoff::default()),
            zero: Instant::now(),
            ports: PortList::new(kept.worked.clone()),
            cards: Vec::new(),
            interfaces: BTreeMap::new(),
            leases: BTreeMap::new(),
            guests: Guests::default(),
            standing: BTreeMap::new(),
            allocations: kept.addresses.clone(),
            paths: path::Facts::default(),
            desired: None,
            plan: None,
            states: BTreeMap::new(),
            outdated: true,
            stirred: true,
            adopted: false,
        }
    }

    /// What is to be kept over restarts.
    #[must_use]
    pub fn kept(&self) -> Kept {
        Kept { addresses: self.allocations.clone(), worked: self.ports.worked().cloned() }
    }

    /// Takes the interfaces in.
    pub fn saw(&mut self, sight: &Sight, now: Now) {
        self.interfaces.clone_from(&sight.interfaces);
        self.stirred = true;
        if self.cards != sight.cards {
            self.cards.clone_from(&sight.cards);
            self.outdated = true;
        }
        self.ports.set(PortConfigSource::Site, first::of_site(self.site.as_ref(), &self.cards), now);
        self.ports.set(PortConfigSource::LastResort, Some(first::of_any(&self.cards)), now);
    }

    /// Takes changes of interfaces and addresses in.
    pub fn changed(&mut self, events: &[Event], now: Now) -> Asks {
        let mut asks = Asks::default();
        for event in events {
            match event {
                // What no longer exists is asked of the kernel: the event may be older than a new item of that name.
                Event::LinkGone(_) | Event::Overrun => (asks.look, asks.lost) = (true, true),
                Event::AddressGone(_) => asks.lost = true,
                Event::Address(_) => {}
                Event::Link(link) => self.link_changed(link, &mut asks),
            }
        }
        if !asks.carriers.is_empty() {
            self.ports.changed(now);
        }
        self.stirred = true;
        asks
    }

    fn link_changed(&mut self, link: &Link, asks: &mut Asks) {
        let seen = super::real::interface(link);
        let before = self.interfaces.insert(link.name.clone(), seen);
        if !seen.physical {
            return;
        }
        asks.look |= before.is_none_or(|before| before.mac != seen.mac);
        if before.is_none_or(|before| before.carrier != seen.carrier) {
            asks.carriers.retain(|(name, _)| *name != link.name);
            asks.carriers.push((link.name.clone(), seen.carrier));
        }
    }

    /// Takes a lease in; true when it is another than before.
    pub fn lease(&mut self, interface: &str, lease: Option<&Lease>, now: Now) -> bool {
        let before = match lease {
            Some(lease) => self.leases.insert(interface.to_owned(), lease.clone()),
            None => self.leases.remove(interface),
        };
        let changed = before.as_ref() != lease;
        if changed {
            self.outdated = true;
            self.ports.changed(now);
        }
        changed
    }

    /// Takes in what a poll of the controller brought.
    pub fn polled(&mut self, tried: &[Tried], now: Now) {
        self.ports.polled(tried, now);
        self.stirred = true;
    }

    /// Takes the config in.
    pub fn configure(&mut self, desired: Option<&Rc<Desired>>, now: Now) {
        let same = match (&self.desired, desired) {
            (Some(a), Some(b)) => Rc::ptr_eq(a, b) || a == b,
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.leave(desired.map_or(&[], |d| &d.apps));
            self.desired = desired.cloned();
            if let Some(desired) = desired {
                self.ports.set_properties(&desired.properties);
            }
            self.ports.set(PortConfigSource::Controller, desired.map(|d| first::layers(d)), now);
            self.outdated = true;
        }
    }

    /// Apps that are not among `apps` but run stay as they are.
    fn leave(&mut self, apps: &[App]) {
        let is_in = |id: &Uuid| apps.iter().any(|app| app.id == *id);
        self.standing.retain(|id, _| !is_in(id));
        let before = self.desired.iter().flat_map(|d| d.apps.iter().map(move |app| (d, app)));
        for (desired, app) in before.filter(|(_, app)| !is_in(&app.id) && self.guests.runs(&app.id)) {
            let of_app = |i: &&NetworkInstance| app.interfaces.iter().any(|interface| interface.instance == i.id);
            let instances = desired.instances.iter().filter(of_app).cloned().collect();
            self.standing.insert(app.id, (app.clone(), instances));
        }
    }

    /// Takes in what the app part says of virtual machines. `None`: there is no app part, and no app.
    pub fn guests(&mut self, guests: Option<&Guests>) {
        let nothing = Guests::default();
        let guests = guests.unwrap_or(&nothing);
        if self.guests != *guests {
            let users = |guests: &Guests| guests.0.iter().map(|(app, g)| (*app, g.uid)).collect::<Vec<_>>();
            self.outdated |= users(&self.guests) != users(guests);
            self.guests = guests.clone();
            self.stirred = true;
            let before = self.standing.len();
            self.standing.retain(|id, _| guests.runs(id));
            self.outdated |= self.standing.len() != before;
        }
    }

    /// Every app of the config has a user that its taps can be for.
    #[must_use]
    pub fn knows_users(&self) -> bool {
        self.desired.iter().flat_map(|d| &d.apps).all(|app| self.guests.0.contains_key(&app.id))
    }

    /// Chooses the ports and plans, where something changed.
    pub fn plan(&mut self, now: Now) -> Planned {
        let chosen = self.ports.turn(now);
        let up = self.interfaces.iter().filter(|(_, i)| i.physical && i.up);
        let paths = path::Facts {
            carrier: up.map(|(name, i)| (name.clone(), i.carrier)).collect(),
            reach: self.ports.reach(now),
        };
        if !self.outdated && chosen.is_none() && paths == self.paths {
            return Planned::default();
        }
        self.paths = paths;
        self.outdated = false;
        self.stirred = true;
        let effective = self.effective();
        let app_uids: BTreeMap<Uuid, u32> = self.guests.0.iter().map(|(app, guest)| (*app, guest.uid)).collect();
        let made = plan(&Input {
            desired: &effective,
            links: &self.cards,
            leases: &self.leases,
            allocations: &self.allocations,
            paths: &self.paths,
            app_uids: &app_uids,
        });
        self.allocations = made.allocations.clone();
        if self.adopted {
            self.engine.set_intended(made.graph.clone());
        }
        let faults = made.faults.iter().map(|fault| fault.text.clone()).collect();
        self.plan = Some(made);
        Planned { chosen, faults }
    }

    /// The config with the ports that are in use.
    fn effective(&self) -> Desired {
        let mut desired = self.desired.as_deref().cloned().unwrap_or_default();
        for (app, instances) in self.standing.values() {
            desired.apps.push(app.clone());
            let missing = instances.iter().filter(|i| desired.instances.iter().all(|own| own.id != i.id));
            let missing: Vec<NetworkInstance> = missing.cloned().collect();
            desired.instances.extend(missing);
        }
        match self.ports.current() {
            Some(config) if config.source != PortConfigSource::Controller => {
                overlay(&desired, &config.layers, &self.cards)
            }
            _ => desired,
        }
    }

    /// The plan is for what is known now.
    #[must_use]
    pub fn is_planned(&self) -> bool {
        self.plan.is_some() && !self.outdated
    }

    /// What to look for in the kernel.
    #[must_use]
    pub fn intended(&self) -> Graph<NetItem> {
        self.plan.as_ref().map(|plan| plan.graph.clone()).unwrap_or_default()
    }

    /// Takes over what exists.
    pub fn adopt(&mut self, found: Graph<NetItem>) {
        self.engine.adopt(found);
        self.engine.set_intended(self.intended());
        (self.adopted, self.stirred) = (true, true);
    }

    /// These are believed to exist and do not.
    pub fn lost(&mut self, keys: &[ItemKey]) {
        keys.iter().for_each(|key| self.engine.mark_lost(key));
        self.stirred |= !keys.is_empty();
    }

    /// An operation ended.
    pub fn finished(&mut self, id: OpId, results: Vec<Result<(), String>>, now: Duration) {
        self.engine.finished(id, results, self.zero + now);
        self.stirred = true;
    }

    /// The operations that can start now; `None` when nothing changed since the last step.
    pub fn step(&mut self, now: Duration) -> Option<Vec<Op<NetItem>>> {
        let due = self.engine.next_retry().is_some_and(|at| at <= self.zero + now);
        if !self.adopted || !std::mem::take(&mut self.stirred) && !due {
            return None;
        }
        for fact in card_facts(&self.cards, self.engine.current()) {
            self.engine.tell(fact);
        }
        self.tell_guests();
        let ops = self.engine.next(self.zero + now);
        self.states = self.engine.states();
        Some(ops)
    }

    /// What running virtual machines stand on stays.
    fn tell_guests(&mut self) {
        let ended = |key: &&ItemKey| matches!(key, ItemKey::Guest(app) if !self.guests.runs(app));
        let ended: Vec<ItemKey> = self.engine.current().iter().map(|(key, _)| key).filter(ended).cloned().collect();
        for key in ended {
            self.engine.tell(Fact::Absent(key));
        }
        for (app, _) in self.guests.0.iter().filter(|(_, guest)| guest.running) {
            let guest = Guest::of(*app, self.engine.current());
            self.engine.tell(Fact::Present(NetItem::from(guest).into()));
        }
    }

    /// When to step again though nothing changes.
    #[must_use]
    pub fn retry_at(&self) -> Option<Duration> {
        self.engine.next_retry().map(|at| at.saturating_duration_since(self.zero))
    }

    /// The ports in use are not those of the config, although it has some that lead to the controller.
    #[must_use]
    pub fn fallen_back_to(&self) -> Option<PortConfigSource> {
        let source = self.ports.current()?.source;
        let leads = self.desired.as_ref().is_some_and(|d| first::layers(d).reach_controller());
        (leads && source != PortConfigSource::Controller).then_some(source)
    }

    /// Facts about paths, as of the last plan.
    #[must_use]
    pub fn paths(&self) -> &path::Facts {
        &self.paths
    }
}
