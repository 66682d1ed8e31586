//! The controller's side of the agent: onboarding, attestation, config in, reports out. It decides nothing about the machine:
//! what it learns goes to [`crate::agent`] as events, what it reports it reads from there.

use crate::boot::{Boot, Paths};
use crate::logs::{Line, Waiting};
use crate::machine;
use crate::trust::Device;
use crate::{gauges, vmstats};
use anyhow::{Context, Result};
use holdfast_api::certs::ControllerCertificates;
use holdfast_api::cipher::Keys;
use holdfast_api::config::from_response;
use holdfast_api::{info, metrics, newlog};
use holdfast_controller_client::freshness::{self, Timestamp};
use holdfast_controller_client::onboarding::Progress;
use holdfast_controller_client::{
    Class, Client, ClientConfig, ConfigAnswer, ConfigStore, ReceivedConfig, ReportQueue, Timing, attest_until_done,
    onboard, timing,
};
use holdfast_model::check;
use holdfast_model::desired::Desired;
use holdfast_model::gauges::Gauges;
use holdfast_model::observed::{AttestationState, Observed};
use holdfast_model::properties::Properties;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// A clock before the build of the image is wrong.
const CLOCK_FLOOR: Duration = Duration::from_secs(1_735_689_600);
/// How often waiting lines are packed for upload.
const PACK_LOGS: Duration = Duration::from_secs(3);
/// Longest wait for an address before the controller is called for the first time: `timer.port.testduration` of EVE.
const FIRST_ADDRESS: Duration = Duration::from_secs(30);
/// Most lines packed at once.
const PACK_LINES: usize = 1000;

/// What the session learned.
#[derive(Debug)]
pub enum SessionEvent {
    /// A new config, verified, stored and converted.
    Config(Box<Desired>),
    /// The controller sent a config that is not put in force, and why. It is said again with each poll until that changes.
    Refused(String),
    /// The controller answered a poll: the config in force is the wanted one.
    Contact,
    /// A poll brought neither.
    NoContact {
        /// By the remote side's fault.
        temporary: bool,
    },
    /// Who this device is.
    Device(Uuid),
    /// Attestation went on.
    Attestation {
        /// State.
        state: AttestationState,
        /// Why the last pass failed; empty when it did not.
        error: String,
    },
    /// Something to say: it is tried again.
    Trouble(String),
}

/// What is remembered of the controller's side.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// State of attestation.
    pub attestation: AttestationState,
    /// Why the last pass failed.
    pub attestation_error: String,
    /// Why the controller's present config is not in force; empty when it is.
    pub refused: String,
    /// Monotonic time of the last contact.
    pub contact: Option<Duration>,
}

/// What a session needs.
pub struct Inputs {
    /// This boot.
    pub boot: Boot,
    /// Where things are.
    pub paths: Paths,
    /// Keys.
    pub device: Rc<Device>,
    /// What to report.
    pub observed: watch::Receiver<Observed>,
    /// Lines to upload.
    pub logs: Rc<RefCell<Waiting>>,
    /// Where events go.
    pub events: mpsc::Sender<SessionEvent>,
    /// Our UUID, when known from before.
    pub known: Option<Uuid>,
    /// The config that is in force from disk.
    pub stored: Option<Stored>,
    /// Addresses over which the controller may be reached, as they come and go.
    pub addresses: watch::Receiver<Addresses>,
}

/// Interfaces for management with the addresses that they have.
pub type Addresses = BTreeSet<(String, IpAddr)>;

/// A client for the site's controller; `None` when there is no site.
pub(crate) fn client(boot: &Boot, device: &Device) -> Result<Option<Client>> {
    use holdfast_controller_client::DeviceIdentity as _;
    let Some(site) = &boot.site else {
        return Ok(None);
    };
    let config = ClientConfig {
        server: site.server.clone(),
        address: site.server_address,
        roots_pem: site.root_certs_pem.clone().into_bytes(),
        clock_floor: UNIX_EPOCH + CLOCK_FLOOR,
        serial: device.serial().to_owned(),
        soft_serial: device.soft_serial().to_owned(),
    };
    Ok(Some(Client::new(config).context("SITE")?))
}

/// A config that is in force, and what of it the session goes on with. It is converted once: each conversion costs TPM operations.
#[derive(Debug, Clone)]
pub struct Stored {
    /// What it wants.
    pub desired: Desired,
    /// Text to be sent with the next poll.
    hash: String,
    /// When it was made.
    timestamp: Timestamp,
    /// The certificates that verified it.
    certificates: Arc<ControllerCertificates>,
}

