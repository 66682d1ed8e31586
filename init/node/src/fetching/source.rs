//! Where a content comes from: its datastore and path as a request to a server. Pure.

use holdfast_model::contract::fetch::Server;
use holdfast_model::storage::{ContentTree, Datastore, DatastoreKind, ImageFormat};
use uuid::Uuid;

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
}
