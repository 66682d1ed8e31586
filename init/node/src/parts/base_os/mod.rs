//! The base OS: a version streamed into the other slot, its trial, its commit.
//!
//! Principles:
//! 1. The rules of the slots are `slots::step`; what to send through them is decided by [`state`], purely.
//! 2. STATE, boot variables and TPM are written by one operation at a time, and nothing is decided meanwhile.
//! 3. Wherever an agent or a boot was cut off, the record on STATE says how to go on.
//!
//! Reading order: [`facts`], [`state`], [`download`], [`slots`], `job`.

pub mod download;
pub mod facts;
mod job;
pub mod slots;
pub mod state;

use self::facts::{Busy, InTrial, RebootDue};
use self::slots::{Machine, Sent, Slots};
use self::state::{After, Do, State};
use crate::fetching::Fetching;
use crate::fetching::units::Units;
use crate::keeper::Said;
use crate::part::{Event, Part, Turn};
use crate::parts::controller::facts::Contact;
use crate::parts::device::facts::GoingDown;
use crate::parts::vault::facts::Closed;
use crate::setup::Setup;
use holdfast_model::boot::Partitions;
use holdfast_model::observed::{ContentStatus, Observed};
use holdfast_model::slot::{Slot, SlotStatus};
use holdfast_slots::{Event as SlotEvent, Record};
use std::rc::Rc;

/// What the part acts through.
pub struct Means {
    /// STATE, boot variables, TPM.
    pub slots: Rc<dyn Slots>,
    /// Runs the download.
    pub fetching: Rc<dyn Fetching>,
    /// Certificate authorities of the site, PEM.
    pub roots_pem: Vec<String>,
    /// Release public key, PEM.
    pub release_key_pem: String,
    /// Where the slots are.
    pub partitions: Partitions,
    /// Security epoch of the running image.
    pub epoch: u32,
}

/// The part on a real machine.
///
/// # Errors
/// When STATE or the boot variables cannot be read.
pub fn new(setup: &Setup, _kept: Option<&[u8]>) -> anyhow::Result<Box<dyn Part>> {
    let slots = Machine::open(&setup.boot, setup.identity.clone())?;
    let (record, facts) = (slots.record(), &setup.boot.facts);
    let means = Means {
        slots: Rc::new(slots),
        fetching: Rc::new(Units { supervisor: setup.supervisor.clone(), reports: setup.job_reports() }),
        roots_pem: setup.roots_pem(),
        release_key_pem: setup.boot.release_key_pem.clone(),
        partitions: facts.partitions.clone(),
        epoch: facts.epoch,
    };
    Ok(Box::new(BaseOsPart::over(means, record, facts.slot, setup.vault_open)))
}

/// The part.
pub struct BaseOsPart {
    means: Means,
    state: State,
    /// The last contact and failure that the trial has counted.
    counted: Contact,
    jobs: u64,
    /// The tag of a job that an agent before this one started, until a config says whether it is wanted.
    found: Option<String>,
    /// The last job that was told to end.
    stopped: Option<u64>,
    epoch_checked: bool,
    content: Option<ContentStatus>,
    said: Said,
}

/// News: events were followed, or not.
struct Followed(After, Sent);

/// News: the TPM was asked to commit the running image's epoch.
struct EpochCommitted(Result<(), String>);

impl BaseOsPart {
    /// A part that goes on from the record on STATE. Without the vault it only judges a trial.
    #[must_use]
    pub fn over(means: Means, record: Record, running: Slot, vault_open: bool) -> Self {
        Self {
            means,
            state: State::new(record, running, vault_open),
            counted: Contact::default(),
            jobs: 0,
            found: None,
            stopped: None,
            epoch_checked: false,
            content: None,
            said: Said::default(),
        }
    }

    /// Outside of a trial the running image is the committed one: the TPM must refuse those before it from now on. Done at each
    /// start, as the power may have gone between making the vault, or a commit, and this.
    fn keep_committed_epoch(&mut self, turn: &mut Turn<'_>) {
        if std::mem::replace(&mut self.epoch_checked, true) || self.state.busy() || !self.state.vault_open {
            return;
        }
        let commit = self.means.slots.commit_epoch(self.means.epoch);
        turn.start("commit the security epoch", async move { EpochCommitted(commit.await) });
    }

