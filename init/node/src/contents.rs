//! Content trees: which to fetch, from where, and what is known of each. Deciding is pure; `agent` acts.

use crate::store::KeptContent;
use holdfast_fetch::job::{FailureClass, ImageConfig, Phase, Report, Server};
use holdfast_model::observed::{ContentStatus, LoadState};
use holdfast_model::storage::{ContentTree, Datastore, DatastoreKind, ImageFormat};
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
    /// Not before this monotonic time.
    pub retry_at: Duration,
    /// Failures in a row; also chooses the next datastore.
    pub failures: u32,
    /// How to run it, when complete and a container.
    pub image: Option<ImageConfig>,
}

/// A fetch that is due.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// The content.
    pub id: Uuid,
    /// Where from.
    pub server: Server,
    /// Repository and reference for containers, else path on the server.
    pub what: What,
    /// Digest asked for; empty = none.
    pub sha256: String,
    /// Cap in bytes; 0 = none.
    pub max_bytes: u64,
}

/// What a fetch asks the server for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A container image.
    Oci {
        /// Repository.
        repository: String,
        /// Tag or digest.
        reference: String,
    },
    /// A file.
    File {
        /// Path beginning with `/`.
        path: String,
    },
}

/// A text that changes whenever the content must be fetched again.
#[must_use]
pub fn asked(tree: &ContentTree) -> String {
    format!("{} {} {}", tree.path, tree.sha256, tree.generation)
}

/// The fetch for one content from the datastore that is due after so many failures.
///
/// # Errors
/// A text that names the content and what is wrong with its datastore or path.
pub fn plan(
    tree: &ContentTree,
    datastores: &[Datastore],
    roots_pem: &[String],
    failures: u32,
) -> Result<Fetch, String> {
    let known: Vec<&Datastore> =
        tree.datastores.iter().filter_map(|id| datastores.iter().find(|d| d.id == *id)).collect();
    if known.is_empty() {
        return Err(format!(
            "content {}: expected one of its datastores {:?} in the config, found none",
            tree.name, tree.datastores
        ));
    }
    let store = known[failures as usize % known.len()];
    let host = store.host.trim_end_matches('/');
    let (scheme, host) = match host.split_once("://") {
        Some(("https", h)) => ("https", h),
        Some(("http", h)) => ("http", h),
        // Registries are also written docker://host, oci://host.
        Some((_, h)) => (if store.kind == DatastoreKind::Http { "http" } else { "https" }, h),
        None => (if store.kind == DatastoreKind::Http { "http" } else { "https" }, host),
    };
    let (host, host_path) = host.split_once('/').unwrap_or((host, ""));
    if host.is_empty() {
        return Err(format!("content {}: datastore {}: expected a host, found {:?}", tree.name, store.id, store.host));
    }
    let prefix = join(host_path, &store.path);
    let full = join(&prefix, &tree.path);
    let what = if tree.format == ImageFormat::Container {
        if scheme != "https" {
            return Err(format!(
                "content {}: container images come over https only, found {:?}",
                tree.name, store.host
            ));
        }
        let (repository, reference) = split_reference(&full);
        if repository.is_empty() {
            return Err(format!("content {}: expected repository[:tag|@digest], found {:?}", tree.name, tree.path));
        }
        What::Oci { repository, reference }
    } else {
        What::File { path: format!("/{full}") }
    };
    let mut ca_pem = store.ca_pem.clone();
    ca_pem.extend_from_slice(roots_pem);
    Ok(Fetch {
        id: tree.id,
        server: Server {
            base_url: format!("{scheme}://{host}"),
            user: store.user.clone(),
            password: store.password.clone(),
            ca_pem,
        },
        what,
        sha256: tree.sha256.clone(),
        max_bytes: tree.max_size_bytes,
    })
}

fn join(a: &str, b: &str) -> String {
    let (a, b) = (a.trim_matches('/'), b.trim_start_matches('/'));
    if a.is_empty() {
        b.to_owned()
    } else if b.is_empty() {
        a.to_owned()
    } else {
        format!("{a}/{b}")
    }
}

