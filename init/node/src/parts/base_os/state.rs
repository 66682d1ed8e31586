//! What to do about the base OS: a pure function of the record on STATE, the config, the download and the clock. The rules of the
//! slots themselves are `slots::step`.

use super::download::Download;
use holdfast_model::base_os::BaseOs;
use holdfast_model::contract::fetch::FailureClass;
use holdfast_model::desired::Desired;
use holdfast_model::observed::{BootReason, ContentStatus, LoadState, Tens};
use holdfast_model::slot::{BaseOsStatus, BaseOsSubStatus, Slot, SlotStatus};
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use holdfast_slots::trial::{Controller, Deadlines, Health, Verdict, judge};
use holdfast_slots::{Event, Phase, Record};
use std::time::Duration;

/// Between two tries of a commit.
const COMMIT_RETRY: Duration = Duration::from_secs(30);
/// Between two tries of anything else that STATE or the boot variables refused.
const SEND_RETRY: Duration = Duration::from_secs(5);

/// What is known.
#[derive(Debug)]
pub struct State {
    /// The record as it is on STATE.
    pub record: Record,
    /// The running slot.
    pub running: Slot,
    /// The vault is open: without it a trial cannot pass.
    pub vault_open: bool,
    /// The download of an update.
    pub download: Download,
    /// The controller, as a trial sees it.
    pub controller: Controller,
    /// Seconds left of a trial.
    pub seconds_left: Option<u32>,
    /// Events are under way to STATE: nothing is decided meanwhile.
    pub sending: bool,
    /// Not before: what was sent last failed.
    pub send_at: Duration,
    /// The reboot that is due.
    pub reboot: Option<(BootReason, String)>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Do {
    /// Nothing.
    Nothing,
    /// Note the seconds left of a trial.
    Wait(u32),
    /// Send these events through the rules, in order.
    Send(Vec<Event>, After),
    /// End the download job: another version is wanted.
    StopJob,
    /// Begin to download.
    Begin(BaseOs),
    /// A reboot is due.
    Reboot(BootReason, String),
}

/// What it means when all events of a [`Do::Send`] were followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing more.
    Nothing,
    /// What was downloaded before counts no more.
    Afresh,
    /// The download's failure is noted; it is not tried again.
    Failed,
    /// The running image is committed.
    Committed,
}

impl State {
    /// At the start, with the record of STATE.
    #[must_use]
    pub fn new(record: Record, running: Slot, vault_open: bool) -> Self {
        Self {
            record,
            running,
            vault_open,
            download: Download::default(),
            controller: Controller::default(),
            seconds_left: None,
            sending: false,
            send_at: Duration::ZERO,
            reboot: None,
        }
    }

    /// This boot is a trial.
    #[must_use]
    pub fn in_trial(&self) -> bool {
        matches!(self.record.phase, Phase::Trial { .. })
    }

