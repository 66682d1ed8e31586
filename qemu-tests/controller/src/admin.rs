//! The admin API: JSON over plain HTTP, for the command line and for scripts. No authentication: loopback only.
//!
//! | path | methods | content |
//! |---|---|---|
//! | `/api/status` | GET | addresses, numbers |
//! | `/api/root.pem` | GET | root certificate |
//! | `/api/onboarding` | GET, POST, DELETE `/HASH` | `{cert_pem, serials}` |
//! | `/api/onboarding/material` | GET | a ready-made onboarding certificate with its key |
//! | `/api/devices` | GET | summaries |
//! | `/api/devices/ID` | GET, DELETE | summary; ID is a UUID, or `-` if there is one device |
//! | `/api/devices/ID/info`, `metrics`, `flowlog`, `hardware` | GET | messages, protobuf's JSON |
//! | `/api/devices/ID/logs`, `.../apps/APP/logs` | GET | JSON lines; `?since=SEQ`, `?follow=1`; APP is a UUID or a name |
//! | `/api/devices/ID/config` | GET, PUT | the document of [`crate::config`] |
//! | `/api/devices/ID/edge-dev-config` | GET, PUT | `EdgeDevConfig`, protobuf's JSON, or binary with `application/x-proto-binary` |
//! | `/api/requests` | GET | last requests; `?since=SEQ` |
//! | `/api/faults` | GET, POST, DELETE, DELETE `/ID` | rules of [`crate::faults`] |
//! | `/api/policy` | GET, PUT | attestation policy |
//! | `/api/rotate` | POST | `{role}`: tls, signing, ecdh |
//! | `/api/images` | GET, POST | `{repository, layout}`: OCI layouts to serve |
//! | `/api/registry-auth` | PUT | what the registry asks for |

use crate::artifacts::{Artifacts, Auth};
use crate::attest::Policy;
use crate::config::{DeviceConfig, object_id};
use crate::controller::{publish, rotate};
use crate::faults::Rule;
use crate::http::{Reply, TlsSettings, read_body, reply};
use crate::json::{from_json, names, to_json};
use crate::pki::Role;
use crate::records::{LogRecord, Onboarding, Source};
use crate::state::{Shared, State, StateError};
use crate::status::DeviceStatus;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, Response};
use prost::Message;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Most bytes of one request.
const MAX_BODY: usize = 8 << 20;
/// Lines sent at once to one follower.
const FOLLOW_BATCH: usize = 500;

/// What the admin API works on.
#[derive(Clone)]
pub struct Context {
    /// State.
    pub shared: Arc<Shared>,
    /// Images and files.
    pub artifacts: Arc<Artifacts>,
    /// TLS settings of both HTTPS servers.
    pub tls: TlsSettings,
    /// Folder of the durable state.
    pub data_dir: PathBuf,
    /// Where the device API listens.
    pub device_addr: SocketAddr,
    /// Where the artifact server listens.
    pub artifact_addr: Option<SocketAddr>,
}

/// An answer that is an error: status and text.
type Refusal = (u16, String);

fn bad(cause: impl ToString) -> Refusal {
    (400, cause.to_string())
}

fn own(error: impl ToString) -> Refusal {
    (500, error.to_string())
}

fn of_state(error: StateError) -> Refusal {
    match error {
        StateError::NoDevice(_) => (404, error.to_string()),
        StateError::Store(_) | StateError::Pki(_) => own(error),
        _ => bad(error),
    }
}

/// Answers one request.
pub async fn handle(context: Context, request: Request<Incoming>) -> Response<Reply> {
    match try_handle(context, request).await {
        Ok(response) => response,
        Err((status, text)) => as_json(status, &json!({ "error": text })),
    }
}

fn as_json(status: u16, value: &Value) -> Response<Reply> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    reply(status, &[("content-type", "application/json")], text)
}

fn value(value: impl serde::Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(own)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(bad)
}