/// Splits `repository[:tag][@digest]`; the digest wins, the tag is `latest` when neither is there.
fn split_reference(text: &str) -> (String, String) {
    let (rest, digest) = match text.split_once('@') {
        Some((r, d)) => (r, Some(d)),
        None => (text, None),
    };
    let (repository, tag) = match rest.rsplit_once(':') {
        // A colon before the last slash belongs to a host's port.
        Some((r, t)) if !t.contains('/') => (r, Some(t)),
        _ => (rest, None),
    };
    (repository.to_owned(), digest.or(tag).unwrap_or("latest").to_owned())
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
            if let Some(k) = kept.get(&tree.id).filter(|k| k.asked == text && is_there(k)) {
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
        self.status.progress = 100;
        self.status.sha256.clone_from(&kept.sha256);
        self.status.size_bytes = kept.size_bytes;
        self.status.error.clear();
        self.image = kept.image.clone().and_then(|v| serde_json::from_value(v).ok());
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
        self.status.progress = 0;
        // What the network broke may heal in seconds; what the server or content is wrong about takes the operator.
        let wait = match class {
            FailureClass::Transport | FailureClass::Local => {
                Duration::from_secs(5).saturating_mul(1 << self.failures.min(10)).min(retry)
            }
            FailureClass::Refused | FailureClass::Content => retry,
        };
        self.retry_at = now + wait;
        self.status.error = format!(
            "content {}: {text}; tried again within {} s",
            self.status.name,
            retry.as_secs().max(wait.as_secs())
        );
    }

    /// Takes a progress report in.
    pub fn progress(&mut self, report: &Report) {
        if let Report::Progress { phase, bytes, total } = report {
            self.status.state = match phase {
                Phase::Resolving => LoadState::Resolving,
                Phase::Downloading => LoadState::Downloading,
                Phase::Verifying => LoadState::Verifying,
            };
            self.status.progress =
                if *total == 0 { 0 } else { u32::try_from(bytes.saturating_mul(100) / total).unwrap_or(100).min(99) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn store(kind: DatastoreKind, host: &str, path: &str) -> Datastore {
        Datastore {
            id: Uuid::from_u128(2),
            kind,
            host: host.into(),
            path: path.into(),
            user: String::new(),
            password: String::new(),
            ca_pem: vec![],
        }
    }

    #[test]
    fn references_split_as_the_distribution_spec_writes_them() {
        for (text, repository, reference) in [
            ("nginx", "nginx", "latest"),
            ("library/nginx:1.2", "library/nginx", "1.2"),
            ("a/b@sha256:00", "a/b", "sha256:00"),
            ("a/b:tag@sha256:00", "a/b", "sha256:00"),
        ] {
            assert_eq!(split_reference(text), (repository.to_owned(), reference.to_owned()), "{text}");
        }
    }

    #[test]
    fn datastore_and_path_make_the_request() {
        let f = plan(
            &tree("web:1", ImageFormat::Container),
            &[store(DatastoreKind::ContainerRegistry, "docker://reg:5000", "demo")],
            &["R".into()],
            0,
        )
        .unwrap();
        assert_eq!(f.server.base_url, "https://reg:5000");
        assert_eq!(f.what, What::Oci { repository: "demo/web".into(), reference: "1".into() });
        assert_eq!(f.server.ca_pem, ["R"]);
        let f = plan(&tree("/os.update", ImageFormat::Raw), &[store(DatastoreKind::Http, "files", "/dir/")], &[], 0)
            .unwrap();
        assert_eq!(
            (f.server.base_url.as_str(), f.what),
            ("http://files", What::File { path: "/dir/os.update".into() })
        );
    }

    #[test]
    fn a_missing_datastore_is_named() {
        let text = plan(&tree("x", ImageFormat::Raw), &[], &[], 0).unwrap_err();
        assert!(text.contains("content web") && text.contains("datastores"), "{text}");
    }

    #[test]
    fn failures_go_through_the_datastores_in_turn() {
        let mut t = tree("x", ImageFormat::Raw);
        t.datastores.push(Uuid::from_u128(3));
        let mut other = store(DatastoreKind::Https, "second", "");
        other.id = Uuid::from_u128(3);
        let stores = [store(DatastoreKind::Https, "first", ""), other];
        assert_eq!(plan(&t, &stores, &[], 0).unwrap().server.base_url, "https://first");
        assert_eq!(plan(&t, &stores, &[], 1).unwrap().server.base_url, "https://second");
        assert_eq!(plan(&t, &stores, &[], 2).unwrap().server.base_url, "https://first");
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
