//! Networks.
//!
//! Principles:
//! 1. `net/plan` decides, `net/engine` orders, the kernel and `netsvc` act: each operation of the engine is one of the agent's,
//!    and one that never ends holds up only what depends on it.
//! 2. Nothing that exists is touched before it is known what is wanted, what runs on it, and which leases are held.
//! 3. What a running virtual machine stands on stays until it has ended.
//! 4. The controller stays within reach: ports that do not lead to it are given up for others (`net/plan`'s list of ports).
//!
//! Reading order: [`facts`], [`state`] (pure), [`first`], [`report`], [`kept`], [`host`] (what the part acts through), [`services`],
//! [`real`].

pub mod facts;
pub mod first;
pub mod host;
pub mod kept;
pub mod real;
pub mod report;
pub mod services;
pub mod state;

use self::facts::{AppInterfaces, AppWarnings, Nics, Uplinks};
use self::host::{Changed, Host, LeaseNews, Sight};
use self::kept::Kept;
use self::state::{Asks, Planned, State};
use crate::keeper::{Keeper, Said};
use crate::machine;
use crate::part::{Event, Part, Turn};
use crate::parts::app::facts::{Guests, HeldVolumes};
use crate::parts::controller::facts::{Polled, Stored};
use crate::setup::Setup;
use holdfast_engine::{Graph, OpId, State as ItemState};
use holdfast_format::site::Site;
use holdfast_model::contract::network::Lease;
use holdfast_model::net::PortConfigs;
use holdfast_model::observed::{InstanceStatus, Observed, PortStatus};
use holdfast_plan::portlist::Now;
use holdfast_plan::{ItemKey, NetItem};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// File of the part below the data folder.
pub const FILE: &str = "status/network.json";
/// Between two tries of what the kernel refused.
const RETRY: Duration = Duration::from_secs(2);
/// Tries to read what exists; after them it is made as if nothing existed, which the driver accepts.
const DISCOVERIES: u32 = 3;
/// Longest wait for the stored config: without an end, a device whose controller part fails would never have a network.
const STORED: Duration = Duration::from_secs(20);

/// Something that is read from the kernel, one operation at a time.
#[derive(Debug, Default)]
struct Reading {
    wanted: bool,
    busy: bool,
    not_before: Duration,
}

impl Reading {
    fn wanted() -> Self {
        Self { wanted: true, ..Self::default() }
    }

    /// True when it is to be started now.
    fn begin(&mut self, turn: &mut Turn<'_>) -> bool {
        if !self.wanted || self.busy {
            return false;
        }
        if turn.now < self.not_before {
            turn.wake(self.not_before);
            return false;
        }
        (self.wanted, self.busy) = (false, true);
        true
    }

    fn ended(&mut self, failed: bool, now: Duration) {
        self.busy = false;
        if failed {
            (self.wanted, self.not_before) = (true, now + RETRY);
        }
    }
}

/// What is asked of the kernel.
#[derive(Debug)]
struct Readings {
    hosts: Reading,
    look: Reading,
    leases: Reading,
    discover: Reading,
    lost: Reading,
}

/// The part.
pub struct NetworkPart {
    host: Rc<dyn Host>,
    state: State,
    keeper: Keeper<Kept>,
    hosts: String,
    /// There is an app part; recovery has none, and nothing to keep.
    apps: bool,
    readings: Readings,
    seen: bool,
    recalled: bool,
    discoveries: u32,
    first_turn: Option<Duration>,
    ports: Vec<PortStatus>,
    port_configs: PortConfigs,
    instances: Vec<InstanceStatus>,
    failures: BTreeMap<ItemKey, String>,
    said: Said,
}

/// News: interfaces were looked at.
struct Looked(Result<Sight, String>);
/// News: leases from before this agent.
struct Recalled(BTreeMap<String, Lease>);
/// News: what exists.
struct Discovered(Result<Graph<NetItem>, String>);
/// News: what no longer exists.
struct Lost(Result<Vec<ItemKey>, String>);
/// News: an operation of the engine ended.
struct Ended(OpId, Vec<Result<(), String>>);
/// News: the hosts file was written.
struct HostsWritten(Result<(), String>);

fn clocks(turn: &Turn<'_>) -> Now {
    Now { uptime: turn.now, unix_seconds: machine::seconds_of(turn.wall) }
}

/// The part on a real machine.
///
/// # Errors
/// When the kernel's network cannot be reached.
pub fn new(setup: &Setup, kept: Option<&[u8]>) -> anyhow::Result<Box<dyn Part>> {
    let (host, changes) = real::Kernel::open(setup.supervisor.clone(), &setup.paths.names(), setup.paths.control())?;
    setup.task(|running| {
        tokio::task::spawn_local(changes.watch(running.events.clone()));
        Ok(())
    });
    let (site, kept) = (setup.boot.site.clone(), setup.kept(FILE, kept));
    Ok(Box::new(NetworkPart::over(Rc::new(host), site, kept, setup.vault_open)))
}

