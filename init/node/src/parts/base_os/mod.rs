//! The base OS: a version streamed into the other slot, its trial, its commit.
//!
//! Principles:
//! 1. The rules of the slots are `slots::step`; what to send through them is decided by [`state`], purely.
//! 2. STATE, boot variables and TPM are written by one operation at a time, and nothing is decided meanwhile.
//! 3. Wherever an agent or a boot was cut off, the record on STATE says how to go on.
//!
//! Reading order: [`facts`], [`state`], [`download`], [`slots`].

pub mod download;
pub mod facts;
pub mod slots;
pub mod state;

use self::facts::{Busy, InTrial, RebootDue};
use self::slots::{Sent, Slots};
use self::state::{After, Do, State};
use crate::fetching::source::{What, plan};
use crate::fetching::{Fetching, Get, Order, Reports};
use crate::keeper::Said;
use crate::part::{Event, Part, Turn};
use crate::parts::controller::facts::Contact;
use crate::parts::device::facts::GoingDown;
use holdfast_model::base_os::BaseOs;
use holdfast_model::boot::Partitions;
use holdfast_model::contract::fetch::{FailureClass, Report};
use holdfast_model::desired::Desired;
use holdfast_model::observed::{ContentStatus, Observed};
use holdfast_model::slot::{Slot, SlotStatus};
use holdfast_slots::{Event as SlotEvent, Image, Record};
use holdfast_supervise::{UnitName, UnitState, UnitStatus};
use std::rc::Rc;
use std::time::Duration;

/// Unit of the download job.
const UNIT: &str = "fetch-base-os";
/// Between two tries of starting a download: short, as it is a config or a former job that stands in the way.
const BEGIN_RETRY: Duration = Duration::from_secs(10);

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

/// The part.
pub struct BaseOsPart {
    means: Means,
    state: State,
    /// The last contact and failure that the trial has counted.
    counted: Contact,
    jobs: u64,
    /// The last job that was told to end.
    stopped: Option<u64>,
    epoch_checked: bool,
    content: Option<ContentStatus>,
    said: Said,
}

/// News: events were followed, or not.
struct Followed(After, Sent);

/// News: the other slot is marked and the download job runs, or not.
struct Began {
    job: u64,
    sent: Sent,
    reports: Result<Rc<dyn Reports>, String>,
}

/// News: the next report of the download job.
struct Reported(u64, Rc<dyn Reports>, Option<Report>);

