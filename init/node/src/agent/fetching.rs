//! Contents: jobs started for what is missing, their ends, files that nothing wants removed.

use super::Agent;
use crate::boot::Paths;
use crate::fetching::jobs::{self, JobEvent};
use crate::fetching::source::{Fetch, What, plan as plan_fetch};
use crate::machine;
use crate::parts::content::kept::KeptContent;
use anyhow::{Context, Result};
use holdfast_model::contract::fetch::{FailureClass, Outcome, Report, Task};
use holdfast_model::storage::ImageFormat;
use holdfast_model::trouble;
use holdfast_supervise::UnitName;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

/// Begin of the names of download units.
pub(super) const FETCH_UNITS: &str = "fetch-";

impl Agent {
    pub(super) fn job_event(&mut self, event: JobEvent) {
        if event.key == crate::update::JOB {
            let texts = self.update.job(event.report);
            for text in texts {
                self.say("info", &text);
            }
            return;
        }
        let Some((id, number)) = parse_key(&event.key) else {
            return;
        };
        let now = machine::now();
        let retry = Duration::from_secs(self.desired.properties.download_retry_seconds.into());
        let partial = self.partial(id);
        let current = self.contents.by_id.get_mut(&id);
        let another_runs = current.as_ref().is_some_and(|c| c.busy && c.job != number);
        // A job for what is not wanted any more, or was changed meanwhile: its outcome is not that of the content now.
        let Some(content) = current.filter(|c| c.busy && c.job == number) else {
            if !another_runs && !matches!(event.report, Some(Report::Progress { .. })) {
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
        let text = trouble::texts(&content.status.troubles);
        self.say("error", &text);
    }

    pub(super) fn turn_contents(&mut self) {
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
                    content.job = self.fetches;
                    content.status.state = holdfast_model::observed::LoadState::Resolving;
                }
                Err((class, text)) => {
                    content.failed(now, class, &text, retry);
                    let text = trouble::texts(&content.status.troubles);
                    self.say_once("error", &text);
                }
            }
        }
    }

    pub(super) fn start_fetch(&mut self, fetch: &Fetch) -> Result<()> {
        self.fetches += 1;
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
            &key(fetch.id, self.fetches),
            &fetch_unit(fetch.id)?,
            fetch.server.clone(),
            task,
            &[output.as_fd(), spool.as_fd()],
            &self.jobs,
        )
    }

    pub(super) fn partial(&self, id: Uuid) -> PathBuf {
        self.paths.data("images").join(format!(".partial-{id}"))
    }

    /// Halves of downloads that a former agent left: their jobs are stopped, their files removed.
    pub(super) fn remove_partials(&mut self) {
        let units = self.supervisor.borrow_mut().list().unwrap_or_default();
        for unit in units.iter().filter(|u| u.name.as_str().starts_with(FETCH_UNITS)) {
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

    /// Removes kept contents and image files that nothing wants; a running VM keeps its open file.
    pub(super) fn collect_images(&mut self) {
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
}

/// Key of a job's reports: the content and the job's number.
fn key(content: Uuid, number: u64) -> String {
    format!("{content}#{number}")
}

fn parse_key(key: &str) -> Option<(Uuid, u64)> {
    let (content, number) = key.split_once('#')?;
    Some((content.parse().ok()?, number.parse().ok()?))
}

/// Unit of a content's fetch job.
pub(super) fn fetch_unit(content: Uuid) -> Result<UnitName> {
    Ok(UnitName::new(format!("{FETCH_UNITS}{content}"))?)
}

/// File of a flattened image.
pub(super) fn image_file(paths: &Paths, sha256: &str) -> PathBuf {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_lead_back_to_their_content_and_job() {
        let id = Uuid::from_u128(5);
        assert_eq!(parse_key(&key(id, 7)), Some((id, 7)));
        assert_eq!(parse_key("base-os"), None);
    }
}
