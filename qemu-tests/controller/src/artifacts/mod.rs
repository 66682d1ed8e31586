//! The artifact server: HTTPS under the controller's root, for files (update payloads, disk images) below `/files/` and
//! for OCI images by the registry protocol below `/v2/` ([`registry`]). Read only; every answer can be spoilt by a
//! fault rule.

pub mod registry;

use crate::faults::{Action, Endpoint};
use crate::http::{Connection, FileFault, FileReply, Reply, reply};
use crate::records::RequestRecord;
use crate::state::{Shared, now_ms};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Life of a bearer token.
const TOKEN_LIFETIME: Duration = Duration::from_secs(300);
/// Most tokens at a time.
const MAX_TOKENS: usize = 1000;

/// What the registry asks of its clients.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Auth {
    /// Nothing.
    #[default]
    None,
    /// User and password with every request.
    Basic {
        /// User.
        user: String,
        /// Password.
        password: String,
    },
    /// A token from the token service, which asks for user and password; an empty user means that anybody gets one.
    Bearer {
        /// User.
        user: String,
        /// Password.
        password: String,
    },
}

/// What is served.
#[derive(Debug)]
pub struct Artifacts {
    files: Option<PathBuf>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    images: BTreeMap<String, PathBuf>,
    auth: Auth,
    tokens: HashMap<String, Instant>,
}

