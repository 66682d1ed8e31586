//! The base OS: streaming a version into the other slot, its trial, its commit. The rules are `slots::step`; here is only what
//! drives them: the config, the clock, the download job.

use crate::boot::{Boot, Paths};
use crate::fetching::jobs::{self, JobEvent, task_fd};
use crate::fetching::source::{What, plan as plan_fetch};
use crate::supervisor::Supervisor;
use crate::trust;
use anyhow::{Context, Result};
use holdfast_format::gpt;
use holdfast_format::release::PRODUCT;
use holdfast_identity::Identity;
use holdfast_model::base_os::BaseOs;
use holdfast_model::boot::Partitions;
use holdfast_model::contract::fetch::{FailureClass, Outcome, Report, Task};
use holdfast_model::desired::Desired;
use holdfast_model::observed::{BootReason, ContentStatus, LoadState, Tens};
use holdfast_model::slot::{BaseOsStatus, BaseOsSubStatus, Slot, SlotStatus};
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use holdfast_slots::run::{RebootDue, run};
use holdfast_slots::trial::{Controller, Deadlines, Health, Verdict, judge};
use holdfast_slots::{Event, Image, Phase, Record};
use holdfast_supervise::UnitName;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Key of the download job's events.
pub const JOB: &str = "base-os";
/// Its unit.
const UNIT: &str = "fetch-base-os";

/// Between two tries of starting a download: short, as it is a config or a former job that stands in the way.
const BEGIN_RETRY: Duration = Duration::from_secs(10);
/// Between two tries of a commit.
const COMMIT_RETRY: Duration = Duration::from_secs(30);

/// The device's boot variables.
type Firmware = holdfast_slots::firmware::EfiBoot;

/// What the download job last said.
#[derive(Debug, Clone, Default)]
struct Download {
    /// It runs.
    busy: bool,
    /// Version being fetched.
    version: String,
    /// Percent of the bytes that came.
    progress: u32,
    /// All came; what was written is read back.
    verifying: bool,
    /// Its end, not yet acted on.
    end: Option<std::result::Result<Image, (FailureClass, String)>>,
    /// Failures in a row.
    failures: u32,
    /// Not before.
    retry_at: Duration,
    /// Last error, shown until the next try ends.
    error: String,
}

/// The base OS of this device.
pub struct Update {
    record: Record,
    state: File,
    firmware: Firmware,
    running: Slot,
    partitions: Partitions,
    release_key_pem: String,
    download: Download,
    controller: Controller,
    seconds_left: Option<u32>,
    /// A commit is not tried before.
    commit_at: Duration,
    said: String,
}

