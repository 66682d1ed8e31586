//! The loop: events in, one turn of looking at everything, reports out.
//!
//! A turn compares what is wanted with what is there and starts what is missing; it never waits. What takes long (a
//! download, a service's end) goes on elsewhere and comes back as an event, and the next turn goes on from what is then
//! there. So it does not matter where an earlier run of this program stopped.
//!
//! Here: what the agent holds, and the loop. [`events`]: what comes in. [`config`]: a new config. [`fetching`], [`running`],
//! [`power`]: the parts of a turn for contents, for apps, and for base OS and reboots.

mod config;
mod events;
mod fetching;
pub(crate) mod power;
mod running;

use crate::boot::{Boot, Paths};
use crate::fetching::jobs::JobEvent;
use crate::logs::Waiting;
use crate::network::Network;
use crate::parts::app::decide::Runtime;
use crate::parts::app::vm as vms;
use crate::parts::content::state::Contents;
use crate::session;
use crate::store::Store;
use crate::supervisor::{Events, Supervisor};
use crate::trust::Device;
use crate::update::Update;
use crate::{last_good, machine, reports};
use anyhow::{Context, Result};
use holdfast_model::desired::Desired;
use holdfast_model::observed::{AppState, Observed, RebootRecord};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

/// Longest time between two turns when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// How often PID 1 is told that the loop turns.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Bound of each event queue.
const QUEUE: usize = 256;

/// An app on its way out, as its network needs it.
type Leaving = (holdfast_model::app::App, Vec<holdfast_model::net::NetworkInstance>);

/// The agent.
pub struct Agent {
    boot: Boot,
    paths: Paths,
    device: Rc<Device>,
    supervisor: Rc<RefCell<Supervisor>>,
    store: Store,
    desired: Desired,
    /// A config is in force (from the controller or from disk).
    configured: bool,
    contents: Contents,
    runtimes: BTreeMap<Uuid, Runtime>,
    /// Apps that the config has no more and whose VM still runs, with their network instances.
    leaving: BTreeMap<Uuid, Leaving>,
    names: BTreeMap<Uuid, String>,
    verdicts: BTreeMap<Uuid, (AppState, String)>,
    network: Network,
    update: Update,
    logs: Rc<RefCell<Waiting>>,
    log_cursor: u64,
    jobs: mpsc::Sender<JobEvent>,
    observed: watch::Sender<Observed>,
    addresses: watch::Sender<session::Addresses>,
    session: session::Status,
    last_reboot: RebootRecord,
    /// The boot before this one ended in a crash that its config may have caused.
    after_crash: bool,
    /// A reboot that was ordered: why, and since when.
    going_down: Option<(RebootRecord, Duration)>,
    /// When PID 1 was last asked for it.
    reboot_asked: Option<Duration>,
    /// Numbers of download jobs: a report of an earlier job of the same content is not this one's.
    fetches: u64,
    roots_pem: Vec<String>,
    said: BTreeSet<String>,
}

/// Where an agent is built from.
pub struct Parts {
    /// This boot.
    pub boot: Boot,
    /// Where things are.
    pub paths: Paths,
    /// The device's identity.
    pub device: Rc<Device>,
    /// PID 1.
    pub supervisor: Rc<RefCell<Supervisor>>,
    /// Lines for the controller.
    pub logs: Rc<RefCell<Waiting>>,
}

/// Runs the agent for ever.
///
/// # Errors
/// Only when PID 1 or the kernel's network interface cannot be reached; PID 1 then starts the agent anew.
pub async fn run(parts: Parts) -> Result<std::convert::Infallible> {
    let Parts { boot, paths, device, supervisor, logs } = parts;
    for folder in ["config", "identity", "volumes", "images", "status"] {
        let path = paths.data(folder);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    }
    fs::create_dir_all(paths.control())?;
    let (store, lost) = Store::load(paths.data("status/agent.json"));
    let (jobs, mut job_events) = mpsc::channel(QUEUE);
    let (session_sender, mut session_events) = mpsc::channel(QUEUE);
    let (observed, observed_receiver) = watch::channel(Observed::default());
    let (addresses, addresses_receiver) = watch::channel(session::Addresses::default());
    let mut events = Events::subscribe(&paths.supervise())?;
    let (network, mut leases) = Network::new(&boot, &paths, supervisor.clone(), QUEUE)?;
    let update = Update::open(&boot, &paths)?;
    let roots_pem = boot.site.as_ref().map(|s| vec![s.root_certs_pem.clone()]).unwrap_or_default();

    let mut agent = Agent {
        boot,
        paths,
        device,
        supervisor,
        store,
        desired: Desired::default(),
        configured: false,
        contents: Contents::default(),
        runtimes: BTreeMap::new(),
        leaving: BTreeMap::new(),
        names: BTreeMap::new(),
        verdicts: BTreeMap::new(),
        network,
        update,
        logs: logs.clone(),
        log_cursor: 0,
        jobs,
        observed,
        addresses,
        session: session::Status::default(),
        last_reboot: RebootRecord::default(),
        after_crash: false,
        going_down: None,
        reboot_asked: None,
        fetches: 0,
        roots_pem,
        said: BTreeSet::new(),
    };
    if let Some(text) = lost {
        agent.say("warning", &text);
    }
    let stored = agent.begin()?;
    session::spawn(session::Inputs {
        boot: agent.boot.clone(),
        paths: agent.paths.clone(),
        device: agent.device.clone(),
        observed: observed_receiver,
        logs,
        events: session_sender,
        known: agent.store.now.device,
        stored,
        addresses: addresses_receiver,
    })?;

    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut beaten = Duration::ZERO;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Ok(event) => agent.unit_event(event),
                Err(_) => {
                    // Dropped for being slow: subscribe again and look at everything.
                    events = Events::subscribe(&agent.paths.supervise())?;
                    agent.look_at_units()?;
                }
            },
            Some(event) = job_events.recv() => agent.job_event(event),
            Some(event) = session_events.recv() => agent.session_event(event),
            Some(lease) = leases.recv() => agent.network.lease(lease),
            changed = agent.network.changed() => agent.network.note(changed),
            _ = tick.tick() => {}
        }
        agent.turn().await;
        if machine::now().saturating_sub(beaten) >= HEARTBEAT {
            beaten = machine::now();
            agent.supervisor.borrow_mut().heartbeat()?;
        }
    }
}