/// The last config, verified again from disk: what is in force after a reboot without network. After a crash that it may have
/// caused it is the one before, once that has proved itself.
///
/// # Errors
/// When SITE is unusable or the stored config does not verify.
pub fn stored_config(paths: &Paths, boot: &Boot, device: &Device, after_crash: bool) -> Result<Option<Stored>> {
    let Some(client) = client(boot, device)? else {
        return Ok(None);
    };
    let store = ConfigStore::open(paths.data("config"))?;
    let stored = store.load_config(client.roots(), after_crash)?;
    Ok(stored.map(|config| convert(&config, device)))
}

fn convert(received: &ReceivedConfig, device: &Device) -> Stored {
    let keys = Keys { certificates: &received.certificates, agreement: device };
    let config = received.response.config.as_ref();
    let mut desired = config.map(|c| from_response(c, &received.payload, Some(keys))).unwrap_or_default();
    let (memory_bytes, _) = machine::memory();
    check::machine::check(&mut desired, check::machine::Machine { memory_bytes, storage_bytes: 0 });
    Stored {
        desired,
        hash: received.hash().to_owned(),
        timestamp: received.timestamp(),
        certificates: received.certificates.clone(),
    }
}

/// Starts the session's tasks on the current local set. Without a site nothing is started: the device waits to be given one.
///
/// # Errors
/// When SITE is unusable.
pub fn spawn(inputs: Inputs) -> Result<()> {
    let Some(client) = client(&inputs.boot, &inputs.device)? else {
        eprintln!(
            "SITE is empty: this device belongs to no controller yet (cargo xtask image-site, or flash with --controller)"
        );
        return Ok(());
    };
    eprintln!("controller {}", client.server());
    let store = ConfigStore::open(inputs.paths.data("config"))?;
    tokio::task::spawn_local(async move {
        let reports = Rc::new(ReportQueue::new());
        let config_times = Rc::default();
        Session { client: Rc::new(client), store, inputs, reports, config_times }.run().await
    });
    Ok(())
}

struct Session {
    client: Rc<Client>,
    store: ConfigStore,
    inputs: Inputs,
    reports: Rc<ReportQueue>,
    /// When the last config came, and when the last was put in force.
    config_times: Rc<Cell<(Option<SystemTime>, Option<SystemTime>)>>,
}

impl Session {
    async fn tell(&self, event: SessionEvent) {
        // The agent outlives the session; were it gone, so would this task be.
        let _ = self.inputs.events.send(event).await;
    }

    async fn trouble(&self, text: String) {
        self.tell(SessionEvent::Trouble(text)).await;
    }

