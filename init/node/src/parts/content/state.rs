//! Content trees: which to fetch, and what is known of each. Pure.

use super::kept::KeptContent;
use holdfast_model::contract::fetch::{FailureClass, ImageConfig, Phase, Report};
use holdfast_model::observed::{ContentStatus, LoadState, Tens};
use holdfast_model::storage::ContentTree;
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// What is known of one content tree.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// What was asked for last: see [`asked`].
    pub asked: String,
    /// State, progress, digest, size and error as reported.
    pub status: ContentStatus,
    /// A job runs.
    pub busy: bool,
    /// Its number.
    pub job: u64,
    /// The last words of its job, when it died without a report.
    pub words: Option<String>,
    /// Not before this monotonic time.
    pub retry_at: Duration,
    /// Failures in a row; also chooses the next datastore.
    pub failures: u32,
    /// How to run it, when complete and a container.
    pub image: Option<ImageConfig>,
}

/// A text that changes whenever the content must be fetched again.
#[must_use]
pub fn asked(tree: &ContentTree) -> String {
    format!("{} {} {}", tree.path, tree.sha256, tree.generation)
}

/// The same, short enough for the tag of a job's unit.
#[must_use]
pub fn tag(asked: &str) -> String {
    hex::encode(Sha256::digest(asked.as_bytes()))
}

/// All content trees.
#[derive(Debug, Default)]
pub struct Contents {
    /// By id.
    pub by_id: BTreeMap<Uuid, Content>,
}

impl Contents {
    /// Takes the wanted list in: forgets what is not wanted, resets what changed, recalls what is kept. Returns the contents whose
    /// jobs, if they have any, work for nothing now.
    pub fn want(
        &mut self,
        trees: &[ContentTree],
        kept: &BTreeMap<Uuid, KeptContent>,
        is_there: &dyn Fn(&KeptContent) -> bool,
    ) -> Vec<Uuid> {
        let mut stale: Vec<Uuid> =
            self.by_id.keys().filter(|id| !trees.iter().any(|t| t.id == **id)).copied().collect();
        for id in &stale {
            self.by_id.remove(id);
        }
        for tree in trees {
            let text = asked(tree);
            let entry = self.by_id.entry(tree.id).or_default();
            if entry.asked == text {
                entry.status.name.clone_from(&tree.name);
                continue;
            }
            if entry.busy {
                stale.push(tree.id);
            }
            *entry = Content {
                asked: text.clone(),
                status: ContentStatus { id: tree.id, name: tree.name.clone(), ..ContentStatus::default() },
                ..Content::default()
            };
            // One whose configuration this version cannot read is fetched again.
            let readable = |k: &KeptContent| k.image.is_none() || k.configuration().is_some();
            if let Some(k) = kept.get(&tree.id).filter(|k| k.asked == text && is_there(k) && readable(k)) {
                entry.complete(k);
            }
        }
        stale
    }
}

impl Content {
    /// Marks it complete.
    pub fn complete(&mut self, kept: &KeptContent) {
        self.busy = false;
        self.failures = 0;
        self.status.state = LoadState::Loaded;
        self.status.progress = Tens::down(100);
        self.status.sha256.clone_from(&kept.sha256);
        self.status.size_bytes = kept.size_bytes;
        self.status.troubles.clear();
        self.image = kept.configuration();
    }

    /// Notes that a job began.
    pub fn begin(&mut self, job: u64) {
        self.busy = true;
        self.job = job;
        self.words = None;
        self.status.state = LoadState::Resolving;
    }

    /// True when a fetch should start now.
    #[must_use]
    pub fn due(&self, now: Duration) -> bool {
        !self.busy && self.status.state != LoadState::Loaded && now >= self.retry_at
    }

    /// Notes a failure: the text stays visible until the next try ends.
    pub fn failed(&mut self, now: Duration, class: FailureClass, text: &str, retry: Duration) {
        self.busy = false;
        self.failures += 1;
        self.status.state = LoadState::Error;
        self.status.progress = Tens::default();
        // What the network broke may heal in seconds; what the server or content is wrong about takes the operator.
        let wait = match class {
            FailureClass::Transport | FailureClass::Local => {
                Duration::from_secs(5).saturating_mul(1 << self.failures.min(10)).min(retry)
            }
            FailureClass::Refused | FailureClass::Content => retry,
        };
        self.retry_at = now + wait;
        let again = format!("tried again within {} s", retry.as_secs().max(wait.as_secs()));
        let on = Object::new(ObjectKind::Content, self.status.id, &self.status.name);
        let trouble = Trouble::error(on, format!("content {}: {text}; {again}", self.status.name));
        self.status.troubles = vec![trouble.retried(again)];
    }

    /// Takes a progress report in.
    pub fn progress(&mut self, report: &Report) {
        if let Report::Progress { phase, bytes, total } = report {
            self.status.state = match phase {
                Phase::Resolving => LoadState::Resolving,
                Phase::Downloading => LoadState::Downloading,
                Phase::Verifying => LoadState::Verifying,
            };
            let percent = bytes.saturating_mul(100).checked_div(*total).unwrap_or(0).min(99);
            self.status.progress = Tens::down(u32::try_from(percent).unwrap_or(99));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::storage::ImageFormat;

    fn tree(path: &str, format: ImageFormat) -> ContentTree {
        ContentTree {
            id: Uuid::from_u128(1),
            name: "web".into(),
            datastores: vec![Uuid::from_u128(2)],
            path: path.into(),
            format,
            sha256: String::new(),
            max_size_bytes: 0,
            generation: 0,
        }
    }

    #[test]
    fn wrong_content_waits_the_full_time_and_a_broken_line_a_short_one() {
        let retry = Duration::from_secs(600);
        let mut c = Content::default();
        c.failed(Duration::ZERO, FailureClass::Transport, "cut", retry);
        assert!(c.due(Duration::from_secs(10)) && !c.due(Duration::from_secs(9)));
        let mut c = Content::default();
        c.failed(Duration::ZERO, FailureClass::Content, "digest", retry);
        assert!(!c.due(Duration::from_secs(599)) && c.due(retry));
    }

    #[test]
    fn what_is_kept_is_recalled_and_what_changed_is_fetched_again() {
        let t = tree("web:1", ImageFormat::Container);
        let kept =
            BTreeMap::from([(t.id, KeptContent { asked: asked(&t), sha256: "ab".into(), size_bytes: 5, image: None })]);
        let mut contents = Contents::default();
        contents.want(std::slice::from_ref(&t), &kept, &|_| true);
        assert_eq!(contents.by_id[&t.id].status.state, LoadState::Loaded);
        let mut changed = t.clone();
        changed.generation = 1;
        contents.want(&[changed], &kept, &|_| true);
        assert!(contents.by_id[&t.id].due(Duration::ZERO));
        assert_eq!(contents.want(&[], &kept, &|_| true), [t.id]);
    }

    #[test]
    fn a_job_for_a_content_that_changed_meanwhile_is_stale() {
        let t = tree("web:1", ImageFormat::Container);
        let mut contents = Contents::default();
        assert!(contents.want(std::slice::from_ref(&t), &BTreeMap::new(), &|_| true).is_empty());
        contents.by_id.get_mut(&t.id).unwrap().busy = true;
        assert!(
            contents.want(std::slice::from_ref(&t), &BTreeMap::new(), &|_| true).is_empty(),
            "the same is no change"
        );
        let changed = tree("web:2", ImageFormat::Container);
        assert_eq!(contents.want(&[changed], &BTreeMap::new(), &|_| true), [t.id]);
        assert!(!contents.by_id[&t.id].busy);
    }
}
