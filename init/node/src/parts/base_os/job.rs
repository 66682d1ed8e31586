//! The download job: from its start, or the one of a former agent, to its last report.

use super::BaseOsPart;
use super::slots::Sent;
use crate::fetching::source::{What, plan};
use crate::fetching::{Get, Order, Reports};
use crate::part::{Event, Turn};
use holdfast_model::base_os::BaseOs;
use holdfast_model::contract::fetch::{FailureClass, Report};
use holdfast_model::desired::Desired;
use holdfast_model::slot::Slot;
use holdfast_slots::{Event as SlotEvent, Image, Phase};
use holdfast_supervise::{UnitName, UnitState, UnitStatus};
use std::rc::Rc;
use std::time::Duration;

/// Unit of the download job.
const UNIT: &str = "fetch-base-os";
/// Between two tries of starting a download: short, as it is a config or a former job that stands in the way.
const BEGIN_RETRY: Duration = Duration::from_secs(10);

/// News: the other slot is marked and the download job runs, or not.
struct Began {
    job: u64,
    sent: Sent,
    reports: Result<Rc<dyn Reports>, String>,
}

/// News: the next report of the download job.
pub(super) struct Reported(pub(super) u64, pub(super) Rc<dyn Reports>, pub(super) Option<Report>);

/// News: the download job was told to end, or its unit dropped.
struct Dropped(Result<(), String>);

impl BaseOsPart {
    /// Takes in how far the job is.
    pub(super) fn job_event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        if let Some(began) = event.news() {
            self.began(began, turn);
        } else if let Some(reported) = event.news() {
            self.reported(reported, turn);
        } else if let Some(Dropped(Err(e))) = event.news() {
            self.said.once(turn, "warning", e);
        }
    }

    pub(super) fn begin(&mut self, base: &BaseOs, desired: &Desired, turn: &mut Turn<'_>) {
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
            tag: tag_of(base),
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

    pub(super) fn stop(&self, turn: &mut Turn<'_>) {
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
                let remove = self.means.fetching.remove(unit());
                turn.start(format!("remove {UNIT}"), async move { Dropped(remove.await) });
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

    /// PID 1's table is for units that somebody may ask for: an ended job is none, once its outcome is known.
    pub(super) fn unit(&mut self, status: &UnitStatus, turn: &mut Turn<'_>) {
        if status.name.as_str() != UNIT || self.state.download.job.is_some() {
            return;
        }
        if let Some(spec) = &status.spec {
            self.found = Some(spec.tag.clone());
        } else if matches!(status.state, UnitState::Ended) && self.found.is_none() {
            let remove = self.means.fetching.remove(unit());
            turn.start(format!("remove {UNIT}"), async move { Dropped(remove.await) });
        }
    }

    /// Goes on with the job of a former agent when it writes what is wanted; else ends it.
    pub(super) fn adopt(&mut self, config: Option<&Desired>, turn: &mut Turn<'_>) {
        let Some(base) = config.and_then(|d| d.base_os.as_ref()) else { return };
        let Some(tag) = self.found.take() else { return };
        let writes = matches!(&self.state.record.phase, Phase::Dirty(image) if image.version == base.version);
        if !writes || tag != tag_of(base) {
            return self.stop(turn);
        }
        self.jobs += 1;
        let job = self.jobs;
        self.state.sending = true;
        self.state.download = self.state.download.next(&base.version, job);
        let (adopt, sent) =
            (self.means.fetching.adopt(unit()), Sent { record: self.state.record.clone(), result: Ok(None) });
        turn.start("go on with the base OS", async move { Began { job, sent, reports: adopt.await } });
    }
}

/// Asks for the next report of the job.
fn listen(job: u64, reports: Rc<dyn Reports>, turn: &mut Turn<'_>) {
    turn.start("the next report on the base OS", async move {
        let report = reports.next().await;
        Reported(job, reports, report)
    });
}

/// Tag of the job's unit.
fn tag_of(base: &BaseOs) -> String {
    base.version.chars().take(64).collect()
}

/// # Panics
/// Never: it is a constant.
pub(super) fn unit() -> UnitName {
    UnitName::new(UNIT).expect("a valid name")
}
