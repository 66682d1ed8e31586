//! The session with the controller: onboarding, attestation, config polling. On a thread of its own, because keys may be in a slow
//! TPM. It decides nothing about the machine: what it learns goes to the kernel as [`SessionEvent`]s.

use crate::boot::{Boot, Paths};
use crate::parts::controller::facts::Polled;
use crate::parts::controller::reports::{ConfigTimes, Reporter};
use crate::parts::controller::{SessionEvent, certificates};
use crate::parts::logs::Shared;
use crate::parts::network::facts::Uplinks;
use crate::trust::Device;
use crate::{last_good, machine};
use anyhow::{Context, Result};
use holdfast_api::cipher::Keys;
use holdfast_api::config::from_response;
use holdfast_controller_client::onboarding::Progress;
use holdfast_controller_client::{
    Class, Client, ClientConfig, ConfigAnswer, ConfigStore, ReceivedConfig, ReportQueue, Timing, attest_until_done,
    freshness, onboard, timing,
};
use holdfast_model::check;
use holdfast_model::desired::Desired;
use holdfast_model::observed::Observed;
use holdfast_model::properties::Properties;
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// A clock before the build of the image is wrong.
const CLOCK_FLOOR: Duration = Duration::from_secs(1_735_689_600);
/// Longest wait for an address before the controller is called for the first time: `timer.port.testduration` of EVE.
const FIRST_ADDRESS: Duration = Duration::from_secs(30);

/// What a session needs.
pub struct Inputs {
    /// This boot.
    pub boot: Boot,
    /// Where things are.
    pub paths: Paths,
    /// Keys.
    pub device: Arc<Device>,
    /// What to report.
    pub observed: watch::Receiver<Observed>,
    /// Lines to upload.
    pub logs: Shared,
    /// Where events go.
    pub events: mpsc::UnboundedSender<SessionEvent>,
    /// The last boot ended in a crash, which its config may have caused: the config before that one is taken from disk, once it has
    /// proved itself.
    pub after_crash: bool,
    /// The ways to the controller, as they come and go.
    pub uplinks: watch::Receiver<Uplinks>,
}