impl Update {
    /// Opens STATE and the boot variables.
    ///
    /// # Errors
    /// When STATE cannot be read: PID 1 writes the first record, so it must be there.
    pub fn open(boot: &Boot, _paths: &Paths) -> Result<Self> {
        let facts = &boot.facts;
        let path = &facts.partitions.state;
        let state = OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("STATE ({path})"))?;
        let image = Image { version: facts.version.clone(), epoch: facts.epoch };
        let record = Record::load(&state)?.unwrap_or_else(|| Record::initial(facts.slot, image));
        let disk = File::open(&facts.partitions.disk).with_context(|| facts.partitions.disk.clone())?;
        let (table, _) = gpt::Table::read(&disk, trust::device_bytes(&facts.partitions.disk)?)
            .with_context(|| facts.partitions.disk.clone())?;
        Ok(Self {
            record,
            state,
            firmware: Firmware::new(&table)?,
            running: facts.slot,
            partitions: facts.partitions.clone(),
            release_key_pem: boot.release_key_pem.clone(),
            download: Download::default(),
            controller: Controller::default(),
            seconds_left: None,
            commit_at: Duration::ZERO,
            said: String::new(),
        })
    }

    /// This boot is a trial.
    #[must_use]
    pub fn in_trial(&self) -> bool {
        matches!(self.record.phase, Phase::Trial { .. })
    }

    /// An update is under way.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.download.busy || self.record.phase != Phase::Stable
    }

    /// Ends a trial that cannot go on; nothing outside of one.
    ///
    /// # Errors
    /// When STATE cannot be written.
    pub fn give_up_trial(&mut self, why: &str) -> Result<Option<RebootDue>> {
        if !self.in_trial() {
            return Ok(None);
        }
        let mut no_epoch = holdfast_slots::run::no_epoch;
        Ok(run(
            &mut self.record,
            Event::TrialFailed(why.to_owned()),
            &mut self.state,
            &mut self.firmware,
            &mut no_epoch,
        )?)
    }

    /// The controller answered with a config or that the present one is right.
    pub fn contact(&mut self, now: Duration) {
        self.controller = self.controller.accepted(now);
    }

    /// A poll of the config failed; `temporary`: by the remote side's fault.
    pub fn no_contact(&mut self, now: Duration, temporary: bool) {
        self.controller = self.controller.failed(now, temporary);
    }

    /// What is reported of the slots, the running one first.
    #[must_use]
    pub fn slots(&self) -> Vec<SlotStatus> {
        let mut list = holdfast_slots::status::status(&self.record, self.running, self.seconds_left).to_vec();
        if let Some(other) = list.get_mut(1) {
            // The record knows that the slot is being written, the job how far it is.
            if self.download.busy && !self.download.verifying && other.sub_status == BaseOsSubStatus::Installing {
                other.status = BaseOsStatus::Downloading;
                other.sub_status = BaseOsSubStatus::None;
                other.sub_status_progress = Tens::down(self.download.progress);
            }
            // A download that keeps failing is not a failed version yet, but its reason must be seen.
            if other.reason.is_empty() && !self.download.error.is_empty() {
                other.reason.clone_from(&self.download.error);
            }
        }
        list
    }

    /// Status of the content tree that the base OS comes from.
    #[must_use]
    pub fn content(&self, desired: &Desired) -> Option<ContentStatus> {
        let base = desired.base_os.as_ref()?;
        let tree = desired.contents.iter().find(|c| c.id == base.content)?;
        let there = self.record.image(self.running).is_some_and(|i| i.version == base.version)
            || matches!(
                &self.record.phase,
                Phase::Staged { image, .. } | Phase::Armed(image) | Phase::Trial { image, .. } | Phase::Committing(image)
                    if image.version == base.version
            );
        let state = if there {
            LoadState::Loaded
        } else if self.download.busy {
            LoadState::Downloading
        } else if !self.download.error.is_empty() {
            LoadState::Error
        } else {
            LoadState::Initial
        };
        Some(ContentStatus {
            id: tree.id,
            name: tree.name.clone(),
            state,
            progress: Tens::down(if there { 100 } else { self.download.progress }),
            sha256: if there { tree.sha256.clone() } else { String::new() },
            size_bytes: 0,
            troubles: Trouble::from_text(Object::new(ObjectKind::Content, tree.id, &tree.name), &self.download.error)
                .into_iter()
                .collect(),
        })
    }

    /// Takes a report of the download job in; returns what is worth saying.
    pub fn job(&mut self, report: Option<Report>) -> Vec<String> {
        let end = match report {
            Some(Report::Progress { phase: holdfast_model::contract::fetch::Phase::Verifying, .. }) => {
                self.download.verifying = true;
                return vec![];
            }
            Some(Report::Progress { bytes, total, .. }) => {
                let percent = bytes.saturating_mul(100).checked_div(total).unwrap_or(0).min(99);
                self.download.progress = u32::try_from(percent).unwrap_or(99);
                return vec![];
            }
            Some(Report::Done(Outcome::Update { version, epoch })) => Ok(Image { version, epoch }),
            Some(Report::Done(other)) => {
                Err((FailureClass::Local, format!("expected an update from the job, found {other:?}")))
            }
            Some(Report::Failed { class, text }) => Err((class, text)),
            None => Err((FailureClass::Local, "the download job ended without a result".to_owned())),
        };
        let text = match &end {
            Ok(image) => format!("base OS {}: complete in the other slot, verified", image.version),
            Err((_, text)) => format!("base OS {}: {text}", self.download.version),
        };
        self.download.busy = false;
        self.download.end = Some(end);
        vec![text]
    }

    /// One look at everything; returns what is worth saying and a reboot that is due.
    #[allow(
        clippy::too_many_arguments,
        reason = "each is one thing the agent owns; a struct of them would be used once"
    )]
    pub fn turn(
        &mut self,
        now: Duration,
        desired: &Desired,
        roots_pem: &[String],
        supervisor: &Rc<RefCell<Supervisor>>,
        events: &mpsc::Sender<JobEvent>,
        identity: &dyn Identity,
        held: bool,
    ) -> (Vec<String>, Option<(BootReason, String)>) {
        let mut texts = Vec::new();
        let outcome = if held {
            Ok(None)
        } else {
            match self.record.phase.clone() {
                Phase::Trial { reason: None, .. } => self.judge(now, desired, identity, &mut texts),
                // An agent before this one, or this boot, was cut off in the middle: on from there.
                Phase::Committing(_) => self.commit(now, identity, &mut texts),
                Phase::Trial { reason: Some(why), .. } => self.event(Event::TrialFailed(why), identity),
                Phase::Armed(image) => Ok(Some(RebootDue {
                    reason: BootReason::Update,
                    text: format!("update to {} in slot {}", image.version, self.running.other()),
                })),
                Phase::Stable | Phase::Dirty(_) | Phase::Staged { .. } => {
                    self.pursue(now, desired, roots_pem, supervisor, events, identity, &mut texts)
                }
            }
        };
        match outcome {
            Ok(due) => (texts, due.map(|d| (d.reason, d.text))),
            Err(e) => {
                let text = format!("base OS: {e:#}");
                if text != self.said {
                    self.said.clone_from(&text);
                    texts.push(text);
                }
                (texts, None)
            }
        }
    }

    fn event(&mut self, event: Event, identity: &dyn Identity) -> Result<Option<RebootDue>> {
        let mut commit = |epoch: u32| identity.commit_epoch(epoch).map_err(|e| e.to_string());
        Ok(run(&mut self.record, event, &mut self.state, &mut self.firmware, &mut commit)?)
    }

    /// A trial: has it proved itself, or failed?
    fn judge(
        &mut self,
        now: Duration,
        desired: &Desired,
        identity: &dyn Identity,
        texts: &mut Vec<String>,
    ) -> Result<Option<RebootDue>> {
        let seconds = |s: u32| Duration::from_secs(s.into());
        let deadlines = Deadlines {
            test_window: seconds(desired.properties.test_window_seconds),
            no_controller: seconds(desired.properties.fallback_no_network_seconds),
            ..Deadlines::default()
        };
        // This code runs only with an open vault.
        let health = Health { now, vault_open: Some(Duration::ZERO), controller: self.controller, fatal: None };
        match judge(&deadlines, &health) {
            Verdict::Waiting { seconds_left } => {
                if self.seconds_left.is_none() {
                    texts.push(format!("trial of the base OS in slot {}: {seconds_left} s to go", self.running));
                }
                self.seconds_left = Some(seconds_left);
                Ok(None)
            }
            Verdict::Passed => self.commit(now, identity, texts),
            Verdict::Failed(why) => self.event(Event::TrialFailed(why.to_string()), identity),
        }
    }

    /// The trial has proved itself. What fails here (the TPM, boot variables) is tried again, not every second.
    fn commit(&mut self, now: Duration, identity: &dyn Identity, texts: &mut Vec<String>) -> Result<Option<RebootDue>> {
        if now < self.commit_at {
            return Ok(None);
        }
        self.commit_at = now + COMMIT_RETRY;
        let due = self.event(Event::TrialPassed, identity)?;
        self.seconds_left = None;
        texts.push(format!("base OS in slot {} committed", self.running));
        Ok(due)
    }

    /// No trial: is another version wanted, and how far is it?
    #[allow(clippy::too_many_arguments, reason = "see turn")]
    fn pursue(
        &mut self,
        now: Duration,
        desired: &Desired,
        roots_pem: &[String],
        supervisor: &Rc<RefCell<Supervisor>>,
        events: &mpsc::Sender<JobEvent>,
        identity: &dyn Identity,
        texts: &mut Vec<String>,
    ) -> Result<Option<RebootDue>> {
        let Some(base) = desired.base_os.clone() else {
            return Ok(None);
        };
        if base.retry_counter != self.record.retry_counter {
            self.event(Event::RetryCounter(base.retry_counter), identity)?;
            self.download = Download::default();
        }
        // Another version is wanted by now: what is under way, or has ended, is for nothing.
        if !self.download.version.is_empty() && self.download.version != base.version {
            if self.download.busy {
                let _ = supervisor.borrow_mut().stop(&UnitName::new(UNIT)?, Some(Duration::ZERO));
                return Ok(None);
            }
            self.download = Download::default();
        }
        match self.download.end.take() {
            Some(Ok(image)) if image.version == base.version => {
                // Only the payload knows its epoch: the record must carry it before the slot counts as staged.
                self.event(Event::BeginStage(image), identity)?;
                self.event(Event::Staged, identity)?;
                self.download = Download::default();
            }
            Some(Ok(image)) => {
                self.event(
                    Event::StageFailed(format!("expected version {}, found {}", base.version, image.version)),
                    identity,
                )?;
            }
            Some(Err((class, text))) => self.failed(now, class, &text, desired, identity)?,
            None => {}
        }
        if self.download.busy {
            return Ok(None);
        }
        match self.record.phase.clone() {
            Phase::Staged { image, .. } if image.version == base.version => match base.activate {
                true => self.event(Event::Activate, identity),
                // Ready in the other slot until the controller wants it booted.
                false => Ok(None),
            },
            Phase::Stable | Phase::Dirty(_) | Phase::Staged { .. } => {
                let here = self.record.image(self.running).is_some_and(|i| i.version == base.version);
                let failed = self.record.failure.as_ref().is_some_and(|f| f.version == base.version);
                if !here && !failed && now >= self.download.retry_at {
                    if let Err(e) = self.begin(&base, desired, roots_pem, supervisor, events, identity) {
                        self.download.version.clone_from(&base.version);
                        self.download.error = format!("base OS {}: {e:#}", base.version);
                        self.download.retry_at = now + BEGIN_RETRY;
                        return Err(e);
                    }
                    texts.push(format!("base OS {}: streaming into slot {}", base.version, self.running.other()));
                }
                Ok(None)
            }
            Phase::Armed(_) | Phase::Trial { .. } | Phase::Committing(_) => Ok(None),
        }
    }

    fn failed(
        &mut self,
        now: Duration,
        class: FailureClass,
        text: &str,
        desired: &Desired,
        identity: &dyn Identity,
    ) -> Result<()> {
        self.download.failures += 1;
        self.download.error = format!("base OS {}: {text}", self.download.version);
        match class {
            // The network may heal, and the slot is dirty either way: try again.
            FailureClass::Transport | FailureClass::Local => {
                self.download.retry_at = now + retry_after(self.download.failures, desired);
            }
            FailureClass::Refused | FailureClass::Content => {
                self.event(Event::StageFailed(self.download.error.clone()), identity)?;
            }
        }
        Ok(())
    }

    fn begin(
        &mut self,
        base: &BaseOs,
        desired: &Desired,
        roots_pem: &[String],
        supervisor: &Rc<RefCell<Supervisor>>,
        events: &mpsc::Sender<JobEvent>,
        identity: &dyn Identity,
    ) -> Result<()> {
        let tree = desired
            .contents
            .iter()
            .find(|c| c.id == base.content)
            .with_context(|| format!("expected content {} in the config, found none", base.content))?;
        let fetch =
            plan_fetch(tree, &desired.datastores, roots_pem, self.download.failures).map_err(anyhow::Error::msg)?;
        let What::File { path } = fetch.what else {
            anyhow::bail!("content {}: expected a file (format RAW), found a container image", tree.name)
        };
        let image = Image { version: base.version.clone(), epoch: self.record.committed_epoch };
        self.event(Event::BeginStage(image), identity)?;
        let other = self.running.other();
        let (esp, os) = match other {
            Slot::A => (&self.partitions.esp_a, &self.partitions.os_a),
            Slot::B => (&self.partitions.esp_b, &self.partitions.os_b),
        };
        let open = |path: &str| OpenOptions::new().read(true).write(true).open(path).with_context(|| path.to_owned());
        let (esp, os) = (open(esp)?, open(os)?);
        let task = Task::Update {
            path,
            sha256: fetch.sha256,
            max_bytes: fetch.max_bytes,
            release_key_pem: self.release_key_pem.clone(),
            product: PRODUCT.into(),
            min_epoch: self.record.committed_epoch,
            version: base.version.clone(),
            esp_fd: task_fd(0),
            os_fd: task_fd(1),
        };
        jobs::start(
            &mut supervisor.borrow_mut(),
            JOB,
            &UnitName::new(UNIT)?,
            fetch.server,
            task,
            &[esp.as_fd(), os.as_fd()],
            events,
        )?;
        self.download = Download {
            busy: true,
            version: base.version.clone(),
            failures: self.download.failures,
            // Shown until this try ends.
            error: std::mem::take(&mut self.download.error),
            ..Download::default()
        };
        Ok(())
    }
}

/// Wait after so many failures in a row.
fn retry_after(failures: u32, desired: &Desired) -> Duration {
    let longest = Duration::from_secs(desired.properties.download_retry_seconds.into());
    Duration::from_secs(10).saturating_mul(1 << failures.min(8)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_downloads_are_tried_again_later_and_later_up_to_the_property() {
        let mut desired = Desired::default();
        desired.properties.download_retry_seconds = 600;
        let seconds: Vec<u64> = [1, 2, 3, 6, 9, 4_000_000].map(|n| retry_after(n, &desired).as_secs()).to_vec();
        assert_eq!(seconds, [20, 40, 80, 600, 600, 600]);
    }
}