    async fn run(mut self) {
        let (mut hash, mut timestamp, mut epoch) = (String::new(), None, None);
        let (mut properties, mut certificates_hash) = (Properties::default(), String::new());
        if let Some(stored) = self.inputs.stored.take() {
            self.client.set_certificates(stored.certificates);
            self.client.set_timing(Timing::from_properties(&stored.desired.properties));
            (hash, timestamp, epoch) = (stored.hash, Some(stored.timestamp), Some(stored.desired.controller_epoch));
            (properties, certificates_hash) = (stored.desired.properties, stored.desired.controller_certificates_hash);
        } else if let Ok(Some(certificates)) = self.store.load_certificates(self.client.roots()) {
            self.client.set_certificates(certificates.into());
        }
        let mut addresses = self.inputs.addresses.clone();
        self.become_known(&mut addresses).await;
        let (shared, properties_now) = watch::channel(properties);
        self.spawn_reports(properties_now);

        let (certificates_wanted, wanted) = watch::channel(certificates_hash);
        self.spawn_certificates(wanted);
        let mut in_force = Instant::now();
        let mut asked_uuid: Option<Instant> = None;
        // Both go on at the same time, as with EVE: a controller that asks for no proof is not to be deaf to its device.
        let (mut token, refused) = self.spawn_attestation();
        loop {
            addresses.mark_unchanged();
            let shown = token.borrow_and_update().clone();
            match self.client.poll_config(self.inputs.device.as_ref(), &hash, &shown).await {
                Ok(ConfigAnswer::New(config)) => {
                    let received = SystemTime::now();
                    self.config_times.set((Some(received), self.config_times.get().1));
                    if let Some(refusal) = freshness::refusal(&config, timestamp, self.client.known_uuid()) {
                        self.tell(SessionEvent::Refused(refusal.to_string())).await;
                    } else {
                        if let Err(e) = self.store.save_config(&config) {
                            self.trouble(format!(
                                "the new config cannot be stored: {e}; it is in force until the next reboot only"
                            ))
                            .await;
                        }
                        let Stored { desired, .. } = convert(&config, &self.inputs.device);
                        self.client.set_timing(Timing::from_properties(&desired.properties));
                        let _ = shared.send(desired.properties.clone());
                        let _ = certificates_wanted.send(desired.controller_certificates_hash.clone());
                        if epoch.replace(desired.controller_epoch).is_some_and(|old| old != desired.controller_epoch) {
                            self.reports.repeat_all();
                        }
                        in_force = Instant::now();
                        (hash, timestamp) = (config.hash().to_owned(), Some(config.timestamp()));
                        self.tell(SessionEvent::Config(Box::new(desired))).await;
                        self.config_times.set((Some(received), Some(SystemTime::now())));
                    }
                }
                Ok(ConfigAnswer::Unchanged) => {
                    let age = Duration::from_secs(shared.borrow().test_window_seconds.into());
                    if let Err(e) = self.store.back_up(in_force.elapsed(), age) {
                        self.trouble(format!("the config cannot be backed up: {e}")).await;
                    }
                    self.tell(SessionEvent::Contact).await;
                }
                // Before the first token this is what was to be expected.
                Ok(ConfigAnswer::TokenRefused) => drop(refused.send(shown)),
                Ok(ConfigAnswer::DeviceUnknown) => {
                    self.tell(SessionEvent::NoContact { temporary: false }).await;
                    self.trouble("the controller has no config for this device".into()).await;
                    if asked_uuid.is_none_or(|t| t.elapsed() >= timing::UUID_RECHECK) {
                        asked_uuid = Some(Instant::now());
                        if let Ok(answer) = self.client.ask_uuid(self.inputs.device.as_ref()).await
                            && let Ok(uuid) = answer.uuid.parse::<Uuid>()
                        {
                            self.keep_uuid(uuid).await;
                        }
                    }
                }
                Err(failure) => {
                    self.tell(SessionEvent::NoContact { temporary: failure.class() == Class::Temporary }).await;
                    self.trouble(format!("config: {failure}")).await;
                }
            }
            // A fresh token, or another way to the controller, is worth asking at once.
            tokio::select! {
                () = sleep(self.client.timing().next_poll(timing::random())) => {}
                Ok(()) = token.changed() => {}
                Ok(()) = addresses.changed() => {}
            }
        }
    }

    /// Our UUID: from disk, or by onboarding. Comes back once there is an address to call from, or none has come for a while.
    async fn become_known(&self, addresses: &mut watch::Receiver<Addresses>) {
        let kept = self.inputs.known.or_else(|| self.store.load_uuid().ok().flatten());
        if let Some(uuid) = kept {
            self.client.set_uuid(uuid);
            self.tell(SessionEvent::Device(uuid)).await;
        }
        wait_for_address(addresses).await;
        if kept.is_some() {
            return;
        }
        let events = self.inputs.events.clone();
        let onboarded = onboard(&self.client, self.inputs.device.as_ref(), |progress| {
            if let Progress::Failed { step, failure, .. } = progress {
                let _ = events.try_send(SessionEvent::Trouble(format!("onboarding, {step:?}: {failure}")));
            }
        })
        .await;
        if let Some(certificates) = self.client.certificates() {
            let _ = self.store.save_certificates(&certificates);
        }
        self.keep_uuid(onboarded.uuid).await;
    }

    async fn keep_uuid(&self, uuid: Uuid) {
        if let Err(e) = self.store.save_uuid(uuid) {
            self.trouble(format!("the device's UUID cannot be stored: {e}; it is asked for again after a reboot"))
                .await;
        }
        self.client.set_uuid(uuid);
        self.tell(SessionEvent::Device(uuid)).await;
    }

    /// Attests until it works, and again when it is told that the token so given is refused. The token is empty before.
    fn spawn_attestation(&self) -> (watch::Receiver<Vec<u8>>, watch::Sender<Vec<u8>>) {
        let (client, device, events) = (self.client.clone(), self.inputs.device.clone(), self.inputs.events.clone());
        let (given, token) = watch::channel(Vec::new());
        let (refuse, mut refused) = watch::channel(Vec::new());
        tokio::task::spawn_local(async move {
            loop {
                let heard = events.clone();
                let attested = attest_until_done(&client, device.as_ref(), |state, error| {
                    let _ = heard.try_send(SessionEvent::Attestation { state, error: error.to_owned() });
                })
                .await;
                if let Some(error) = &attested.escrow_error {
                    let _ = events.send(SessionEvent::Trouble(format!("key escrow: {error}"))).await;
                }
                let at = Instant::now();
                let token = attested.token;
                if given.send(token.clone()).is_err() || refused.wait_for(|r| *r == token).await.is_err() {
                    return;
                }
                // A token that is refused as soon as it is given must not make both sides spin.
                if at.elapsed() < timing::ATTESTATION_RESTART {
                    sleep(timing::ATTESTATION_RESTART).await;
                }
            }
        });
        (token, refuse)
    }