impl NetworkPart {
    /// A part that goes on from what was kept. `apps`: there is an app part.
    #[must_use]
    pub fn over(host: Rc<dyn Host>, site: Option<Site>, kept: Kept, apps: bool) -> Self {
        Self {
            host,
            hosts: first::hosts(site.as_ref()),
            state: State::new(site, &kept),
            keeper: Keeper::new(FILE, kept),
            apps,
            readings: Readings {
                hosts: Reading::wanted(),
                look: Reading::wanted(),
                leases: Reading::wanted(),
                discover: Reading::wanted(),
                lost: Reading::default(),
            },
            seen: false,
            recalled: false,
            discoveries: 0,
            first_turn: None,
            ports: Vec::new(),
            port_configs: PortConfigs::default(),
            instances: Vec::new(),
            failures: BTreeMap::new(),
            said: Said::default(),
        }
    }

    fn news(&mut self, event: &Event, turn: &mut Turn<'_>) {
        let now = clocks(turn);
        if let Some(Changed(events)) = event.news() {
            let asks = self.state.changed(events, now);
            self.asked(asks, turn);
        } else if let Some(LeaseNews { interface, lease }) = event.news() {
            if self.state.lease(interface, lease.as_ref(), now) {
                turn.say("info", lease_text(interface, lease.as_ref()));
            }
        } else if let Some(Polled(tried)) = event.news() {
            self.state.polled(tried, now);
        } else if let Some(Ended(id, results)) = event.news() {
            self.state.finished(*id, results.clone(), turn.now);
        } else {
            self.read(event, turn);
        }
    }

    fn asked(&mut self, asks: Asks, turn: &mut Turn<'_>) {
        self.readings.look.wanted |= asks.look;
        self.readings.lost.wanted |= asks.lost;
        for (interface, up) in asks.carriers {
            let tell = self.host.tell_carrier(interface.clone(), up);
            turn.start(format!("tell the DHCP client of {interface}"), tell);
        }
    }

