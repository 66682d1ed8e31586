//! The jobs of contents: from the start of one to its image, or to why there is none.

use super::images::{name_of, partial_name};
use super::kept::KeptContent;
use super::state::Content;
use super::{ContentPart, Dropped, RETRY, retry, unit_of};
use crate::fetching::Reports;
use crate::part::{Event, Turn};
use holdfast_model::contract::fetch::{FailureClass, Outcome, Report};
use holdfast_model::trouble;
use std::rc::Rc;
use uuid::Uuid;

/// A job of a content: jobs are numbered, so that a late report of an earlier one is not taken for this one's.
pub(super) type Job = (Uuid, u64);

/// News: a job began, or not.
pub(super) struct Began(pub(super) Job, pub(super) Result<Rc<dyn Reports>, String>);

/// News: a job's next report.
pub(super) struct Reported(pub(super) Job, pub(super) Rc<dyn Reports>, pub(super) Option<Report>);

/// News: a complete image got its name, or not.
struct Named(Job, KeptContent, Result<(), String>);

impl ContentPart {
    /// Takes in how far a job is.
    pub(super) fn job_event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        if let Some(Began(job, result)) = event.news() {
            self.began(*job, result, turn);
        } else if let Some(Reported(job, reports, report)) = event.news() {
            self.reported(*job, reports, report.as_ref(), turn);
        } else if let Some(Named(job, kept, result)) = event.news() {
            self.named(*job, kept, result, turn);
        }
    }

    /// The content whose job this is, if the job still counts.
    fn current(&mut self, (id, number): Job) -> Option<&mut Content> {
        self.contents.by_id.get_mut(&id).filter(|c| c.busy && c.job == number)
    }

    fn began(&mut self, job: Job, result: &Result<Rc<dyn Reports>, String>, turn: &mut Turn<'_>) {
        match result {
            Ok(reports) if self.current(job).is_some() => listen(job, reports.clone(), turn),
            Ok(_) => {
                self.stop(job.0, turn);
                self.left_half(job.0);
            }
            Err(text) => {
                self.failed(job, FailureClass::Local, text, turn);
                self.left_half(job.0);
            }
        }
    }

    /// The file of a job that began for nothing may have been made after the last removal: it is removed once no job writes to it.
    pub(super) fn left_half(&mut self, content: Uuid) {
        self.present.get_or_insert_default().insert(partial_name(content));
    }

    /// Has PID 1 drop the unit of an ended job.
    pub(super) fn drop_unit(&self, id: Uuid, turn: &mut Turn<'_>) {
        let remove = self.means.fetching.remove(unit_of(id));
        turn.start(format!("remove the job of {id}"), async move { Dropped(id, remove.await) });
    }

    fn reported(&mut self, job: Job, reports: &Rc<dyn Reports>, report: Option<&Report>, turn: &mut Turn<'_>) {
        let Some(content) = self.current(job) else { return };
        match report {
            Some(report @ Report::Progress { .. }) => {
                content.progress(report);
                listen(job, reports.clone(), turn);
            }
            Some(Report::Done(Outcome::Oci { manifest_sha256, size_bytes, config })) => {
                let kept = KeptContent {
                    asked: content.asked.clone(),
                    sha256: manifest_sha256.clone(),
                    size_bytes: *size_bytes,
                    image: serde_json::to_value(config).ok(),
                };
                let keep = self.means.images.keep(job.0, kept.sha256.clone());
                turn.start(format!("keep image {}", kept.sha256), async move {
                    let result = keep.await.map_err(|e| format!("the image cannot be kept: {e}"));
                    Named(job, kept, result)
                });
            }
            Some(Report::Done(other)) => {
                let text = format!("expected a container image from the job, found {other:?}");
                self.failed(job, FailureClass::Local, &text, turn);
            }
            Some(Report::Failed { class, text }) => self.failed(job, *class, text, turn),
            None => {
                let words = content.words.take().unwrap_or_else(|| "it left no reason".into());
                let text = format!("the download job ended without a result: {words}");
                self.failed(job, FailureClass::Local, &text, turn);
            }
        }
    }

    fn named(&mut self, job: Job, kept: &KeptContent, result: &Result<(), String>, turn: &mut Turn<'_>) {
        if let (Ok(()), Some(present)) = (result, &mut self.present) {
            present.remove(&partial_name(job.0));
            present.insert(name_of(&kept.sha256));
        }
        match (result, self.current(job)) {
            (Ok(()), Some(content)) => {
                content.complete(kept);
                turn.say("info", format!("content {}: complete, sha256 {}", content.status.name, kept.sha256));
                self.kept.contents.insert(job.0, kept.clone());
                self.drop_unit(job.0, turn);
            }
            (Err(text), Some(_)) => self.failed(job, FailureClass::Local, text, turn),
            (_, None) => {}
        }
    }

    fn failed(&mut self, job: Job, class: FailureClass, text: &str, turn: &mut Turn<'_>) {
        let longest = self.taken.as_deref().map_or(RETRY, retry);
        let Some(content) = self.current(job) else { return };
        content.failed(turn.now, class, text, longest);
        turn.say("error", trouble::texts(&content.status.troubles));
        self.drop_unit(job.0, turn);
    }
}

/// Asks for the next report of a job.
fn listen(job: Job, reports: Rc<dyn Reports>, turn: &mut Turn<'_>) {
    turn.start(format!("the next report on {}", job.0), async move {
        let report = reports.next().await;
        Reported(job, reports, report)
    });
}