/// News: the download job was told to end, or its unit dropped.
struct Dropped(Result<(), String>);

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

    fn begin(&mut self, base: &BaseOs, desired: &Desired, turn: &mut Turn<'_>) {
        let order = match self.order(base, desired) {
            Ok(order) => order,
            Err(text) => return self.begin_failed(&base.version, &text, turn),
        };
        self.jobs += 1;
        let job = self.jobs;
        self.state.sending = true;
        self.state.download = self.state.download.next(&base.version, job);
        let image = Image { version: base.version.clone(), epoch: self.state.record.committed_epoch };
        let mark = self.means.slots.send(vec![SlotEvent::BeginStage(image)]);
        let fetching = self.means.fetching.clone();
        turn.start(format!("fetch base OS {}", base.version), async move {
            let sent = mark.await;
            let reports = match &sent.result {
                Ok(_) => fetching.start(order).await,
                Err(text) => Err(text.clone()),
            };
            Began { job, sent, reports }
        });
    }

    fn begin_failed(&mut self, version: &str, text: &str, turn: &mut Turn<'_>) {
        let download = &mut self.state.download;
        download.job = None;
        version.clone_into(&mut download.version);
        download.error = format!("base OS {version}: {text}");
        download.retry_at = turn.now + BEGIN_RETRY;
        turn.wake(download.retry_at);
        let text = download.error.clone();
        self.said.once(turn, "error", &text);
    }

    fn order(&self, base: &BaseOs, desired: &Desired) -> Result<Order, String> {
        let Some(tree) = desired.contents.iter().find(|c| c.id == base.content) else {
            return Err(format!("expected content {} in the config, found none", base.content));
        };
        let fetch = plan(tree, &desired.datastores, &self.means.roots_pem, self.state.download.failures)?;
        let What::File { path } = fetch.what else {
            return Err(format!("content {}: expected a file (format RAW), found a container image", tree.name));
        };
        let partitions = &self.means.partitions;
        let (esp, os) = match self.state.running.other() {
            Slot::A => (&partitions.esp_a, &partitions.os_a),
            Slot::B => (&partitions.esp_b, &partitions.os_b),
        };
        Ok(Order {
            unit: unit(),
            server: fetch.server,
            get: Get::Slot {
                path,
                sha256: fetch.sha256,
                max_bytes: fetch.max_bytes,
                release_key_pem: self.means.release_key_pem.clone(),
                min_epoch: self.state.record.committed_epoch,
                version: base.version.clone(),
                esp: esp.into(),
                os: os.into(),
            },
        })
    }

    fn stop(&self, turn: &mut Turn<'_>) {
        let stop = self.means.fetching.stop(unit());
        turn.start(format!("stop {UNIT}"), async move { Dropped(stop.await) });
    }

    fn began(&mut self, Began { job, sent, reports }: &Began, turn: &mut Turn<'_>) {
        self.state.sending = false;
        self.state.record = sent.record.clone();
        let version = self.state.download.version.clone();
        match reports {
            Ok(reports) => {
                let slot = self.state.running.other();
                turn.say("info", format!("base OS {version}: streaming into slot {slot}"));
                listen(*job, reports.clone(), turn);
            }
            Err(text) => self.begin_failed(&version, text, turn),
        }
    }

    fn reported(&mut self, Reported(job, reports, report): &Reported, turn: &mut Turn<'_>) {
        if self.state.download.job != Some(*job) {
            return;
        }
        match self.state.download.report(report.as_ref()) {
            None => listen(*job, reports.clone(), turn),
            Some(text) => {
                turn.say("info", text);
                let longest = turn
                    .config
                    .map_or(BEGIN_RETRY, |d| Duration::from_secs(d.properties.download_retry_seconds.into()));
                let network = match &self.state.download.end {
                    Some(Err((FailureClass::Transport | FailureClass::Local, text))) => Some(text.clone()),
                    _ => None,
                };
                if let Some(text) = network {
                    self.state.download.end = None;
                    self.state.download.failed(turn.now, &text, longest);
                }
            }
        }
    }

    /// PID 1's table is for units that somebody may ask for; and a job of a former agent writes for nobody.
    fn unit(&mut self, status: &UnitStatus, turn: &mut Turn<'_>) {
        if status.name.as_str() != UNIT {
            return;
        }
        if matches!(status.state, UnitState::Ended) {
            let remove = self.means.fetching.remove(unit());
            turn.start(format!("remove {UNIT}"), async move { Dropped(remove.await) });
        } else if self.state.download.job.is_none() {
            self.stop(turn);
        }
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
        match self.state.next(turn.now, config.as_deref()) {
            Do::Nothing => {}
            Do::Wait(seconds_left) => {
                if self.state.seconds_left.replace(seconds_left).is_none() {
                    let slot = self.state.running;
                    turn.say("info", format!("trial of the base OS in slot {slot}: {seconds_left} s to go"));
                }
            }
            Do::Send(events, after) => self.send(events, after, turn),
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

/// Asks for the next report of the job.
fn listen(job: u64, reports: Rc<dyn Reports>, turn: &mut Turn<'_>) {
    turn.start("the next report on the base OS", async move {
        let report = reports.next().await;
        Reported(job, reports, report)
    });
}

/// # Panics
/// Never: it is a constant.
fn unit() -> UnitName {
    UnitName::new(UNIT).expect("a valid name")
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
        if let Some(followed) = event.news() {
            self.followed(followed, turn);
        } else if let Some(began) = event.news() {
            self.began(began, turn);
        } else if let Some(reported) = event.news() {
            self.reported(reported, turn);
        } else if let Some(Dropped(Err(e))) = event.news() {
            self.said.once(turn, "warning", e);
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
