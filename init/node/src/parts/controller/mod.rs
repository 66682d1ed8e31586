//! The controller: how it is reached, what it wants, and what it is told.
//!
//! Principles:
//! 1. The session runs on a thread of its own: a TPM or server that never answers holds up nothing but itself.
//! 2. A config is converted once. Whether it is newer than the one in force is decided in one place, the session.
//! 3. The controller decides; this part only hands on.
//!
//! Reading order: [`facts`], here, [`session`] (the thread), [`escrow`] (the same while the vault is closed), [`reports`] (info, metrics, logs).

mod certificates;
pub mod escrow;
pub mod facts;
pub mod reports;
pub mod session;

use self::facts::{Attestation, Contact, Failure, Polled, Stored};
use crate::keeper::Said;
use crate::part::{Event, Part, Turn};
use crate::parts::network::facts::Uplinks;
use crate::setup::Setup;
use holdfast_model::desired::Desired;
use holdfast_model::observed::{AttestationState, Observed};
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use std::any::Any;
use std::rc::Rc;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

/// What the session learned.
#[derive(Debug)]
pub enum SessionEvent {
    /// The stored config was looked for: the last one of an earlier session, verified again.
    Stored(Option<Box<Desired>>),
    /// A new config, verified, stored and converted.
    Config(Box<Desired>),
    /// The controller sent a config that is not put in force, and why. It comes again with each poll until that changes.
    Refused(String),
    /// The controller answered a poll: the config in force is current.
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
    /// What the last exchange brought over each adapter.
    Polled(Polled),
    /// What went wrong, in words: it is tried again.
    Trouble(String),
    /// Something to say: severity and text.
    Say(&'static str, String),
}

/// Hands what the session learns to the kernel for ever.
pub async fn forward(mut session: mpsc::UnboundedReceiver<SessionEvent>, kernel: mpsc::UnboundedSender<Event>) {
    while let Some(event) = session.recv().await {
        let news: Rc<dyn Any> = match event {
            SessionEvent::Polled(polled) => Rc::new(polled),
            event => Rc::new(event),
        };
        let _ = kernel.send(Event::News(news));
    }
}

/// The part on a real machine, and its session: one for keys alone while the vault is closed.
///
/// # Errors
/// Never.
pub fn new(setup: &Setup, _kept: Option<&[u8]>) -> anyhow::Result<Box<dyn Part>> {
    let (boot, paths, device) = (setup.boot.clone(), setup.paths.clone(), setup.device.clone());
    let (logs, uplinks, vault_open) = (setup.logs.clone(), setup.uplinks.subscribe(), setup.vault_open);
    let after_crash = setup.after_crash.clone();
    setup.task(move |running| {
        let (events, session) = mpsc::unbounded_channel();
        tokio::task::spawn_local(forward(session, running.events.clone()));
        let (observed, after_crash) = (running.report.clone(), after_crash.get());
        let inputs = session::Inputs { boot, paths, device, observed, logs, events, after_crash, uplinks };
        if vault_open {
            return session::spawn(inputs);
        }
        let (sender, keys) = mpsc::unbounded_channel();
        tokio::task::spawn_local(escrow::forward(keys, running.events.clone()));
        escrow::spawn(inputs, sender)
    });
    Ok(Box::new(ControllerPart::over(setup.uplinks.clone())))
}

/// The part.
pub struct ControllerPart {
    uplinks: watch::Sender<Uplinks>,
    contact: Contact,
    attestation: Attestation,
    stored: Option<Stored>,
    revision: String,
    device_name: String,
    /// Why the controller's present config is not in force; empty when it is.
    refused: String,
    said: Said,
}

impl ControllerPart {
    /// A part that tells the session its ways to the controller through `uplinks`.
    #[must_use]
    pub fn over(uplinks: watch::Sender<Uplinks>) -> Self {
        Self {
            uplinks,
            contact: Contact::default(),
            attestation: Attestation::default(),
            stored: None,
            revision: String::new(),
            device_name: String::new(),
            refused: String::new(),
            said: Said::default(),
        }
    }

    fn take(&mut self, desired: &Desired, turn: &mut Turn<'_>) {
        self.revision.clone_from(&desired.revision);
        self.device_name.clone_from(&desired.device_name);
        self.refused.clear();
        turn.configure(Rc::new(desired.clone()));
    }

    fn heard(&mut self, event: &SessionEvent, turn: &mut Turn<'_>) {
        match event {
            SessionEvent::Stored(found) => {
                self.stored = Some(Stored { found: found.is_some() });
                if let Some(desired) = found {
                    turn.say("info", format!("config {} from disk is in force", desired.revision));
                    self.take(desired, turn);
                }
            }
            SessionEvent::Config(desired) => {
                self.contact.last = Some(turn.now);
                let (apps, instances) = (desired.apps.len(), desired.instances.len());
                let (revision, faults) = (&desired.revision, desired.faults.len());
                let counts = format!("{apps} apps, {instances} network instances, {faults} faults");
                turn.say("info", format!("config {revision} accepted: {counts}"));
                self.take(desired, turn);
            }
            SessionEvent::Refused(text) => {
                self.contact.last = Some(turn.now);
                self.said.once(turn, "error", text);
                self.refused.clone_from(text);
            }
            SessionEvent::Contact => {
                self.contact.last = Some(turn.now);
                self.refused.clear();
            }
            SessionEvent::NoContact { temporary } => {
                self.contact.last_failure = Some(Failure { at: turn.now, temporary: *temporary });
            }
            SessionEvent::Device(id) => {
                if self.contact.device != Some(*id) {
                    turn.say("info", format!("this device is {id} at its controller"));
                }
                self.contact.device = Some(*id);
            }
            SessionEvent::Attestation { state, error } => {
                if !error.is_empty() {
                    self.contact.last_failure = Some(Failure { at: turn.now, temporary: false });
                    self.said.once(turn, "error", &format!("attestation: {error}"));
                }
                self.attestation = Attestation { state: *state, error: error.clone() };
            }
            // News of its own, see [`forward`].
            SessionEvent::Polled(_) => {}
            SessionEvent::Trouble(text) => self.said.once(turn, "warning", text),
            SessionEvent::Say(severity, text) => turn.say(severity, text.clone()),
        }
    }
}

impl Part for ControllerPart {
    fn name(&self) -> &'static str {
        "controller"
    }

    fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        if let Some(event) = event.news() {
            self.heard(event, turn);
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) {
        turn.facts.publish(self.contact.clone());
        turn.facts.publish(self.attestation.clone());
        if let Some(stored) = self.stored {
            turn.facts.publish(stored);
        }
        let ways = turn.facts.get::<Uplinks>().cloned().unwrap_or_default();
        self.uplinks.send_if_modified(|before| {
            let changed = *before != ways;
            *before = ways;
            changed
        });
    }

    fn observe(&self, observed: &mut Observed) {
        let device = &mut observed.device;
        (device.id, device.attestation) = (self.contact.device.unwrap_or_default(), self.attestation.state);
        let on = Object::new(ObjectKind::Attestation, "", "attestation");
        device.troubles.extend(Trouble::from_text(on, &self.attestation.error));
        device.config_revision.clone_from(&self.revision);
        let on = Object::new(ObjectKind::Device, device.id, &self.device_name);
        observed.faults.extend(Trouble::from_text(on, &self.refused));
    }
}

#[cfg(test)]
mod tests;