impl Artifacts {
    /// Serves the files below `files`, if given, and no images yet.
    pub fn new(files: Option<PathBuf>) -> Self {
        Self { files, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the OCI layout at `layout` as repository `name`.
    pub fn publish(&self, name: &str, layout: PathBuf) {
        self.lock().images.insert(name.to_owned(), layout);
    }

    /// Repositories with their layouts.
    pub fn images(&self) -> BTreeMap<String, PathBuf> {
        self.lock().images.clone()
    }

    /// Sets what the registry asks of its clients.
    pub fn set_auth(&self, auth: Auth) {
        let mut inner = self.lock();
        inner.auth = auth;
        inner.tokens.clear();
    }
}

/// An answer before faults: headers and perhaps a file.
pub(crate) struct Found {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) content: Content,
    pub(crate) note: String,
}

pub(crate) enum Content {
    Text(String),
    File { file: File, offset: u64, length: u64 },
}

impl Found {
    pub(crate) fn text(status: u16, note: impl ToString) -> Self {
        let note = note.to_string();
        Self { status, headers: Vec::new(), content: Content::Text(note.clone()), note }
    }
}

/// Answers one request.
pub async fn handle(
    shared: Arc<Shared>,
    artifacts: Arc<Artifacts>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let path = request.uri().path().to_owned();
    let endpoint = endpoint_of(&path);
    let fault = shared.update(|state| state.faults.take(endpoint, None, &path));
    if let Some(Action::Delay { ms }) = fault {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let found = match fault {
        Some(Action::Status { code }) => Found::text(code, "fault rule"),
        _ if !matches!(*request.method(), Method::GET | Method::HEAD) => Found::text(405, "only GET and HEAD"),
        _ => find(&artifacts, endpoint, &path, &request),
    };
    match fault {
        Some(Action::CutBefore) => connection.cut_after(0),
        Some(Action::CutAfter { bytes }) => connection.cut_after(bytes),
        _ => {}
    }
    let record = RequestRecord {
        seq: 0,
        at_ms: now_ms(),
        device: None,
        endpoint,
        method: request.method().as_str().to_owned(),
        path: path.chars().take(300).collect(),
        request_id: String::new(),
        status: if fault == Some(Action::CutBefore) { 0 } else { found.status },
        bytes: 0,
        note: found.note.clone(),
        fault,
    };
    if let Err(error) = shared.update(|state| state.add_request(record)) {
        return reply(500, &[], error.to_string());
    }
    finish(found, fault, request.method() == Method::HEAD)
}

fn endpoint_of(path: &str) -> Endpoint {
    if path.starts_with("/files/") {
        Endpoint::File
    } else if path == "/token" {
        Endpoint::Token
    } else if path.starts_with("/v2/") && path.contains("/manifests/") {
        Endpoint::Manifest
    } else if path.starts_with("/v2/") && path.contains("/blobs/") {
        Endpoint::Blob
    } else {
        Endpoint::Other
    }
}

fn find(artifacts: &Artifacts, endpoint: Endpoint, path: &str, request: &Request<Incoming>) -> Found {
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
    let authorization = header("authorization");
    match endpoint {
        Endpoint::File => file(artifacts, path, header("range")),
        Endpoint::Token => token(artifacts, authorization),
        _ if path == "/v2" || path.starts_with("/v2/") => {
            if let Some(refusal) = unauthorized(artifacts, authorization, header("host").unwrap_or("localhost"), path) {
                return refusal;
            }
            registry::find(&artifacts.images(), path, header("range"))
        }
        _ => Found::text(404, "no such path; files are below /files/, images below /v2/"),
    }
}

/// The file that a URL path names below `root`, if the path is tame.
fn below(root: &Path, relative: &str) -> Option<PathBuf> {
    let relative = Path::new(relative);
    let tame =
        !relative.as_os_str().is_empty() && relative.components().all(|part| matches!(part, Component::Normal(_)));
    tame.then(|| root.join(relative))
}

/// Decodes %XX; `None` if it is malformed or no UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

fn file(artifacts: &Artifacts, path: &str, range: Option<&str>) -> Found {
    let relative = percent_decode(path.trim_start_matches("/files/"));
    let full = match (&artifacts.files, relative) {
        (Some(root), Some(relative)) => below(root, &relative),
        _ => None,
    };
    let Some(full) = full else {
        return Found::text(404, format!("{path}: no such file"));
    };
    open(&full, range, "application/octet-stream")
}

/// A file, or the part of it that `range` asks for (RFC 9110 §14, a single range).
pub(crate) fn open(path: &Path, range: Option<&str>, content_type: &str) -> Found {
    let opened = File::open(path).and_then(|file| file.metadata().map(|data| (file, data)));
    let (file, metadata) = match opened {
        Ok((file, metadata)) if metadata.is_file() => (file, metadata),
        _ => return Found::text(404, format!("{}: no such file", path.display())),
    };
    let size = metadata.len();
    let modified = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_nanos());
    let mut headers = vec![
        ("content-type", content_type.to_owned()),
        ("accept-ranges", "bytes".to_owned()),
        ("etag", format!("\"{size:x}-{modified:x}\"")),
    ];
    let (status, offset, length) = match range.map(|range| parse_range(range, size)) {
        None | Some(Range::Ignore) => (200, 0, size),
        Some(Range::Part { offset, length }) => {
            headers.push(("content-range", format!("bytes {offset}-{}/{size}", offset + length - 1)));
            (206, offset, length)
        }
        Some(Range::Unsatisfiable) => {
            let mut found = Found::text(416, "range outside of the file");
            found.headers.push(("content-range", format!("bytes */{size}")));
            return found;
        }
    };
    let note = format!("{length} bytes from {offset} of {size}");
    Found { status, headers, content: Content::File { file, offset, length }, note }
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Ignore,
    Part { offset: u64, length: u64 },
    Unsatisfiable,
}

fn parse_range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else {
        return Range::Ignore;
    };
    let part = |offset: u64, end: u64| {
        if offset >= size || end < offset {
            Range::Unsatisfiable
        } else {
            Range::Part { offset, length: end.min(size - 1) - offset + 1 }
        }
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => part(first, last),
        (Ok(first), Err(_)) if last.is_empty() => part(first, u64::MAX),
        (Err(_), Ok(0)) if first.is_empty() => Range::Unsatisfiable,
        (Err(_), Ok(count)) if first.is_empty() => part(size.saturating_sub(count), u64::MAX),
        _ => Range::Ignore,
    }
}

fn basic(authorization: Option<&str>, user: &str, password: &str) -> bool {
    authorization
        .and_then(|value| value.strip_prefix("Basic "))
        .and_then(|value| STANDARD.decode(value.trim()).ok())
        .is_some_and(|value| value == format!("{user}:{password}").into_bytes())
}