async fn try_handle(context: Context, request: Request<Incoming>) -> Result<Response<Reply>, Refusal> {
    let method = request.method().as_str().to_owned();
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    // A web page must not be able to talk to the admin API of somebody's machine.
    if request.headers().contains_key("origin") {
        return Err((403, "requests by web pages are refused".into()));
    }
    let binary =
        request.headers().get("content-type").is_some_and(|value| value.as_bytes() == b"application/x-proto-binary");
    let body = read_body(request.into_body(), MAX_BODY).await.map_err(|error| bad(format!("body: {error:?}")))?;
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let Some((&"api", parts)) = parts.split_first() else {
        return Err((404, format!("{path}: no such path")));
    };
    let shared = &context.shared;
    let ok = |value: Value| Ok(as_json(200, &value));
    match (method.as_str(), parts) {
        ("GET", ["status"]) => ok(shared.read(|state| {
            json!({
                "device_addr": context.device_addr.to_string(),
                "artifact_addr": context.artifact_addr.map(|addr| addr.to_string()),
                "data_dir": context.data_dir,
                "devices": state.devices.len(),
                "requests": state.requests.len(),
                "faults": state.faults.list().len(),
                "position": state.seq(),
            })
        })),
        ("GET", ["root.pem"]) => {
            let pem = shared.read(|state| state.pki.root.cert.pem.clone());
            Ok(reply(200, &[("content-type", "application/x-pem-file")], pem))
        }
        ("GET", ["onboarding"]) => ok(shared.read(|state| value(&state.onboarding))?),
        ("POST", ["onboarding"]) => {
            let entry: Onboarding = parse(&body)?;
            let hash = shared.update(|state| state.onboard(&entry.cert_pem, entry.serials)).map_err(of_state)?;
            ok(json!({ "hash": hash }))
        }
        ("GET", ["onboarding", "material"]) => ok(shared.read(|state| {
            let identity = &state.pki.onboarding;
            json!({ "cert_pem": identity.cert.pem, "key_pem": identity.key_pem })
        })),
        ("DELETE", ["onboarding", hash]) => {
            let known = shared.update(|state| state.forget_onboarding(hash)).map_err(of_state)?;
            if known { ok(json!({})) } else { Err((404, format!("onboarding certificate {hash}: not known"))) }
        }
        ("GET", ["devices"]) => {
            let all: Vec<DeviceStatus> = shared.read(|state| state.devices.values().map(DeviceStatus::of).collect());
            ok(value(all)?)
        }
        (_, ["devices", id, rest @ ..]) => {
            let uuid = shared.read(|state| device_id(state, id))?;
            device(&context, uuid, method.as_str(), rest, &query, &body, binary)
        }
        ("GET", ["requests"]) => {
            let since = number(&query, "since");
            let found: Vec<_> = shared.read(|state| state.requests.iter().filter(|r| r.seq > since).cloned().collect());
            ok(value(found)?)
        }
        ("GET", ["faults"]) => ok(shared.read(|state| value(state.faults.list()))?),
        ("POST", ["faults"]) => {
            let rule: Rule = parse(&body)?;
            let id = shared.update(|state| state.faults.add(rule)).map_err(bad)?;
            ok(json!({ "id": id }))
        }
        ("DELETE", ["faults"]) => ok(json!({ "removed": shared.update(|state| state.faults.remove(None)) })),
        ("DELETE", ["faults", id]) => {
            let id = id.parse().map_err(bad)?;
            match shared.update(|state| state.faults.remove(Some(id))) {
                0 => Err((404, format!("fault rule {id}: not known"))),
                removed => ok(json!({ "removed": removed })),
            }
        }
        ("GET", ["policy"]) => ok(shared.read(|state| value(&state.policy))?),
        ("PUT", ["policy"]) => {
            let policy: Policy = parse(&body)?;
            shared.update(|state| state.set_policy(policy)).map_err(of_state)?;
            ok(json!({}))
        }
        ("POST", ["rotate"]) => {
            #[derive(serde::Deserialize)]
            struct Rotation {
                role: Role,
            }
            let Rotation { role } = parse(&body)?;
            rotate(shared, &context.tls, role).map_err(own)?;
            ok(json!({}))
        }
        ("GET", ["images"]) => ok(value(context.artifacts.images())?),
        ("POST", ["images"]) => {
            #[derive(serde::Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Image {
                repository: String,
                layout: PathBuf,
            }
            let image: Image = parse(&body)?;
            if !image.layout.join("index.json").is_file() {
                return Err(bad(format!("{}: no OCI layout (index.json) there", image.layout.display())));
            }
            publish(&context.artifacts, &context.data_dir, &image.repository, &image.layout).map_err(own)?;
            ok(json!({}))
        }
        ("PUT", ["registry-auth"]) => {
            let auth: Auth = parse(&body)?;
            context.artifacts.set_auth(auth);
            ok(json!({}))
        }
        _ => Err((404, format!("{method} {path}: no such path or method"))),
    }
}

/// A device by UUID, or the only one as `-`.
fn device_id(state: &State, id: &str) -> Result<Uuid, Refusal> {
    if id == "-" {
        let mut all = state.devices.keys();
        return match (all.next(), all.next()) {
            (Some(only), None) => Ok(*only),
            (None, _) => Err((404, "no device has registered yet".into())),
            _ => Err(bad("there are several devices: name one by its UUID")),
        };
    }
    let uuid = Uuid::try_parse(id).map_err(|_| bad(format!("device {id:?}: expected a UUID or -")))?;
    state.device(uuid).map(|_| uuid).map_err(of_state)
}