impl Agent {
    /// What is done once: find what runs, take the last config from disk, say why the last boot ended.
    fn begin(&mut self) -> Result<Option<session::Stored>> {
        self.remove_partials();
        self.note_last_boot();
        self.enter_ready();
        self.keep_committed_epoch();
        let stored = match session::stored_config(&self.paths, &self.boot, &self.device, self.after_crash) {
            Ok(stored) => stored,
            Err(e) => {
                self.say("warning", &format!("the stored config is not used: {e:#}"));
                None
            }
        };
        if let Some(stored) = &stored {
            self.say("info", &format!("config {} from disk is in force", stored.desired.revision));
            // After a crash the config before is in force; what the one after it made of an object is not trusted.
            let (last, lost) = if self.after_crash { (Desired::default(), None) } else { last_good::load(&self.paths) };
            if let Some(text) = lost {
                self.say("warning", &text);
            }
            self.apply(&last, stored.desired.clone());
        }
        // After the config: whose lines are kept is asked of it.
        self.log_cursor = self.kept_log_cursor();
        self.look_at_units()?;
        Ok(stored)
    }

    /// Measures the phase word, once in a boot: a restarted agent finds the mark that the first one left.
    fn enter_ready(&mut self) {
        let mark = self.paths.run.join("ready");
        if OpenOptions::new().write(true).create_new(true).open(&mark).is_ok()
            && let Err(e) = self.device.identity().extend_phase(holdfast_format::pcr::phase::READY)
        {
            self.say("warning", &format!("phase `ready` is not measured: {e}"));
        }
    }

    /// Says it on the console and puts it into the device log; the same text again only after another one for the same thing.
    fn say(&mut self, severity: &'static str, text: &str) {
        eprintln!("{text}");
        let at = machine::wall_seconds().max(0).unsigned_abs() * 1_000_000_000;
        self.logs.borrow_mut().device_line(severity, at, text);
    }

    fn say_once(&mut self, severity: &'static str, text: &str) {
        if self.said.insert(text.to_owned()) {
            self.say(severity, text);
        }
        // Bounded: a long list of distinct texts starts over.
        if self.said.len() > 512 {
            self.said.clear();
        }
    }

    async fn turn(&mut self) {
        self.turn_network().await;
        self.turn_contents();
        self.turn_apps();
        self.turn_update();
        self.turn_down();
        if let Err(e) = self.store.save() {
            self.say_once("error", &format!("the agent's state cannot be saved: {e}; it goes on without"));
        }
        self.publish();
    }

    async fn turn_network(&mut self) {
        let numbers = self.store.now.numbers.clone();
        let networked = self.networked();
        let running: BTreeSet<Uuid> = self.runtimes.iter().filter(|(_, r)| r.has_vm()).map(|(id, _)| *id).collect();
        let (addresses, texts) = self
            .network
            .turn(
                &networked,
                self.configured,
                self.store.now.ports_worked.as_deref(),
                &|app| vms::FIRST_UID + numbers.get(&app).copied().unwrap_or(0),
                &self.store.now.addresses,
                &running,
            )
            .await;
        self.store.now.addresses = addresses;
        let worked = self.network.worked();
        if worked.is_some() && worked != self.store.now.ports_worked.as_deref() {
            self.store.now.ports_worked = worked.map(str::to_owned);
        }
        let now = self.network.management_addresses();
        self.addresses.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        for text in texts {
            self.say_once("info", &text);
        }
    }

    fn publish(&mut self) {
        let view = reports::View {
            boot: &self.boot,
            paths: &self.paths,
            desired: &self.desired,
            configured: self.configured,
            session: &self.session,
            device: self.store.now.device,
            last_reboot: &self.last_reboot,
            going_down: self.going_down.is_some(),
            reboot_counter: self.store.now.reboot_counter.unwrap_or(0),
            shutdown_counter: self.store.now.shutdown_counter.unwrap_or(0),
            contents: &self.contents,
            runtimes: &self.runtimes,
            verdicts: &self.verdicts,
            network: &self.network,
            update: &self.update,
            identity: self.device.identity().as_ref(),
            vault: self.device.vault(),
            pcrs: self.device.pcrs(),
        };
        let mut observed = reports::observe(&view);
        self.observed.send_if_modified(|old| {
            observed.settle(old, machine::wall_seconds());
            let changed = *old != observed;
            if changed {
                *old = observed;
            }
            changed
        });
    }
}