fn unauthorized(artifacts: &Artifacts, authorization: Option<&str>, host: &str, path: &str) -> Option<Found> {
    let mut inner = artifacts.lock();
    inner.tokens.retain(|_, since| since.elapsed() < TOKEN_LIFETIME);
    let challenge = match &inner.auth {
        Auth::None => return None,
        Auth::Basic { user, password } => {
            if basic(authorization, user, password) {
                return None;
            }
            "Basic realm=\"holdfast\"".to_owned()
        }
        Auth::Bearer { .. } => {
            let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
            if token.is_some_and(|token| inner.tokens.contains_key(token)) {
                return None;
            }
            let name = registry::repository_of(path).unwrap_or_default();
            format!("Bearer realm=\"https://{host}/token\",service=\"holdfast\",scope=\"repository:{name}:pull\"")
        }
    };
    let mut found = registry::error(401, "UNAUTHORIZED", "authentication is needed");
    found.headers.push(("www-authenticate", challenge));
    Some(found)
}

fn token(artifacts: &Artifacts, authorization: Option<&str>) -> Found {
    let mut inner = artifacts.lock();
    let allowed = match &inner.auth {
        Auth::Bearer { user, password } => user.is_empty() || basic(authorization, user, password),
        _ => false,
    };
    if !allowed {
        return registry::error(401, "UNAUTHORIZED", "wrong user or password");
    }
    if inner.tokens.len() >= MAX_TOKENS {
        return registry::error(429, "TOOMANYREQUESTS", "too many tokens");
    }
    let token = uuid::Uuid::new_v4().simple().to_string();
    inner.tokens.insert(token.clone(), Instant::now());
    let text = serde_json::json!({
        "token": token, "access_token": token, "expires_in": TOKEN_LIFETIME.as_secs(),
    });
    Found {
        status: 200,
        headers: vec![("content-type", "application/json".into())],
        content: Content::Text(text.to_string()),
        note: "token".into(),
    }
}

fn finish(found: Found, fault: Option<Action>, head: bool) -> Response<Reply> {
    let mut headers: Vec<(&str, &str)> = found.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let spoil = match fault {
        Some(Action::Truncate { bytes }) => FileFault { truncate: Some(bytes), ..Default::default() },
        Some(Action::Corrupt { offset }) => FileFault { corrupt: Some(offset), ..Default::default() },
        Some(Action::Throttle { bytes_per_second }) => {
            FileFault { bytes_per_second: Some(bytes_per_second), ..Default::default() }
        }
        _ => FileFault::default(),
    };
    match found.content {
        Content::Text(text) => reply(found.status, &headers, if head { String::new() } else { text }),
        Content::File { file, offset, length } => {
            let length_text = length.to_string();
            headers.push(("content-length", &length_text));
            let mut response = reply(found.status, &headers, "");
            if head {
                return response;
            }
            match FileReply::new(file, offset, length, spoil) {
                Ok(body) => *response.body_mut() = Reply::File(body),
                Err(_) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_the_rfc() {
        let part = |offset, length| Range::Part { offset, length };
        let cases = [
            ("bytes=0-9", part(0, 10)),
            ("bytes=90-", part(90, 10)),
            ("bytes=90-1000", part(90, 10)),
            ("bytes=-5", part(95, 5)),
            ("bytes=-500", part(0, 100)),
            ("bytes=100-", Range::Unsatisfiable),
            ("bytes=9-3", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("lines=1-2", Range::Ignore),
            ("bytes=a-b", Range::Ignore),
        ];
        for (text, range) in cases {
            assert_eq!(parse_range(text, 100), range, "{text}");
        }
        assert_eq!(parse_range("bytes=0-0", 0), Range::Unsatisfiable);
    }

    #[test]
    fn paths_that_climb_are_not_served() {
        let root = Path::new("/srv");
        for bad in ["", "..", "a/../../b", "/etc/passwd"] {
            assert_eq!(below(root, bad), None, "{bad}");
        }
        assert_eq!(below(root, "a/b.img"), Some("/srv/a/b.img".into()));
        assert_eq!(percent_decode("a%20b"), Some("a b".into()));
        assert_eq!(percent_decode("a%2"), None);
    }
}
