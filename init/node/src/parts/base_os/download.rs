//! What is known of the download of an update. Pure.

use holdfast_model::contract::fetch::{FailureClass, Outcome, Phase, Report};
use holdfast_slots::Image;
use std::time::Duration;

/// The first wait after a failure of the network, doubled with each.
const FIRST_RETRY: Duration = Duration::from_secs(10);

/// The download of one version into the other slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Download {
    /// Number of its job; none runs when absent.
    pub job: Option<u64>,
    /// Version being fetched; empty when none was.
    pub version: String,
    /// Percent of the bytes that came.
    pub progress: u32,
    /// All came; what was written is read back.
    pub verifying: bool,
    /// Its end, not yet acted on.
    pub end: Option<Result<Image, (FailureClass, String)>>,
    /// Failures in a row.
    pub failures: u32,
    /// Not before.
    pub retry_at: Duration,
    /// Last error, shown until the next try ends.
    pub error: String,
}

impl Download {
    /// The download of `version` that begins as job `job`, after this one.
    #[must_use]
    pub fn next(&self, version: &str, job: u64) -> Self {
        let same = self.version == version;
        Self {
            job: Some(job),
            version: version.to_owned(),
            failures: if same { self.failures } else { 0 },
            error: self.error.clone(),
            ..Self::default()
        }
    }

    /// Takes a report in; returns what is worth saying at its end.
    pub fn report(&mut self, report: Option<&Report>) -> Option<String> {
        let end = match report {
            Some(Report::Progress { phase: Phase::Verifying, .. }) => {
                self.verifying = true;
                return None;
            }
            Some(Report::Progress { bytes, total, .. }) => {
                let percent = bytes.saturating_mul(100).checked_div(*total).unwrap_or(0).min(99);
                self.progress = u32::try_from(percent).unwrap_or(99);
                return None;
            }
            Some(Report::Done(Outcome::Update { version, epoch })) => {
                Ok(Image { version: version.clone(), epoch: *epoch })
            }
            Some(Report::Done(other)) => {
                Err((FailureClass::Local, format!("expected an update from the job, found {other:?}")))
            }
            Some(Report::Failed { class, text }) => Err((*class, text.clone())),
            None => Err((FailureClass::Local, "the download job ended without a result".to_owned())),
        };
        let text = match &end {
            Ok(image) => format!("base OS {}: complete in the other slot, verified", image.version),
            Err((_, text)) => format!("base OS {}: {text}", self.version),
        };
        self.job = None;
        self.end = Some(end);
        Some(text)
    }

    /// Notes that it failed; when the network may be at fault it is tried again after a while, at most `longest`.
    pub fn failed(&mut self, now: Duration, text: &str, longest: Duration) {
        self.failures += 1;
        self.error = format!("base OS {}: {text}", self.version);
        self.retry_at = now + FIRST_RETRY.saturating_mul(1 << self.failures.min(8)).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_downloads_are_tried_again_later_and_later_up_to_the_property() {
        let mut seconds = Vec::new();
        for failures in [0, 1, 2, 5, 8, 4_000_000] {
            let mut download = Download { failures, ..Download::default() };
            download.failed(Duration::ZERO, "cut", Duration::from_secs(600));
            seconds.push(download.retry_at.as_secs());
        }
        assert_eq!(seconds, [20, 40, 80, 600, 600, 600]);
    }

    #[test]
    fn an_end_without_a_result_is_a_failure_of_this_device() {
        let mut download = Download { job: Some(1), version: "2".into(), ..Download::default() };
        assert_eq!(download.report(None).unwrap(), "base OS 2: the download job ended without a result");
        assert!(matches!(download.end, Some(Err((FailureClass::Local, _)))) && download.job.is_none());
    }

    #[test]
    fn another_version_begins_without_the_failures_of_the_one_before() {
        let before = Download { version: "2".into(), failures: 3, error: "cut".into(), ..Download::default() };
        assert_eq!((before.next("2", 7).failures, before.next("3", 8).failures), (3, 0));
        assert_eq!(before.next("2", 7).error, "cut", "shown until this try ends");
    }
}