/// A number in a query such as `since=5&follow=1`; 0 if it is not there.
fn number(query: &str, name: &str) -> u64 {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

fn device(
    context: &Context,
    uuid: Uuid,
    method: &str,
    rest: &[&str],
    query: &str,
    body: &[u8],
    binary: bool,
) -> Result<Response<Reply>, Refusal> {
    let shared = &context.shared;
    let ok = |value: Value| Ok(as_json(200, &value));
    let read = |look: &dyn Fn(&crate::state::Device) -> Result<Value, Refusal>| {
        shared.read(|state| look(state.device(uuid).map_err(of_state)?))
    };
    match (method, rest) {
        ("GET", []) => ok(read(&|device| value(DeviceStatus::of(device)))?),
        ("DELETE", []) => {
            shared.update(|state| state.remove_device(uuid)).map_err(of_state)?;
            ok(json!({}))
        }
        ("GET", ["info"]) => ok(read(&|device| {
            let all = device.info.values().map(|info| to_json(names::INFO, &info.message.encode_to_vec()));
            all.collect::<Result<Value, _>>().map_err(own)
        })?),
        ("GET", ["metrics"]) => ok(read(&|device| {
            let all = device.metrics.iter().map(|(_, message)| to_json(names::METRICS, &message.encode_to_vec()));
            all.collect::<Result<Value, _>>().map_err(own)
        })?),
        ("GET", ["flowlog"]) => ok(read(&|device| {
            device.flowlog.as_ref().map_or(Ok(Value::Null), |bytes| to_json(names::FLOWLOG, bytes).map_err(own))
        })?),
        ("GET", ["hardware"]) => ok(read(&|device| {
            device.hardware.as_ref().map_or(Ok(Value::Null), |bytes| to_json(names::HARDWARE, bytes).map_err(own))
        })?),
        ("GET", ["config"]) => ok(read(&|device| value(&device.wanted))?),
        ("PUT", ["config"]) => {
            let document: DeviceConfig = parse(body)?;
            shared.update(|state| state.set_config(uuid, Source::Document(Box::new(document)))).map_err(of_state)?;
            ok(json!({}))
        }
        ("GET", ["edge-dev-config"]) => ok(read(&|device| match &device.served {
            Ok(served) => to_json(names::CONFIG, &served.bytes).map_err(own),
            Err(reason) => Err((404, reason.clone())),
        })?),
        ("PUT", ["edge-dev-config"]) => {
            let bytes = if binary {
                body.to_vec()
            } else {
                from_json(names::CONFIG, std::str::from_utf8(body).map_err(bad)?).map_err(bad)?
            };
            shared.update(|state| state.set_config(uuid, Source::Raw(hex::encode(bytes)))).map_err(of_state)?;
            ok(json!({}))
        }
        ("GET", ["logs"]) => Ok(logs(context, uuid, None, query)),
        ("GET", ["apps", app, "logs"]) => {
            let app = Uuid::try_parse(app).unwrap_or_else(|_| object_id(uuid, "app", app));
            Ok(logs(context, uuid, Some(app), query))
        }
        _ => Err((404, format!("{method} {}: no such path or method", rest.join("/")))),
    }
}

fn logs_since(state: &State, uuid: Uuid, app: Option<Uuid>, since: u64) -> Vec<LogRecord> {
    let Ok(device) = state.device(uuid) else {
        return Vec::new();
    };
    let all: Option<&VecDeque<LogRecord>> = match app {
        None => Some(&device.logs),
        Some(app) => device.app_logs.get(&app),
    };
    all.into_iter().flatten().filter(|record| record.seq > since).cloned().collect()
}

fn log_text(records: &[LogRecord]) -> Bytes {
    let mut text = Vec::new();
    for record in records {
        if serde_json::to_writer(&mut text, record).is_ok() {
            text.push(b'\n');
        }
    }
    text.into()
}

fn logs(context: &Context, uuid: Uuid, app: Option<Uuid>, query: &str) -> Response<Reply> {
    let mut since = number(query, "since");
    let shared = context.shared.clone();
    if number(query, "follow") == 0 {
        let records = shared.read(|state| logs_since(state, uuid, app, since));
        return reply(200, &[("content-type", "application/x-ndjson")], log_text(&records));
    }
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut changed = shared.subscribe();
        loop {
            let records = shared.read(|state| logs_since(state, uuid, app, since));
            for batch in records.chunks(FOLLOW_BATCH) {
                since = batch.last().map_or(since, |record| record.seq);
                if sender.send(log_text(batch)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                _ = sender.closed() => return,
                more = changed.changed() => if more.is_err() { return },
            }
        }
    });
    let mut response = reply(200, &[("content-type", "application/x-ndjson")], "");
    *response.body_mut() = Reply::Stream(receiver);
    response
}
