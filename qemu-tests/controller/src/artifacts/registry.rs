//! The read-only half of the OCI distribution protocol (version 1.1) over OCI image layouts.

use super::{Content, Found, open};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Annotation that names a manifest of a layout.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    fn tag(&self) -> Option<&str> {
        let name = self.annotations.get(REF_NAME)?;
        // Tools write either the tag alone or the whole reference.
        Some(name.rsplit_once(':').map_or(name.as_str(), |(_, tag)| tag))
    }
}

/// An error in the form of the protocol.
pub(super) fn error(status: u16, code: &str, message: &str) -> Found {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    Found {
        status,
        headers: vec![("content-type", "application/json".into())],
        content: Content::Text(body.to_string()),
        note: message.to_owned(),
    }
}

/// Repository in a path such as `/v2/demo/webapp/manifests/1`.
pub(super) fn repository_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    ["/manifests/", "/blobs/", "/tags/"].iter().find_map(|middle| rest.split_once(middle)).map(|(name, _)| name)
}

/// Finds what a path below `/v2` names.
pub(super) fn find(images: &BTreeMap<String, PathBuf>, path: &str, range: Option<&str>) -> Found {
    if path == "/v2" || path == "/v2/" {
        return Found {
            status: 200,
            headers: vec![
                ("content-type", "application/json".into()),
                ("docker-distribution-api-version", "registry/2.0".into()),
            ],
            content: Content::Text("{}".into()),
            note: String::new(),
        };
    }
    let Some(name) = repository_of(path) else {
        return error(404, "UNSUPPORTED", "no such path");
    };
    let Some(layout) = images.get(name) else {
        return error(404, "NAME_UNKNOWN", &format!("repository {name} is not known"));
    };
    let rest = &path["/v2/".len() + name.len()..];
    if let Some(reference) = rest.strip_prefix("/manifests/") {
        manifest(layout, reference)
    } else if let Some(digest) = rest.strip_prefix("/blobs/") {
        blob(layout, digest, range, "application/octet-stream", "BLOB_UNKNOWN")
    } else if rest == "/tags/list" {
        tags(layout, name)
    } else {
        error(404, "UNSUPPORTED", "no such path")
    }
}

fn index(layout: &Path) -> Result<Index, Found> {
    let path = layout.join("index.json");
    std::fs::read(&path)
        .map_err(|e| e.to_string())
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string()))
        .map_err(|cause| error(500, "UNKNOWN", &format!("{}: {cause}", path.display())))
}

fn manifest(layout: &Path, reference: &str) -> Found {
    let index = match index(layout) {
        Ok(index) => index,
        Err(found) => return found,
    };
    let known =
        index.manifests.iter().find(|manifest| manifest.digest == reference || manifest.tag() == Some(reference));
    let (digest, media_type) = match known {
        Some(descriptor) => (descriptor.digest.as_str(), descriptor.media_type.as_str()),
        // A manifest that an index of the layout points to is only named by its digest.
        None if reference.starts_with("sha256:") => (reference, MANIFEST),
        None => {
            return error(404, "MANIFEST_UNKNOWN", &format!("tag {reference} is not known"));
        }
    };
    let media_type = if media_type.is_empty() { MANIFEST } else { media_type };
    blob(layout, digest, None, media_type, "MANIFEST_UNKNOWN")
}

fn blob(layout: &Path, digest: &str, range: Option<&str>, media_type: &str, unknown: &str) -> Found {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return error(
            400,
            "DIGEST_INVALID",
            &format!("digest {digest:?}: expected sha256: and 64 lower-case hex digits"),
        );
    }
    let mut found = open(&layout.join("blobs/sha256").join(hex), range, media_type);
    if found.status == 404 {
        return error(404, unknown, &format!("{digest} is not known"));
    }
    found.headers.push(("docker-content-digest", digest.to_owned()));
    found
}

fn tags(layout: &Path, name: &str) -> Found {
    let index = match index(layout) {
        Ok(index) => index,
        Err(found) => return found,
    };
    let tags: Vec<&str> = index.manifests.iter().filter_map(Descriptor::tag).collect();
    Found {
        status: 200,
        headers: vec![("content-type", "application/json".into())],
        content: Content::Text(serde_json::json!({ "name": name, "tags": tags }).to_string()),
        note: String::new(),
    }
}