    /// An update is under way.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.download.job.is_some() || self.record.phase != Phase::Stable
    }

    /// What to do; `config` is `None` before the first.
    #[must_use]
    pub fn next(&self, now: Duration, config: Option<&Desired>) -> Do {
        if self.sending || self.reboot.is_some() || now < self.send_at {
            return Do::Nothing;
        }
        match &self.record.phase {
            Phase::Trial { reason: None, .. } => self.judge(now, config),
            // An agent before this one, or this boot, was cut off in the middle: on from there.
            Phase::Committing(_) => Do::Send(vec![Event::TrialPassed], After::Committed),
            Phase::Trial { reason: Some(why), .. } => Do::Send(vec![Event::TrialFailed(why.clone())], After::Nothing),
            Phase::Armed(image) => {
                Do::Reboot(BootReason::Update, format!("update to {} in slot {}", image.version, self.running.other()))
            }
            Phase::Stable | Phase::Dirty(_) | Phase::Staged { .. } => {
                config.map_or(Do::Nothing, |desired| self.pursue(now, desired))
            }
        }
    }

    /// A trial: has it proved itself, or failed?
    fn judge(&self, now: Duration, config: Option<&Desired>) -> Do {
        let seconds = |s: u32| Duration::from_secs(s.into());
        let deadlines = config.map_or_else(Deadlines::default, |desired| Deadlines {
            test_window: seconds(desired.properties.test_window_seconds),
            no_controller: seconds(desired.properties.fallback_no_network_seconds),
            ..Deadlines::default()
        });
        let vault_open = self.vault_open.then_some(Duration::ZERO);
        match judge(&deadlines, &Health { now, vault_open, controller: self.controller, fatal: None }) {
            Verdict::Waiting { seconds_left } => Do::Wait(seconds_left),
            Verdict::Passed => Do::Send(vec![Event::TrialPassed], After::Committed),
            Verdict::Failed(why) => Do::Send(vec![Event::TrialFailed(why.to_string())], After::Nothing),
        }
    }

    /// No trial: is another version wanted, and how far is it?
    fn pursue(&self, now: Duration, desired: &Desired) -> Do {
        // None is wanted, or what is wanted has a fault: what is under way goes on.
        let Some(base) = &desired.base_os else { return Do::Nothing };
        if base.retry_counter != self.record.retry_counter {
            return Do::Send(vec![Event::RetryCounter(base.retry_counter)], After::Afresh);
        }
        if self.outdated(base) {
            return if self.download.job.is_some() { Do::StopJob } else { Do::Nothing };
        }
        match &self.download.end {
            // Only the payload knows its epoch: the record must carry it before the slot counts as staged.
            Some(Ok(image)) if image.version == base.version => {
                return Do::Send(vec![Event::BeginStage(image.clone()), Event::Staged], After::Afresh);
            }
            Some(Ok(image)) => {
                let text = format!("expected version {}, found {}", base.version, image.version);
                return Do::Send(vec![Event::StageFailed(text)], After::Failed);
            }
            Some(Err((FailureClass::Refused | FailureClass::Content, text))) => {
                let text = format!("base OS {}: {text}", self.download.version);
                return Do::Send(vec![Event::StageFailed(text)], After::Failed);
            }
            // The network may heal, and the slot is dirty either way: tried again.
            Some(Err((FailureClass::Transport | FailureClass::Local, _))) | None => {}
        }
        if self.download.job.is_some() {
            return Do::Nothing;
        }
        if let Phase::Staged { image, .. } = &self.record.phase
            && image.version == base.version
        {
            // Ready in the other slot until the controller wants it booted.
            return if base.activate { Do::Send(vec![Event::Activate], After::Nothing) } else { Do::Nothing };
        }
        let here = self.record.image(self.running).is_some_and(|i| i.version == base.version);
        let failed = self.record.failure.as_ref().is_some_and(|f| f.version == base.version);
        if !here && !failed && now >= self.download.retry_at { Do::Begin(base.clone()) } else { Do::Nothing }
    }

    /// Another version is wanted by now: what is under way, or has ended, is for nothing.
    #[must_use]
    pub fn outdated(&self, base: &BaseOs) -> bool {
        !self.download.version.is_empty() && self.download.version != base.version
    }

    /// Notes how events ended that were sent; `due` is the reboot that follows.
    pub fn sent(&mut self, now: Duration, after: After, result: Result<Option<(BootReason, String)>, ()>) {
        self.sending = false;
        let Ok(due) = result else {
            self.send_at = now + if after == After::Committed { COMMIT_RETRY } else { SEND_RETRY };
            return;
        };
        self.reboot = due.or_else(|| self.reboot.take());
        match after {
            After::Nothing => {}
            After::Afresh => self.download = Download::default(),
            After::Failed => {
                if let Some(Err((_, text))) = self.download.end.take() {
                    self.download.failures += 1;
                    self.download.error = format!("base OS {}: {text}", self.download.version);
                }
            }
            After::Committed => self.seconds_left = None,
        }
    }

    /// What is reported of the slots, the running one first.
    #[must_use]
    pub fn slots(&self) -> Vec<SlotStatus> {
        let mut list = holdfast_slots::status::status(&self.record, self.running, self.seconds_left).to_vec();
        if let Some(other) = list.get_mut(1) {
            // The record knows that the slot is being written, the job how far it is.
            let comes = self.download.job.is_some() && !self.download.verifying;
            if comes && other.sub_status == BaseOsSubStatus::Installing {
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
        let exists = self.record.image(self.running).is_some_and(|i| i.version == base.version)
            || matches!(
                &self.record.phase,
                Phase::Staged { image, .. } | Phase::Armed(image) | Phase::Trial { image, .. } | Phase::Committing(image)
                    if image.version == base.version
            );
        let state = if exists {
            LoadState::Loaded
        } else if self.download.job.is_some() {
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
            progress: Tens::down(if exists { 100 } else { self.download.progress }),
            sha256: if exists { tree.sha256.clone() } else { String::new() },
            size_bytes: 0,
            troubles: Trouble::from_text(Object::new(ObjectKind::Content, tree.id, &tree.name), &self.download.error)
                .into_iter()
                .collect(),
        })
    }
}