/// A client for the site's controller; `None` when there is no site.
pub fn client(boot: &Boot, device: &Device) -> Result<Option<Client>> {
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

fn convert(received: &ReceivedConfig, device: &Device) -> Desired {
    let keys = Keys { certificates: &received.certificates, agreement: device };
    let config = received.response.config.as_ref();
    let mut desired = config.map(|c| from_response(c, &received.payload, Some(keys))).unwrap_or_default();
    let (memory_bytes, _) = machine::memory();
    check::machine::check(&mut desired, check::machine::Machine { memory_bytes, storage_bytes: 0 });
    desired
}

/// Starts the session on a thread of its own, so that a slow TPM or server holds up nobody else. Without a site nothing is
/// started: the device waits to be given one.
///
/// # Errors
/// When SITE is unusable or there is no thread to be had.
pub fn spawn(inputs: Inputs) -> Result<()> {
    if inputs.boot.site.is_none() {
        let text = "SITE is empty: this device belongs to no controller yet (cargo xtask image-site, or flash with --controller)";
        let _ = inputs.events.send(SessionEvent::Say("info", text.into()));
        let _ = inputs.events.send(SessionEvent::Stored(None));
        return Ok(());
    }
    let store = ConfigStore::open(inputs.paths.data("config"))?;
    on_thread(|| async move {
        // Checked here already, so that a site that cannot be used is known at once.
        match client(&inputs.boot, &inputs.device) {
            Ok(Some(client)) => {
                let _ = inputs.events.send(SessionEvent::Say("info", format!("controller {}", client.server())));
                Session { client: Rc::new(client), store, inputs, reports: Rc::new(ReportQueue::new()) }.run().await;
            }
            Ok(None) => {}
            Err(e) => drop(inputs.events.send(SessionEvent::Trouble(format!("the controller is not called: {e:#}")))),
        }
    })
}

/// Makes a future on a new thread and runs it there, with an event loop of its own.
///
/// # Errors
/// When there is no thread or event loop to be had.
pub fn on_thread<F: Future<Output = ()>>(make: impl FnOnce() -> F + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("event loop")?;
    std::thread::Builder::new()
        .name("controller".into())
        .spawn(move || tokio::task::LocalSet::new().block_on(&runtime, make()))
        .context("controller thread")?;
    Ok(())
}

struct Session {
    client: Rc<Client>,
    store: ConfigStore,
    inputs: Inputs,
    reports: Rc<ReportQueue>,
}

impl Session {
    fn tell(&self, event: SessionEvent) {
        // The kernel outlives the session.
        let _ = self.inputs.events.send(event);
    }

    fn trouble(&self, text: String) {
        self.tell(SessionEvent::Trouble(text));
    }

    /// Hands on what the attempts of the last exchange brought over each adapter.
    fn tell_tried(&self) {
        let tried = self.client.take_tried();
        if !tried.is_empty() {
            self.tell(SessionEvent::Polled(Polled(tried)));
        }
    }

    /// What a config wants, once for each config: conversion costs TPM operations. An object with a fault goes on in its form of `last`,
    /// which becomes what is wanted now, also on disk.
    fn take(&self, config: &ReceivedConfig, last: &mut Desired) -> Desired {
        let mut desired = convert(config, &self.inputs.device);
        check::keep_last_good(last, &mut desired);
        if let Err(e) = last_good::save(&self.inputs.paths, &desired) {
            self.trouble(format!("the last good configuration is not kept for the next start: {e}"));
        }
        last.clone_from(&desired);
        desired
    }

    /// What was wanted before this start. After a crash the config before is in force; what the one after it made of an object is not
    /// trusted.
    fn last_good(&self) -> Desired {
        if self.inputs.after_crash {
            return Desired::default();
        }
        let (last, lost) = last_good::load(&self.inputs.paths);
        lost.into_iter().for_each(|text| self.trouble(text));
        last
    }

    async fn run(self) {
        let mut applied = match self.store.load_config(self.client.roots(), self.inputs.after_crash) {
            Ok(stored) => stored,
            Err(e) => {
                self.trouble(format!("the stored config is not used: {e:#}"));
                None
            }
        };
        let mut last = self.last_good();
        let mut desired = Desired::default();
        if let Some(config) = &applied {
            self.client.set_certificates(config.certificates.clone());
            desired = self.take(config, &mut last);
            self.client.set_timing(Timing::from_properties(&desired.properties));
            self.tell(SessionEvent::Stored(Some(Box::new(desired.clone()))));
        } else {
            self.tell(SessionEvent::Stored(None));
            if let Ok(Some(certificates)) = self.store.load_certificates(self.client.roots()) {
                self.client.set_certificates(certificates.into());
            }
        }
        let mut uplinks = self.inputs.uplinks.clone();
        self.become_known(&mut uplinks).await;
        let (shared, properties_now) = watch::channel(desired.properties);
        let times = Rc::new(Cell::new(ConfigTimes::default()));
        self.spawn_reports(properties_now, times.clone());

        let (certificates_wanted, wanted) = watch::channel(desired.controller_certificates_hash);
        let (client, store, events) = (self.client.clone(), self.store.clone(), self.inputs.events.clone());
        tokio::task::spawn_local(certificates::keep_fresh(client, store, events, wanted));
        let mut epoch = applied.as_ref().map(|_| desired.controller_epoch);
        let mut in_force = Instant::now();
        let mut asked_uuid: Option<Instant> = None;
        // Both go on at the same time, as with EVE: a controller that asks for no proof is not to be deaf to its device.
        let (mut token, refused) = self.spawn_attestation();
        loop {
            let hash = applied.as_ref().map_or("", ReceivedConfig::hash).to_owned();
            self.client.set_uplinks(uplinks.borrow_and_update().0.clone());
            let shown = token.borrow_and_update().clone();
            let answer = self.client.poll_config(self.inputs.device.as_ref(), &hash, &shown).await;
            self.tell_tried();
            if matches!(answer, Ok(ConfigAnswer::New(_) | ConfigAnswer::Unchanged)) {
                times.set(ConfigTimes { received: Some(SystemTime::now()), ..times.get() });
            }
            match answer {
                Ok(ConfigAnswer::New(config)) => {
                    let applied_at = applied.as_ref().map(ReceivedConfig::timestamp);
                    if let Some(refusal) = freshness::refusal(&config, applied_at, self.client.known_uuid()) {
                        self.tell(SessionEvent::Refused(refusal.to_string()));
                    } else {
                        if let Err(e) = self.store.save_config(&config) {
                            self.trouble(format!(
                                "the new config cannot be stored: {e}; it is in force until the next reboot only"
                            ));
                        }
                        let desired = self.take(&config, &mut last);
                        self.client.set_timing(Timing::from_properties(&desired.properties));
                        let _ = shared.send(desired.properties.clone());
                        let _ = certificates_wanted.send(desired.controller_certificates_hash.clone());
                        if epoch.replace(desired.controller_epoch).is_some_and(|old| old != desired.controller_epoch) {
                            self.reports.repeat_all();
                        }
                        in_force = Instant::now();
                        applied = Some(*config);
                        self.tell(SessionEvent::Config(Box::new(desired)));
                        times.set(ConfigTimes { processed: Some(SystemTime::now()), ..times.get() });
                    }
                }
                Ok(ConfigAnswer::Unchanged) => {
                    let age = Duration::from_secs(shared.borrow().test_window_seconds.into());
                    if let Err(e) = self.store.back_up(in_force.elapsed(), age) {
                        self.trouble(format!("the config cannot be backed up: {e}"));
                    }
                    self.tell(SessionEvent::Contact);
                }
                // Before the first token this is what was to be expected.
                Ok(ConfigAnswer::TokenRefused) => drop(refused.send(shown)),
                Ok(ConfigAnswer::DeviceUnknown) => {
                    self.tell(SessionEvent::NoContact { temporary: false });
                    self.trouble("the controller has no config for this device".into());
                    if asked_uuid.is_none_or(|t| t.elapsed() >= timing::UUID_RECHECK) {
                        asked_uuid = Some(Instant::now());
                        if let Ok(answer) = self.client.ask_uuid(self.inputs.device.as_ref()).await
                            && let Ok(uuid) = answer.uuid.parse::<Uuid>()
                        {
                            self.keep_uuid(uuid);
                        }
                    }
                }
                Err(failure) => {
                    self.tell(SessionEvent::NoContact { temporary: failure.class() == Class::Temporary });
                    self.trouble(format!("config: {failure}"));
                }
            }
            // A fresh token, or another way to the controller, is worth asking at once.
            tokio::select! {
                () = sleep(self.client.timing().next_poll(timing::random())) => {}
                Ok(()) = token.changed() => {}
                Ok(()) = uplinks.changed() => {}
            }
        }
    }

    /// Our UUID: from disk, or by onboarding. Comes back once there is an address to call from, or none has come for a while.
    async fn become_known(&self, uplinks: &mut watch::Receiver<Uplinks>) {
        let kept = self.store.load_uuid().ok().flatten();
        if let Some(uuid) = kept {
            self.client.set_uuid(uuid);
            self.tell(SessionEvent::Device(uuid));
        }
        wait_for_address(uplinks).await;
        self.client.set_uplinks(uplinks.borrow().0.clone());
        if kept.is_some() {
            return;
        }
        let events = self.inputs.events.clone();
        let onboarded = onboard(&self.client, self.inputs.device.as_ref(), |progress| {
            if let Progress::Failed { step, failure, .. } = progress {
                let _ = events.send(SessionEvent::Trouble(format!("onboarding, {step:?}: {failure}")));
            }
        })
        .await;
        if let Some(certificates) = self.client.certificates() {
            let _ = self.store.save_certificates(&certificates);
        }
        self.keep_uuid(onboarded.uuid);
    }

    fn keep_uuid(&self, uuid: Uuid) {
        if let Err(e) = self.store.save_uuid(uuid) {
            self.trouble(format!("the device's UUID cannot be stored: {e}; it is asked for again after a reboot"));
        }
        self.client.set_uuid(uuid);
        self.tell(SessionEvent::Device(uuid));
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
                    let _ = heard.send(SessionEvent::Attestation { state, error: error.to_owned() });
                })
                .await;
                if let Some(error) = &attested.escrow_error {
                    let _ = events.send(SessionEvent::Trouble(format!("key escrow: {error}")));
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

    /// The sender, and what feeds it.
    fn spawn_reports(&self, properties: watch::Receiver<Properties>, times: Rc<Cell<ConfigTimes>>) {
        let (client, device, reports, events) =
            (self.client.clone(), self.inputs.device.clone(), self.reports.clone(), self.inputs.events.clone());
        tokio::task::spawn_local(async move {
            let never = reports
                .run(&client, device.as_ref(), |refusal| {
                    let end = if refusal.dropped { "given up" } else { "sent again later" };
                    let _ = events.send(SessionEvent::Trouble(format!("{}: {}; {end}", refusal.what, refusal.failure)));
                })
                .await;
            match never {}
        });
        let reporter = Reporter::new(self.client.clone(), self.reports.clone(), properties, times, &self.inputs);
        tokio::task::spawn_local(reporter.run());
    }
}

/// Comes back once there is an address to call from, or none has come for [`FIRST_ADDRESS`].
pub async fn wait_for_address(uplinks: &mut watch::Receiver<Uplinks>) {
    let _ = timeout(FIRST_ADDRESS, uplinks.wait_for(|ways| !ways.0.is_empty())).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::net::Uplink;

    #[tokio::test(start_paused = true)]
    async fn the_first_call_waits_for_an_address_and_not_for_ever() {
        let began = Instant::now();
        let (uplinks, mut have) = watch::channel(Uplinks::default());
        wait_for_address(&mut have).await;
        assert_eq!(began.elapsed(), FIRST_ADDRESS);
        uplinks.send_replace(Uplinks(vec![Uplink::default()]));
        wait_for_address(&mut have).await;
        assert_eq!(began.elapsed(), FIRST_ADDRESS);
    }
}