    /// Counts what the controller part says since the last look, in order of time.
    fn count_contacts(&mut self, turn: &Turn<'_>) {
        let Some(contact) = turn.facts.get::<Contact>() else { return };
        let answered = contact.last.filter(|_| contact.last != self.counted.last);
        let failed = contact.last_failure.filter(|_| contact.last_failure != self.counted.last_failure);
        let controller = &mut self.state.controller;
        match (answered, failed) {
            (Some(answer), Some(failure)) if failure.at < answer => {
                *controller = controller.failed(failure.at, failure.temporary).accepted(answer);
            }
            (answer, failure) => {
                if let Some(at) = answer {
                    *controller = controller.accepted(at);
                }
                if let Some(failure) = failure {
                    *controller = controller.failed(failure.at, failure.temporary);
                }
            }
        }
        self.counted = contact.clone();
    }

    fn send(&mut self, events: Vec<SlotEvent>, after: After, turn: &mut Turn<'_>) {
        self.state.sending = true;
        let send = self.means.slots.send(events);
        turn.start("write the slots' state", async move { Followed(after, send.await) });
    }

    fn followed(&mut self, Followed(after, sent): &Followed, turn: &mut Turn<'_>) {
        self.state.record = sent.record.clone();
        if *after == After::Afresh && self.state.download.job.is_some() {
            self.stop(turn);
        }
        self.state.sent(turn.now, *after, sent.result.clone().map_err(|_| ()));
        match &sent.result {
            Ok(_) if *after == After::Committed => {
                turn.say("info", format!("base OS in slot {} committed", self.state.running));
            }
            Ok(_) => {}
            Err(e) => {
                turn.wake(self.state.send_at);
                self.said.once(turn, "error", &format!("base OS: {e}"));
            }
        }
    }

    fn act(&mut self, turn: &mut Turn<'_>) {
        let config = turn.config.cloned();
        // A version that is not wanted any more, and whose job has ended, is forgotten.
        if let Some(base) = config.as_ref().and_then(|d| d.base_os.as_ref())
            && self.state.outdated(base)
            && self.state.download.job.is_none()
        {
            self.state.download = self::download::Download::default();
        }
        self.adopt(config.as_deref(), turn);
        match self.state.next(turn.now, config.as_deref()) {
            Do::Nothing => {}
            Do::Wait(seconds_left) => {
                if self.state.seconds_left.replace(seconds_left).is_none() {
                    let slot = self.state.running;
                    turn.say("info", format!("trial of the base OS in slot {slot}: {seconds_left} s to go"));
                }
            }
            Do::Send(mut events, after) => {
                if let Some(Closed(Some(why))) = turn.facts.get() {
                    events.iter_mut().for_each(|event| name_cause(event, why));
                }
                self.send(events, after, turn);
            }
            Do::StopJob if self.stopped != self.state.download.job => {
                self.stopped = self.state.download.job;
                self.stop(turn);
            }
            // It ends.
            Do::StopJob => {}
            Do::Begin(base) => {
                if let Some(desired) = &config {
                    self.begin(&base, desired, turn);
                }
            }
            Do::Reboot(reason, text) => self.state.reboot = Some((reason, text)),
        }
        self.content = config.as_deref().and_then(|d| self.state.content(d));
    }
}

/// A trial that fails because the vault stays closed says why that is so.
fn name_cause(event: &mut SlotEvent, why: &str) {
    if let SlotEvent::TrialFailed(text) = event
        && !text.contains(why)
    {
        *text = format!("{text}: {why}");
    }
}

impl Part for BaseOsPart {
    fn name(&self) -> &'static str {
        "base_os"
    }

    fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        match event {
            Event::Units(list) => list.iter().for_each(|status| self.unit(status, turn)),
            Event::Unit(status) => self.unit(status, turn),
            _ => {}
        }
        self.job_event(event, turn);
        if let Some(followed) = event.news() {
            self.followed(followed, turn);
        } else if let Some(EpochCommitted(Err(e))) = event.news() {
            let epoch = self.means.epoch;
            let text = format!("security epoch {epoch} is not committed to the TPM: {e}; tried again after a restart");
            turn.say("warning", text);
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) {
        self.keep_committed_epoch(turn);
        self.count_contacts(turn);
        let going_down = turn.facts.get::<GoingDown>().is_some_and(|g| g.0.is_some());
        if !going_down {
            self.act(turn);
        }
        turn.facts.publish(Busy(self.state.busy()));
        turn.facts.publish(InTrial(self.state.in_trial()));
        turn.facts.publish(RebootDue(self.state.reboot.clone()));
    }

    fn observe(&self, observed: &mut Observed) {
        observed.device.slots = self.state.slots();
        observed.device.troubles.extend(observed.device.slots.iter().filter_map(SlotStatus::trouble));
        observed.contents.extend(self.content.clone());
    }
}

#[cfg(test)]
mod tests;