    /// Keeps the controller's certificates fresh: read again when the config names others, and after a day
    /// (`timer.cert.interval`); soon again after a failure.
    fn spawn_certificates(&self, mut wanted: watch::Receiver<String>) {
        let (client, store, events) = (self.client.clone(), self.store.clone(), self.inputs.events.clone());
        tokio::task::spawn_local(async move {
            let mut held = wanted.borrow().clone();
            let mut last = (Instant::now(), true);
            loop {
                let changed = *wanted.borrow_and_update() != held;
                let due = last.0 + certificates_wait(last.1, changed, client.timing().certificates);
                if Instant::now() < due {
                    tokio::select! {
                        // The interval may have been changed too: looked at again in a minute at the latest.
                        () = sleep(due.saturating_duration_since(Instant::now()).min(Duration::from_secs(60))) => {}
                        ended = wanted.changed() => if ended.is_err() { return },
                    }
                    continue;
                }
                let hash = wanted.borrow().clone();
                let text = match client.fetch_certificates().await {
                    Ok(list) => {
                        held = hash;
                        store
                            .save_certificates(&list)
                            .err()
                            .map(|e| format!("the controller's certificates are not kept: {e}"))
                    }
                    Err(e) => Some(format!("the controller's certificates cannot be read: {e}")),
                };
                last = (Instant::now(), text.is_none());
                if let Some(text) = text {
                    let _ = events.send(SessionEvent::Trouble(text)).await;
                }
            }
        });
    }

    /// The sender, and what feeds it.
    fn spawn_reports(&self, properties: watch::Receiver<Properties>) {
        let (client, device, reports, events) =
            (self.client.clone(), self.inputs.device.clone(), self.reports.clone(), self.inputs.events.clone());
        tokio::task::spawn_local(async move {
            let never = reports
                .run(&client, device.as_ref(), |refusal| {
                    let end = if refusal.dropped { "given up" } else { "sent again later" };
                    let _ =
                        events.try_send(SessionEvent::Trouble(format!("{}: {}; {end}", refusal.what, refusal.failure)));
                })
                .await;
            match never {}
        });
        let feeder = Feeder {
            client: self.client.clone(),
            reports: self.reports.clone(),
            observed: self.inputs.observed.clone(),
            properties,
            logs: self.inputs.logs.clone(),
            version: self.inputs.boot.release.version.clone(),
            image: format!("IMG{}", self.inputs.boot.facts.slot),
            paths: self.inputs.paths.clone(),
            gauges: Gauges::default(),
            config_times: self.config_times.clone(),
            sent: BTreeSet::new(),
        };
        tokio::task::spawn_local(feeder.run());
    }
}

/// Comes back once there is an address to call from, or none has come for [`FIRST_ADDRESS`].
pub(crate) async fn wait_for_address(addresses: &mut watch::Receiver<Addresses>) {
    let _ = timeout(FIRST_ADDRESS, addresses.wait_for(|some| !some.is_empty())).await;
}

/// Time from one reading of the certificates to the next: `well` tells how the last one went, `changed` that others are named.
fn certificates_wait(well: bool, changed: bool, interval: Duration) -> Duration {
    match (well, changed) {
        (false, _) => timing::CERTIFICATES_RETRY.min(interval),
        (true, true) => Duration::ZERO,
        (true, false) => interval,
    }
}

/// Turns what is observed into messages for the queue.
struct Feeder {
    client: Rc<Client>,
    reports: Rc<ReportQueue>,
    observed: watch::Receiver<Observed>,
    properties: watch::Receiver<Properties>,
    logs: Rc<RefCell<Waiting>>,
    version: String,
    image: String,
    paths: Paths,
    /// The last sample.
    gauges: Gauges,
    config_times: Rc<Cell<(Option<SystemTime>, Option<SystemTime>)>>,
    sent: BTreeSet<info::InfoKey>,
}