    /// Takes in what was read from the kernel.
    fn read(&mut self, event: &Event, turn: &mut Turn<'_>) {
        let mut refused = |reading: &mut Reading, what: &str, result: Option<&String>, turn: &mut Turn<'_>| {
            reading.ended(result.is_some(), turn.now);
            if let Some(e) = result {
                self.said.once(turn, "error", &format!("{what}: {e}; tried again in {} s", RETRY.as_secs()));
            }
        };
        let readings = &mut self.readings;
        if let Some(HostsWritten(result)) = event.news() {
            refused(&mut readings.hosts, "static host names cannot be written", result.as_ref().err(), turn);
        } else if let Some(Looked(result)) = event.news() {
            refused(&mut readings.look, "interfaces cannot be read", result.as_ref().err(), turn);
            if let Ok(sight) = result {
                self.state.saw(sight, clocks(turn));
                self.seen = true;
            }
        } else if let Some(Recalled(leases)) = event.news() {
            readings.leases.ended(false, turn.now);
            for (interface, lease) in leases {
                self.state.lease(interface, Some(lease), clocks(turn));
            }
            self.recalled = true;
        } else if let Some(Discovered(result)) = event.news() {
            self.discoveries += 1;
            match result {
                Ok(found) => self.state.adopt(found.clone()),
                Err(_) if self.discoveries >= DISCOVERIES => self.state.adopt(Graph::new()),
                Err(_) => {}
            }
            refused(&mut readings.discover, "the present network cannot be read", result.as_ref().err(), turn);
        } else if let Some(Lost(result)) = event.news() {
            refused(&mut readings.lost, "the present network cannot be read", result.as_ref().err(), turn);
            if let Ok(keys) = result {
                self.state.lost(keys);
            }
        }
    }

    /// It is known what is wanted and what runs.
    fn is_ready(&mut self, turn: &mut Turn<'_>) -> bool {
        let since = *self.first_turn.get_or_insert(turn.now);
        if !self.seen || !self.recalled {
            return false;
        }
        if !self.apps {
            return true;
        }
        let without = turn.facts.get::<Stored>().is_some_and(|stored| !stored.found);
        let configured = turn.config.is_some() || without || turn.now >= since + STORED;
        // Published once PID 1 has said which virtual machines run.
        let units_known = turn.facts.get::<HeldVolumes>().is_some();
        if !configured {
            turn.wake(since + STORED);
        }
        configured && units_known && self.state.knows_users()
    }

    fn ask(&mut self, turn: &mut Turn<'_>) {
        if self.readings.hosts.begin(turn) {
            let write = self.host.write_hosts(self.hosts.clone());
            turn.start("write static host names", async move { HostsWritten(write.await) });
        }
        if self.readings.look.begin(turn) {
            let look = self.host.look();
            turn.start("look at interfaces", async move { Looked(look.await) });
        }
        if self.readings.leases.begin(turn) {
            let leases = self.host.leases();
            turn.start("ask for leases", async move { Recalled(leases.await) });
        }
        if self.state.is_planned() && !self.state.adopted && self.readings.discover.begin(turn) {
            let discover = self.host.discover(self.state.intended());
            turn.start("look at the present network", async move { Discovered(discover.await) });
        }
        if self.state.adopted && self.readings.lost.begin(turn) {
            let lost = self.host.lost(self.state.engine.current().clone());
            turn.start("look for what was lost", async move { Lost(lost.await) });
        }
    }

    /// Starts what can be started; true when something may have changed.
    fn drive(&mut self, turn: &mut Turn<'_>) -> bool {
        let Some(ops) = self.state.step(turn.now) else { return false };
        for op in ops {
            let what = op.actions.first().map(|a| format!("{} {}", a.verb(), a.key())).unwrap_or_default();
            let (id, run) = (op.id, self.host.run(op.actions));
            turn.start(what, async move { Ended(id, run.await) });
        }
        let failures: BTreeMap<ItemKey, String> = self.state.states.iter().filter_map(failure).collect();
        for (key, error) in &failures {
            if self.failures.get(key) != Some(error) {
                self.said.once(turn, "warning", &format!("{key}: {error}; it is tried again"));
            }
        }
        self.failures = failures;
        true
    }

    fn publish(&mut self, turn: &mut Turn<'_>) {
        let state = &self.state;
        let desired = state.desired.clone();
        let apps = || desired.iter().flat_map(|desired| &desired.apps);
        // While the plan is for another config, nobody is to start on it.
        let planned = state.is_planned() && state.adopted;
        let nics =
            if planned { apps().map(|app| (app.id, report::nics(state, app))).collect() } else { BTreeMap::new() };
        turn.facts.publish(Nics(nics));
        if !planned {
            return;
        }
        turn.facts.publish(AppInterfaces(apps().map(|a| (a.id, report::app_interfaces(state, a.id))).collect()));
        let warnings = apps().map(|app| (app.id, report::app_warnings(state, app.id)));
        turn.facts.publish(AppWarnings(warnings.filter(|(_, list)| !list.is_empty()).collect()));
        turn.facts.publish(Uplinks(report::uplinks(state)));
        self.ports = report::ports(state);
        self.port_configs = state.ports.report();
        self.instances = report::instances(state);
    }
}

fn failure((key, state): (&ItemKey, &ItemState)) -> Option<(ItemKey, String)> {
    match state {
        ItemState::Failed { error, .. } => Some((key.clone(), error.clone())),
        _ => None,
    }
}

fn lease_text(interface: &str, lease: Option<&Lease>) -> String {
    match lease {
        Some(lease) => format!("{interface}: {}/{} by DHCP from {}", lease.address, lease.prefix_length, lease.server),
        None => format!("{interface}: no DHCP lease"),
    }
}

impl Part for NetworkPart {
    fn name(&self) -> &'static str {
        "network"
    }

    fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        self.keeper.event(event, turn);
        if matches!(event, Event::News(_)) {
            self.news(event, turn);
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) {
        self.state.configure(turn.config, clocks(turn));
        self.state.guests(turn.facts.get::<Guests>());
        let mut changed = !self.state.is_planned();
        if self.is_ready(turn) {
            let Planned { chosen, faults } = self.state.plan(clocks(turn));
            chosen.into_iter().for_each(|text| turn.say("info", text));
            faults.iter().for_each(|text| self.said.once(turn, "warning", text));
            if self.apps {
                self.keeper.keep(&self.state.kept(), turn);
            }
        }
        self.ask(turn);
        changed |= self.drive(turn);
        if changed {
            self.publish(turn);
        }
        // One that is due and waits for something else is looked at when that changes.
        if let Some(at) = self.state.retry_at().filter(|at| *at > turn.now) {
            turn.wake(at);
        }
    }

    fn observe(&self, observed: &mut Observed) {
        observed.ports.clone_from(&self.ports);
        observed.port_configs.clone_from(&self.port_configs);
        observed.instances.clone_from(&self.instances);
    }
}

#[cfg(test)]
mod tests;
