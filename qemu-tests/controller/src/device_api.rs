//! The device API over HTTPS: reads a request, applies fault rules, lets [`crate::endpoints`] answer, seals and records.

use crate::endpoints::{self, Answer, Quirks, Route};
use crate::envelope::{self, Sealed, Spoil};
use crate::faults::{Action, Endpoint};
use crate::http::{BodyError, Connection, Reply, read_body, reply};
use crate::records::RequestRecord;
use crate::state::{Shared, now_ms};
use hyper::body::Incoming;
use hyper::{Request, Response};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Most bytes of one request. EVE's largest are info messages and log uploads, both far below.
const MAX_BODY: usize = 4 << 20;
/// Content type of both directions.
const CONTENT_TYPE: &str = "application/x-proto-binary";

/// Answers one request of a device.
pub async fn handle(
    shared: Arc<Shared>,
    quirks: Quirks,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let header = |name: &str| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().chars().take(100).collect::<String>()
    };
    let path = request.uri().path().to_owned();
    let method = request.method().as_str().to_owned();
    let (request_id, content_type) = (header("x-request-id"), header("content-type"));
    let route = Route::parse(&path);
    let body = read_body(request.into_body(), MAX_BODY).await;
    let (bytes, body) = match body {
        Ok(body) => (body.len(), Ok(body)),
        Err(error) => (0, Err(error)),
    };

    let device = body
        .as_ref()
        .ok()
        .and_then(|body| Sealed::parse(body).ok())
        .and_then(|sealed| shared.read(|state| state.by_cert.get(&sealed.sender).copied()));
    let fault = shared.update(|state| state.faults.take(route.endpoint, device, &path));
    if let Some(Action::Delay { ms }) = fault {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let record = |status: u16, note: String| RequestRecord {
        seq: 0,
        at_ms: now_ms(),
        device,
        endpoint: route.endpoint,
        method: method.clone(),
        path: path.chars().take(300).collect(),
        request_id,
        status,
        bytes,
        note,
        fault,
    };

    let (answer, sealed) = match (fault, &body) {
        (Some(Action::Status { code }), _) => (Answer::refuse(code, "fault rule"), None),
        (Some(Action::CutBefore), _) => (Answer::refuse(0, "fault rule"), None),
        (_, Err(BodyError::TooLarge)) => (Answer::refuse(413, format!("body: more than {MAX_BODY} bytes")), None),
        (_, Err(BodyError::TooSlow)) => (Answer::refuse(408, "body: too slow"), None),
        (_, Err(BodyError::Broken)) => (Answer::refuse(400, "body: broken off"), None),
        (_, Ok(body)) => {
            if route.endpoint == Endpoint::Other {
                (Answer::refuse(404, "no such path"), None)
            } else if !route.allows(&method) {
                (Answer::refuse(405, "no such method"), None)
            } else if method == "POST" && content_type != CONTENT_TYPE {
                (Answer::refuse(415, format!("content type: expected {CONTENT_TYPE}, found {content_type:?}")), None)
            } else {
                shared.update(|state| {
                    let answer = endpoints::answer(state, quirks, route, body);
                    let sealed = seal(state, route, device, fault, &answer);
                    (answer, sealed)
                })
            }
        }
    };
    match fault {
        Some(Action::CutBefore) => connection.cut_after(0),
        Some(Action::CutAfter { bytes }) => connection.cut_after(bytes),
        _ => {}
    }
    let stored = shared.update(|state| state.add_request(record(answer.status, answer.note.clone())));
    if let Err(error) = stored {
        return reply(500, &[("x-reason", &error.to_string())], "");
    }
    let status = if answer.status == 0 { 500 } else { answer.status };
    // Answers with a body are always enveloped, so the reason of a refusal goes into a header.
    let mut headers = Vec::new();
    if sealed.is_some() {
        headers.push(("content-type", CONTENT_TYPE));
    }
    if status >= 400 && fault.is_none() {
        headers.push(("x-reason", answer.note.as_str()));
    }
    reply(status, &headers, sealed.unwrap_or_default())
}

/// The body on the wire: sealed, and spoilt if a rule says so.
fn seal(
    state: &mut crate::state::State,
    route: Route,
    device: Option<Uuid>,
    fault: Option<Action>,
    answer: &Answer,
) -> Option<Vec<u8>> {
    let payload = answer.payload.clone()?;
    let spoil = match fault {
        Some(Action::BadSignature) => Spoil::Signature,
        Some(Action::WrongSenderHash) => Spoil::SenderHash,
        _ => Spoil::Not,
    };
    let sealed = envelope::seal(payload, &state.pki.signing, spoil);
    let key = (device, route.endpoint);
    if fault == Some(Action::Replay)
        && let Some(previous) = state.previous.get(&key)
    {
        return Some(previous.clone());
    }
    if spoil == Spoil::Not {
        state.previous.insert(key, sealed.clone());
    }
    Some(sealed)
}