impl Feeder {
    async fn run(mut self) {
        let mut device_info_at = Instant::now();
        let mut metrics_at = Instant::now();
        let mut logs_at = Instant::now();
        loop {
            let changed = tokio::select! {
                changed = self.observed.changed() => changed.is_ok(),
                () = sleep(Duration::from_secs(1)) => false,
            };
            let now = Instant::now();
            let timing = self.client.timing();
            if changed {
                let observed = self.observed.borrow_and_update().clone();
                // A report without our id is refused; the next change, at the latest our id, brings it.
                if observed.device.id.is_nil() {
                    continue;
                }
                self.info(&observed);
            }
            if now.duration_since(device_info_at) >= timing.device_info {
                device_info_at = now;
                self.reports.repeat_all();
                let observed = self.observed.borrow().clone();
                self.info(&observed);
            }
            if now.duration_since(metrics_at) >= timing.metrics && !self.observed.borrow().device.id.is_nil() {
                metrics_at = now;
                let (last_received_config, last_processed_config) = self.config_times.get();
                let context = metrics::Context {
                    now: Some(SystemTime::now()),
                    last_received_config,
                    last_processed_config,
                    traffic: self.client.traffic(),
                };
                let observed = self.observed.borrow().clone();
                let mut gauges = gauges::sample(&observed, &self.paths);
                let stats = vmstats::collect(&self.paths.control(), &observed).await;
                vmstats::fold(&observed, &mut gauges, &stats);
                self.reports.metrics(metrics::message(&observed, &gauges, &context));
                self.gauges = gauges;
            }
            if now.duration_since(logs_at) >= PACK_LOGS {
                logs_at = now;
                self.pack_logs();
            }
        }
    }

    fn info(&mut self, observed: &Observed) {
        let properties = self.properties.borrow().clone();
        let context =
            info::Context { now: SystemTime::now(), properties: Some(&properties), gauges: Some(&self.gauges) };
        let messages = info::messages(observed, context);
        let present: BTreeSet<info::InfoKey> = messages.iter().map(|(key, _)| key.clone()).collect();
        for key in self.sent.difference(&present) {
            if let Some(message) = info::gone(key, &observed.device.id, SystemTime::now()) {
                self.reports.info(key.clone(), message);
            }
        }
        self.sent = present;
        self.reports.info_all(messages);
    }

    fn pack_logs(&self) {
        let mut waiting = self.logs.borrow_mut();
        let count = waiting.device.len().min(PACK_LINES);
        let device: Vec<newlog::Line> = waiting.device.drain(..count).map(wire_line).collect();
        if !device.is_empty() {
            let uuid = self.client.known_uuid().unwrap_or_default().to_string();
            self.reports.logs(
                &newlog::Origin::Device { device: uuid, image: self.image.clone(), version: self.version.clone() },
                &device,
            );
        }
        let observed = self.observed.borrow();
        for (app, lines) in &mut waiting.apps {
            let count = lines.len().min(PACK_LINES);
            let lines: Vec<newlog::Line> = lines.drain(..count).map(wire_line).collect();
            if !lines.is_empty() {
                let name =
                    observed.apps.iter().find(|a| a.id == *app).map_or_else(|| app.to_string(), |a| a.name.clone());
                self.reports.logs(&newlog::Origin::App { id: app.to_string(), name }, &lines);
            }
        }
    }
}

fn wire_line(line: Line) -> newlog::Line {
    newlog::Line {
        severity: line.severity.to_owned(),
        iid: "1".into(),
        source: line.source,
        content: line.text,
        msgid: line.id,
        timestamp: newlog::Stamp {
            seconds: i64::try_from(line.at_ns / 1_000_000_000).unwrap_or(0),
            nanos: i32::try_from(line.at_ns % 1_000_000_000).unwrap_or(0),
        },
        ..newlog::Line::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_read_again_when_others_are_named_when_old_and_after_a_failure() {
        let day = Duration::from_secs(86_400);
        assert_eq!(certificates_wait(true, false, day), day);
        assert_eq!(certificates_wait(true, true, day), Duration::ZERO);
        assert_eq!(
            certificates_wait(false, true, day),
            Duration::from_secs(120),
            "a failure is not tried again at once"
        );
        assert_eq!(certificates_wait(false, false, day), Duration::from_secs(120));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_call_waits_for_an_address_and_not_for_ever() {
        let began = Instant::now();
        let (addresses, mut have) = watch::channel(Addresses::new());
        wait_for_address(&mut have).await;
        assert_eq!(began.elapsed(), FIRST_ADDRESS);
        addresses.send_replace([("eth0".to_owned(), IpAddr::from([10, 0, 2, 15]))].into());
        wait_for_address(&mut have).await;
        assert_eq!(began.elapsed(), FIRST_ADDRESS);
    }
}
