//! The loop: events in, one turn of looking at everything, reports out.
//!
//! A turn compares what is wanted with what is there and starts what is missing; it never waits. What takes long (a
//! download, a service's end) goes on elsewhere and comes back as an event, and the next turn goes on from what is then
//! there. So it does not matter where an earlier run of this program stopped.

use crate::apps::{self, Readiness, Runtime, Step, Vm, World};
use crate::boot::{Boot, Paths};
use crate::contents::{Contents, Fetch, What, plan as plan_fetch};
use crate::debug;
use crate::jobs::{self, JobEvent};
use crate::logs::{GuestReport, Waiting};
use crate::machine;
use crate::network::Network;
use crate::session::{self, SessionEvent};
use crate::store::{KeptContent, Store};
use crate::supervisor::{Events, Supervisor};
use crate::trust::Device;
use crate::update::Update;
use crate::vms::{self, Disk, Plan};
use crate::{reports, volumes};
use anyhow::{Context, Result};
use holdfast_fetch::job::{FailureClass, Outcome, Report, Task};
use holdfast_model::app::App;
use holdfast_model::desired::Desired;
use holdfast_model::observed::{AppState, BootReason, Observed, RebootRecord};
use holdfast_model::storage::{ImageFormat, VolumeOrigin};
use holdfast_supervise::{Event, UnitName, UnitState, UnitStatus};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::PathBuf;
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
/// Time that running apps get to end before an ordered reboot goes on without them.
const REBOOT_PATIENCE: Duration = Duration::from_secs(30);

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
    names: BTreeMap<Uuid, String>,
    verdicts: BTreeMap<Uuid, (AppState, String)>,
    guest_faults: BTreeMap<Uuid, String>,
    network: Network,
    update: Update,
    logs: Rc<RefCell<Waiting>>,
    log_cursor: u64,
    jobs: mpsc::Sender<JobEvent>,
    observed: watch::Sender<Observed>,
    session: session::Status,
    last_reboot: RebootRecord,
    /// A reboot that was ordered: why, and since when.
    going_down: Option<(RebootRecord, Duration)>,
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
        names: BTreeMap::new(),
        verdicts: BTreeMap::new(),
        guest_faults: BTreeMap::new(),
        network,
        update,
        logs: logs.clone(),
        log_cursor: 0,
        jobs,
        observed,
        session: session::Status::default(),
        last_reboot: RebootRecord::default(),
        going_down: None,
        roots_pem,
        said: BTreeSet::new(),
    };
    if let Some(text) = lost {
        agent.say("warning", &text);
    }
    agent.begin()?;
    session::spawn(session::Inputs {
        boot: agent.boot.clone(),
        paths: agent.paths.clone(),
        device: agent.device.clone(),
        observed: observed_receiver,
        logs,
        events: session_sender,
        known: agent.store.now.device,
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
    fn begin(&mut self) -> Result<()> {
        self.remove_partials();
        self.last_reboot = self.reason_of_last_boot();
        self.enter_ready();
        self.look_at_units()?;
        match session::stored_config(&self.paths, &self.boot, &self.device) {
            Ok(Some(desired)) => {
                self.say("info", &format!("config {} from disk is in force", desired.revision));
                self.apply(desired);
            }
            Ok(None) => {}
            Err(e) => self.say("warning", &format!("the stored config is not used: {e:#}")),
        }
        Ok(())
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

    fn reason_of_last_boot(&mut self) -> RebootRecord {
        let boot = self.boot.facts.boot_count;
        if let Some((counted, record)) = &self.store.now.last_reboot
            && *counted == boot
        {
            return record.clone();
        }
        let ordered = self.store.now.ordered_reboot.take();
        let record = if !self.boot.facts.fallback_reason.is_empty() {
            RebootRecord {
                reason: BootReason::Fallback,
                text: self.boot.facts.fallback_reason.clone(),
                time_seconds: 0,
            }
        } else if let Some(record) = ordered {
            record
        } else if boot <= 1 {
            RebootRecord { reason: BootReason::First, text: "first boot".into(), time_seconds: 0 }
        } else {
            let text = self.boot.facts.previous_end.clone();
            let reason = if text.contains("watchdog") {
                BootReason::Watchdog
            } else if text.contains("panic") {
                BootReason::Kernel
            } else if text.is_empty() {
                BootReason::PowerFail
            } else {
                BootReason::Unknown
            };
            let text = if text.is_empty() { "power was lost, or the machine was reset".into() } else { text };
            RebootRecord { reason, text, time_seconds: 0 }
        };
        self.store.now.last_reboot = Some((boot, record.clone()));
        record
    }

    /// Halves of downloads that a former agent left: their jobs are stopped, their files removed.
    fn remove_partials(&mut self) {
        let units = self.supervisor.borrow_mut().list().unwrap_or_default();
        for unit in units.iter().filter(|u| u.name.as_str().starts_with("fetch-")) {
            let mut supervisor = self.supervisor.borrow_mut();
            let _ = supervisor.stop(&unit.name, Some(Duration::ZERO));
            let _ = supervisor.remove(&unit.name);
        }
        for entry in fs::read_dir(self.paths.data("images")).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(".partial-") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    // --- events -------------------------------------------------------------------------------------------------

    fn look_at_units(&mut self) -> Result<()> {
        let list = self.supervisor.borrow_mut().list()?;
        for unit in &list {
            self.unit_status(unit);
        }
        Ok(())
    }

    fn unit_event(&mut self, event: Event) {
        match event {
            Event::Unit(status) => self.unit_status(&status),
            Event::Removed { .. } | Event::Shutdown { .. } => {}
            Event::Logs { .. } => self.collect_logs(),
        }
    }

    fn unit_status(&mut self, status: &UnitStatus) {
        let Some(app) = vms::app_of(&status.name) else {
            return;
        };
        self.collect_logs();
        let now = machine::now();
        let runtime = self.runtimes.entry(app).or_default();
        match status.state {
            UnitState::Running { .. } => {
                if matches!(runtime.vm, Vm::Absent) {
                    // Found after a restart of the agent.
                    let tag = status.spec.as_ref().map(|s| s.tag.clone()).unwrap_or_default();
                    runtime.vm = Vm::Running { since: Duration::from_millis(status.since_ms), tag };
                    runtime.starts = runtime.starts.max(1);
                    runtime.acted = runtime.acted.or_else(|| self.store.now.acted.get(&app).copied());
                }
            }
            UnitState::Stopping { .. } => runtime.vm = Vm::Stopping,
            UnitState::Ended | UnitState::Backoff { .. } => {
                if matches!(runtime.vm, Vm::Running { .. } | Vm::Stopping) {
                    let said = self.guest_faults.remove(&app);
                    let fault = match (&status.exit, said) {
                        (_, Some(text)) => text,
                        (Some(exit), None) if !exit.is_success() => format!("its VM ended: {exit}"),
                        _ => String::new(),
                    };
                    runtime.ended(now, fault.clone());
                    let name = self.names.get(&app).cloned().unwrap_or_else(|| app.to_string());
                    let text =
                        if fault.is_empty() { format!("app {name}: ended") } else { format!("app {name}: {fault}") };
                    self.say("info", &text);
                }
            }
        }
    }

    fn collect_logs(&mut self) {
        let boot_ns = machine::boot_time_seconds().max(0).unsigned_abs() * 1_000_000_000;
        loop {
            let Ok(logs) = self.supervisor.borrow_mut().logs(self.log_cursor) else {
                return;
            };
            self.log_cursor = logs.next;
            for line in &logs.lines {
                // What the agent itself says went into the log when it was said.
                if line.unit.as_str() == "node" {
                    continue;
                }
                let keep = vms::app_of(&line.unit)
                    .is_none_or(|app| self.desired.apps.iter().any(|a| a.id == app && !a.disable_logs));
                let report = self.logs.borrow_mut().unit_line(line, boot_ns, keep);
                if let Some((app, report)) = report {
                    self.guest_faults.insert(app, report.text());
                    if let GuestReport::Error(text) = report {
                        self.say("error", &format!("app {app}: guest: {text}"));
                    }
                }
            }
            if !logs.more {
                return;
            }
        }
    }

    fn job_event(&mut self, event: JobEvent) {
        if event.key == crate::update::JOB {
            let texts = self.update.job(event.report);
            for text in texts {
                self.say("info", &text);
            }
            return;
        }
        let Ok(id) = event.key.parse::<Uuid>() else {
            return;
        };
        let now = machine::now();
        let retry = Duration::from_secs(self.desired.properties.download_retry_seconds.into());
        let partial = self.partial(id);
        let Some(content) = self.contents.by_id.get_mut(&id) else {
            if !matches!(event.report, Some(Report::Progress { .. })) {
                let _ = fs::remove_file(&partial);
            }
            return;
        };
        let failure = match event.report {
            Some(report @ Report::Progress { .. }) => return content.progress(&report),
            Some(Report::Done(Outcome::Oci { manifest_sha256, size_bytes, config })) => {
                let kept = KeptContent {
                    asked: content.asked.clone(),
                    sha256: manifest_sha256,
                    size_bytes,
                    image: serde_json::to_value(&config).ok(),
                };
                match keep_image(&partial, &image_file(&self.paths, &kept.sha256)) {
                    Ok(()) => {
                        content.complete(&kept);
                        let text = format!("content {}: complete, sha256 {}", content.status.name, kept.sha256);
                        self.store.now.contents.insert(id, kept);
                        return self.say("info", &text);
                    }
                    Err(e) => (FailureClass::Local, format!("{e:#}")),
                }
            }
            Some(Report::Done(other)) => {
                (FailureClass::Local, format!("expected a container image from the job, found {other:?}"))
            }
            Some(Report::Failed { class, text }) => (class, text),
            None => (FailureClass::Local, "the download job ended without a result".into()),
        };
        let _ = fs::remove_file(&partial);
        content.failed(now, failure.0, &failure.1, retry);
        let text = content.status.error.clone();
        self.say("error", &text);
    }

    fn session_event(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Config(desired) => {
                self.update.contact(machine::now());
                self.session.contact = Some(machine::now());
                if self.configured && desired.timestamp_seconds < self.desired.timestamp_seconds {
                    return self.say_once(
                        "warning",
                        &format!("config {} is older than the one in force: ignored", desired.revision),
                    );
                }
                self.say(
                    "info",
                    &format!(
                        "config {} accepted: {} apps, {} network instances, {} faults",
                        desired.revision,
                        desired.apps.len(),
                        desired.instances.len(),
                        desired.faults.len()
                    ),
                );
                self.apply(*desired);
            }
            SessionEvent::Contact => {
                self.update.contact(machine::now());
                self.session.contact = Some(machine::now());
            }
            SessionEvent::Device(id) => {
                self.say("info", &format!("this device is {id} at its controller"));
                self.store.now.device = Some(id);
            }
            SessionEvent::Attestation { state, error } => {
                if !error.is_empty() {
                    self.say_once("error", &format!("attestation: {error}"));
                }
                (self.session.attestation, self.session.attestation_error) = (state, error);
            }
            SessionEvent::Trouble(text) => self.say_once("warning", &text),
        }
    }

    /// Takes a new config in.
    fn apply(&mut self, desired: Desired) {
        for fault in &desired.faults {
            let text = fault.text.clone();
            self.say_once("error", &text);
        }
        let images = self.paths.clone();
        // The base OS payload streams into the other slot and is no image of an app.
        let wanted: Vec<_> = desired
            .contents
            .iter()
            .filter(|c| desired.base_os.as_ref().is_none_or(|b| b.content != c.id))
            .cloned()
            .collect();
        let gone = self.contents.want(&wanted, &self.store.now.contents, &|k| image_file(&images, &k.sha256).exists());
        for id in gone {
            if let Ok(unit) = fetch_unit(id) {
                let _ = self.supervisor.borrow_mut().stop(&unit, Some(Duration::ZERO));
            }
        }
        let commands = desired.commands.reboot;
        match self.store.now.reboot_counter {
            Some(acted) if commands != acted && commands != 0 => {
                // Noted before acting: the command runs once, whatever happens meanwhile.
                self.store.now.reboot_counter = Some(commands);
                self.order_reboot(
                    BootReason::RebootCommand,
                    &format!("reboot ordered by the controller (counter {commands})"),
                );
            }
            Some(_) => {}
            None => self.store.now.reboot_counter = Some(commands),
        }
        for app in &desired.apps {
            self.names.insert(app.id, app.name.clone());
            self.store.now.number_of(app.id);
        }
        self.desired = desired;
        self.configured = true;
        self.collect_images();
        self.follow_debug_orders();
    }

    fn follow_debug_orders(&mut self) {
        let orders = &self.desired.properties.unknown;
        for order in debug::due(self.boot.release.kind, orders, &mut self.store.now.debug) {
            // On disk first: an order that was followed is not followed again by the agent that comes after.
            if let Err(e) = self.store.save() {
                return self.say("error", &format!("{order} is not followed: the agent's state cannot be saved: {e}"));
            }
            match order {
                debug::ABORT => {
                    self.say("warning", "aborting, as the controller ordered (debug.node.abort)");
                    std::process::abort();
                }
                _ => self.say("info", &debug::memory()),
            }
        }
    }

    /// Removes kept contents and image files that nothing wants; a running VM keeps its open file.
    fn collect_images(&mut self) {
        let desired = &self.desired;
        self.store.now.contents.retain(|id, _| desired.contents.iter().any(|c| c.id == *id));
        let keep: BTreeSet<PathBuf> =
            self.store.now.contents.values().map(|k| image_file(&self.paths, &k.sha256)).collect();
        for entry in fs::read_dir(self.paths.data("images")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with(".partial-") && !keep.contains(&entry.path()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    // --- the turn -----------------------------------------------------------------------------------------------

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
        let (addresses, texts) = self
            .network
            .turn(
                &self.desired,
                self.configured,
                &|app| vms::FIRST_UID + numbers.get(&app).copied().unwrap_or(0),
                &self.store.now.addresses,
            )
            .await;
        self.store.now.addresses = addresses;
        for text in texts {
            self.say_once("info", &text);
        }
    }

    fn turn_contents(&mut self) {
        let now = machine::now();
        let due: Vec<Uuid> = self.contents.by_id.iter().filter(|(_, c)| c.due(now)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(tree) = self.desired.contents.iter().find(|c| c.id == id) else {
                continue;
            };
            let failures = self.contents.by_id.get(&id).map_or(0, |c| c.failures);
            let started = match plan_fetch(tree, &self.desired.datastores, &self.roots_pem, failures) {
                Err(text) => Err((FailureClass::Refused, text)),
                Ok(fetch) if tree.format == ImageFormat::Container => {
                    self.start_fetch(&fetch).map_err(|e| (FailureClass::Local, format!("{e:#}")))
                }
                Ok(_) => Err((
                    FailureClass::Refused,
                    format!(
                        "expected a container image (format 8), found {:?}: other formats need firmware, which this version does not have",
                        tree.format
                    ),
                )),
            };
            let retry = Duration::from_secs(self.desired.properties.download_retry_seconds.into());
            let Some(content) = self.contents.by_id.get_mut(&id) else {
                continue;
            };
            match started {
                Ok(()) => {
                    content.busy = true;
                    content.status.state = holdfast_model::observed::LoadState::Resolving;
                }
                Err((class, text)) => {
                    content.failed(now, class, &text, retry);
                    let text = content.status.error.clone();
                    self.say_once("error", &text);
                }
            }
        }
    }

    fn start_fetch(&mut self, fetch: &Fetch) -> Result<()> {
        let What::Oci { repository, reference } = fetch.what.clone() else {
            anyhow::bail!("expected a container image")
        };
        let partial = self.partial(fetch.id);
        let output = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .with_context(|| format!("cannot make {}", partial.display()))?;
        let spool_path = self.paths.data("images").join(".partial-spool");
        fs::create_dir_all(&spool_path)?;
        chown(&spool_path, Some(jobs::FETCH_UID), Some(jobs::FETCH_UID))?;
        let spool = File::open(&spool_path)?;
        let task = Task::Oci {
            repository,
            reference,
            sha256: fetch.sha256.clone(),
            max_bytes: fetch.max_bytes,
            output_fd: jobs::task_fd(0),
            spool_fd: jobs::task_fd(1),
        };
        jobs::start(
            &mut self.supervisor.borrow_mut(),
            &fetch.id.to_string(),
            &fetch_unit(fetch.id)?,
            fetch.server.clone(),
            task,
            &[output.as_fd(), spool.as_fd()],
            &self.jobs,
        )
    }

    fn partial(&self, id: Uuid) -> PathBuf {
        self.paths.data("images").join(format!(".partial-{id}"))
    }

    fn turn_apps(&mut self) {
        let now = machine::now();
        let held = if let Some((record, _)) = &self.going_down {
            Some(format!("the device goes down: {}", record.text))
        } else if self.desired.maintenance {
            Some("maintenance mode".to_owned())
        } else {
            None
        };
        // Before any config it is not known which apps are wanted: what runs goes on.
        if !self.configured {
            return;
        }
        let ids: BTreeSet<Uuid> = self.runtimes.keys().copied().chain(self.desired.apps.iter().map(|a| a.id)).collect();
        for id in ids {
            let app = self.desired.apps.iter().find(|a| a.id == id).cloned();
            let plan = app.as_ref().map(|a| self.plan_of(a));
            let (readiness, plan) = match plan {
                None => (Readiness::Ready, None),
                Some(Ok(plan)) => (Readiness::Ready, Some(plan)),
                Some(Err(readiness)) => (readiness, None),
            };
            let world = World {
                readiness,
                tag: plan.as_ref().map(Plan::tag).unwrap_or_default(),
                now,
                held: held.clone(),
                boot_retry: Duration::from_secs(self.desired.properties.boot_retry_seconds.into()),
            };
            let runtime = self.runtimes.entry(id).or_default();
            if runtime.acted.is_none() {
                runtime.acted = self.store.now.acted.get(&id).copied();
            }
            let verdict = apps::decide(app.as_ref(), runtime, &world);
            if !verdict.error.is_empty() && verdict.state == AppState::Error {
                self.say_once("error", &verdict.error);
            }
            self.verdicts.insert(id, (verdict.state, verdict.error));
            self.act(id, app.as_ref(), plan, verdict.step);
        }
    }

    fn act(&mut self, id: Uuid, app: Option<&App>, plan: Option<Plan>, step: Step) {
        let now = machine::now();
        match step {
            Step::Wait => {}
            Step::Stop => {
                if self.supervisor.borrow_mut().stop(&vms::unit_of(id), None).is_ok()
                    && let Some(runtime) = self.runtimes.get_mut(&id)
                {
                    runtime.vm = Vm::Stopping;
                }
            }
            Step::NoteCounters | Step::Purge => {
                let Some(app) = app else { return };
                if step == Step::Purge
                    && let Some(first) = app.volumes.first()
                {
                    let file = volumes::file_of(&self.paths.data("volumes"), first.volume, first.generation);
                    if let Err(e) = fs::remove_file(&file)
                        && e.kind() != std::io::ErrorKind::NotFound
                    {
                        return self.say_once("error", &format!("app {}: purge: {}: {e}", app.name, file.display()));
                    }
                }
                let acted = apps::Acted { restart: app.restart_counter, purge: app.purge_counter };
                self.store.now.acted.insert(id, acted);
                if let Some(runtime) = self.runtimes.get_mut(&id) {
                    runtime.acted = Some(acted);
                    runtime.ordered = true;
                }
            }
            Step::Start => {
                let Some(plan) = plan else { return };
                let started = self.start_vm(&plan);
                let Some(runtime) = self.runtimes.get_mut(&id) else {
                    return;
                };
                match started {
                    Ok(()) => {
                        runtime.started(now, plan.tag());
                        self.guest_faults.remove(&id);
                        self.say("info", &format!("app {}: VM started", plan.app.name));
                    }
                    Err(e) => {
                        runtime.start_failed(now, format!("{e:#}"));
                        self.say("error", &format!("{e:#}"));
                    }
                }
            }
            Step::Forget => {
                let _ = self.supervisor.borrow_mut().remove(&vms::unit_of(id));
                self.runtimes.remove(&id);
                self.verdicts.remove(&id);
                self.store.now.acted.remove(&id);
                self.store.now.numbers.remove(&id);
                self.logs.borrow_mut().apps.remove(&id);
                let wanted: Vec<(Uuid, i64)> = self.desired.volumes.iter().map(|v| (v.id, v.generation)).collect();
                if let Ok(gone) = volumes::collect(&self.paths.data("volumes"), &wanted)
                    && !gone.is_empty()
                {
                    self.say("info", &format!("volumes removed: {}", gone.join(", ")));
                }
                let _ = fs::remove_file(self.paths.control().join(format!("{}.sock", vms::unit_of(id))));
            }
        }
    }

    fn start_vm(&mut self, plan: &Plan) -> Result<()> {
        let folder = self.paths.data("volumes");
        let sizes: BTreeMap<PathBuf, u64> = self
            .desired
            .volumes
            .iter()
            .map(|v| (volumes::file_of(&folder, v.id, v.generation), v.max_size_bytes))
            .collect();
        vms::make_volumes(plan, &self.paths.seed(), &|file| {
            sizes.get(file).copied().filter(|s| *s > 0).unwrap_or(volumes::DEFAULT_LAYER_BYTES)
        })?;
        let network = RefCell::new(&mut self.network);
        let open_tap = |name: &str| -> Result<OwnedFd> { network.borrow_mut().open_tap(name) };
        vms::start(&mut self.supervisor.borrow_mut(), plan, &self.paths.control(), &open_tap)
    }

    /// What a start of the app would use, or what is missing.
    fn plan_of(&self, app: &App) -> Result<Plan, Readiness> {
        let folder = self.paths.data("volumes");
        let failed = |text: String| Readiness::Failed(format!("app {}: {text}", app.name));
        let mut disks = Vec::new();
        for (n, wanted) in app.volumes.iter().enumerate() {
            let Some(volume) = self.desired.volumes.iter().find(|v| v.id == wanted.volume) else {
                return Err(failed(format!("expected volume {} in the config, found none", wanted.volume)));
            };
            if volume.generation != wanted.generation {
                return Err(failed(format!(
                    "volume {}: expected generation {}, found {}",
                    volume.name, wanted.generation, volume.generation
                )));
            }
            let file = volumes::file_of(&folder, volume.id, volume.generation);
            match volume.origin {
                VolumeOrigin::Blank if n > 0 => {
                    let mount = if wanted.mount_dir.is_empty() { "/mnt".to_owned() } else { wanted.mount_dir.clone() };
                    disks.push(Disk::Volume { file, mount, read_only: volume.read_only });
                }
                VolumeOrigin::Content(id) if n == 0 => {
                    let Some(content) = self.contents.by_id.get(&id) else {
                        return Err(failed(format!(
                            "volume {}: expected content {id} in the config, found none",
                            volume.name
                        )));
                    };
                    use holdfast_model::observed::LoadState;
                    match (content.status.state, &content.image) {
                        (LoadState::Loaded, Some(image)) => {
                            disks.push(Disk::Container {
                                rootfs: image_file(&self.paths, &content.status.sha256),
                                layer: file,
                                image: image.clone(),
                            });
                        }
                        (LoadState::Loaded, None) => {
                            return Err(failed(format!(
                                "content {}: expected a container image, found none of its configuration",
                                content.status.name
                            )));
                        }
                        (LoadState::Error, _) => return Err(failed(content.status.error.clone())),
                        (_, _) if !content.status.error.is_empty() => {
                            return Err(failed(content.status.error.clone()));
                        }
                        (LoadState::Initial, _) => {
                            return Err(Readiness::Coming(AppState::Initial));
                        }
                        _ => return Err(Readiness::Coming(AppState::Downloading)),
                    }
                }
                VolumeOrigin::Blank => {
                    return Err(failed(format!(
                        "volume {}: expected an image as first volume, found a blank one",
                        volume.name
                    )));
                }
                VolumeOrigin::Content(_) => {
                    return Err(failed(format!(
                        "volume {}: expected a blank volume behind the first, found an image",
                        volume.name
                    )));
                }
            }
        }
        if disks.is_empty() {
            return Err(failed("expected a volume, found none".into()));
        }
        let nics = self.network.nics(app)?;
        Ok(Plan { app: app.clone(), number: self.store.now.numbers.get(&app.id).copied().unwrap_or(0), disks, nics })
    }

    fn turn_update(&mut self) {
        if !self.configured && !self.update.in_trial() {
            return;
        }
        let apps_hold = self.going_down.is_some();
        let (texts, order) = self.update.turn(
            machine::now(),
            &self.desired,
            &self.roots_pem,
            &self.supervisor,
            &self.jobs,
            self.device.identity().as_ref(),
            apps_hold,
        );
        for text in texts {
            self.say("info", &text);
        }
        if let Some((reason, text)) = order {
            self.order_reboot(reason, &text);
        }
        let limit = Duration::from_secs(self.desired.properties.reboot_no_network_seconds.into());
        let silent = machine::now().saturating_sub(self.session.contact.unwrap_or_default());
        if self.boot.site.is_some() && silent > limit && self.going_down.is_none() {
            self.order_reboot(
                BootReason::Disconnect,
                &format!("no contact with the controller for {} s (timer.reboot.no.network)", limit.as_secs()),
            );
        }
    }

    fn order_reboot(&mut self, reason: BootReason, text: &str) {
        if self.going_down.is_some() {
            return;
        }
        let record = RebootRecord { reason, text: text.to_owned(), time_seconds: machine::wall_seconds() };
        self.store.now.ordered_reboot = Some(record.clone());
        self.say("info", &format!("reboot: {text}"));
        self.going_down = Some((record, machine::now()));
    }

    /// Reboots once the apps have ended, or their time is over.
    fn turn_down(&mut self) {
        let Some((record, since)) = self.going_down.clone() else {
            return;
        };
        let alive = self.runtimes.values().any(|r| matches!(r.vm, Vm::Running { .. } | Vm::Stopping));
        let waited = machine::now().saturating_sub(since);
        // The state must be on disk before; a second turn lets the report of it go out.
        if (alive && waited < REBOOT_PATIENCE) || waited < Duration::from_secs(2) {
            return;
        }
        if let Err(e) = self.store.save() {
            self.say_once("error", &format!("the agent's state cannot be saved before the reboot: {e}"));
        }
        let _ = self.device.identity().extend_phase(holdfast_format::pcr::phase::SHUTDOWN);
        let ordered = self.supervisor.borrow_mut().reboot(&record.text);
        if let Err(e) = ordered {
            self.say_once("error", &format!("reboot: {e}"));
        }
    }

    // --- reports ------------------------------------------------------------------------------------------------

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
            contents: &self.contents,
            runtimes: &self.runtimes,
            verdicts: &self.verdicts,
            network: &self.network,
            update: &self.update,
            identity: self.device.identity().as_ref(),
            vault: self.device.vault_protection(),
        };
        let observed = reports::observe(&view);
        self.observed.send_if_modified(|old| {
            let changed = *old != observed;
            if changed {
                *old = observed;
            }
            changed
        });
    }
}

/// Unit of a content's fetch job.
fn fetch_unit(content: Uuid) -> Result<UnitName> {
    Ok(UnitName::new(format!("fetch-{content}"))?)
}

/// File of a flattened image.
fn image_file(paths: &Paths, sha256: &str) -> PathBuf {
    paths.data("images").join(format!("{sha256}.erofs"))
}

/// Gives a complete image its name.
fn keep_image(partial: &std::path::Path, path: &std::path::Path) -> Result<()> {
    File::open(partial)?.sync_all()?;
    fs::set_permissions(partial, fs::Permissions::from_mode(0o400))?;
    fs::rename(partial, path).with_context(|| format!("cannot keep {}", path.display()))?;
    File::open(path.parent().unwrap_or(path))?.sync_all()?;
    Ok(())
}
