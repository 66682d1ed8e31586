//! One request over the uplinks, and its counters.

use super::Client;
use crate::failure::Failure;
use crate::timing;
use crate::transport::{self, Call, Deadlines, Reply, TransportError};
use bytes::Bytes;
use holdfast_api::metrics::PathTraffic;
use holdfast_model::net::Uplink;
use hyper::Method;
use std::time::{Instant, SystemTime};
use tokio::time::timeout;
use uuid::Uuid;

impl Client {
    /// One request over the uplinks in order, until one brings an answer that another could not better.
    pub(super) async fn call(&self, method: Method, path: &str, body: Bytes, limit: usize) -> Result<Reply, Failure> {
        let (uplinks, timing, uuid) = {
            let state = self.state();
            (state.uplinks.clone(), state.timing, state.uuid)
        };
        let uplinks = if uplinks.is_empty() { vec![Uplink::default()] } else { uplinks };
        let mut headers = vec![("X-Request-Id", Uuid::new_v4().to_string())];
        if uuid.is_none() {
            headers.extend(self.serials.iter().cloned());
        }
        let full = format!("/api/v2/edgedevice/{path}");
        let call = Call { method, path: &full, headers: &headers, body, limit };
        let deadlines = Deadlines { dial: timing.dial, send: timing.send };

        let begun = Instant::now();
        let (result, interface) =
            match timeout(timing::ALL_UPLINKS, self.over_uplinks(&uplinks, deadlines, &call, path)).await {
                Ok(outcome) => outcome,
                Err(_) => (Err(self.no_answer(path, vec!["no uplink answered in time".to_owned()], false)), None),
            };
        self.count(path, &call, &result, interface, begun);
        result
    }

    async fn over_uplinks(
        &self,
        uplinks: &[Uplink],
        deadlines: Deadlines,
        call: &Call<'_>,
        path: &str,
    ) -> (Result<Reply, Failure>, Option<String>) {
        let mut reasons = Vec::new();
        let mut temporary = false;
        let mut answered = None;
        for uplink in uplinks {
            // Stands when the time for all uplinks ends meanwhile.
            self.note(uplink, Err("no answer in time".to_owned()));
            let result = transport::exchange(&self.tls, &self.server, uplink, deadlines, call).await;
            self.note(uplink, reached(&result));
            match result {
                Ok(reply) if is_success(reply.status) => {
                    return (Ok(reply), uplink.interface.clone());
                }
                Ok(reply) => {
                    let failure =
                        Failure::Status { path: path.to_owned(), status: reply.status, text: readable(&reply.body) };
                    if !failure.class().next_uplink_may_help() {
                        return (Err(failure), uplink.interface.clone());
                    }
                    answered = Some(failure);
                }
                Err(TransportError::TooLarge) => {
                    return (
                        Err(Failure::TooLarge { path: path.to_owned(), limit: call.limit }),
                        uplink.interface.clone(),
                    );
                }
                Err(error) => {
                    temporary |= error.is_temporary();
                    let over = uplink.interface.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
                    reasons.push(format!("{over}{error}"));
                }
            }
        }
        (Err(answered.unwrap_or_else(|| self.no_answer(path, reasons, temporary))), None)
    }

    fn note(&self, uplink: &Uplink, result: Result<(), String>) {
        self.state().tried.insert(uplink.adapter.clone(), result);
    }

    fn no_answer(&self, path: &str, reasons: Vec<String>, temporary: bool) -> Failure {
        Failure::NoAnswer { path: path.to_owned(), server: self.server(), reasons: reasons.join("; "), temporary }
    }

    fn count(
        &self,
        path: &str,
        call: &Call<'_>,
        result: &Result<Reply, Failure>,
        interface: Option<String>,
        begun: Instant,
    ) {
        let mut state = self.state();
        let traffic = &mut state.traffic;
        traffic.interface = interface.unwrap_or_default();
        match result {
            Ok(_) => {
                traffic.successes += 1;
                traffic.last_success = Some(SystemTime::now());
            }
            Err(_) => {
                traffic.failures += 1;
                traffic.last_failure = Some(SystemTime::now());
            }
        }
        // Paths of apps are counted as one, so that the list stays short.
        let name = if path.contains("/apps/") { "apps/newlogs" } else { path.rsplit('/').next().unwrap_or(path) };
        let index = traffic.paths.iter().position(|entry| entry.url == name).unwrap_or_else(|| {
            traffic.paths.push(PathTraffic { url: name.to_owned(), ..PathTraffic::default() });
            traffic.paths.len() - 1
        });
        let entry = &mut traffic.paths[index];
        entry.tried += 1;
        entry.sent_bytes += call.body.len() as u64;
        entry.milliseconds += u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Ok(reply) = result {
            entry.answered += 1;
            entry.received_bytes += reply.body.len() as u64;
        }
    }
}

/// Whether something answered that another uplink would reach just so.
fn reached(result: &Result<Reply, TransportError>) -> Result<(), String> {
    match result {
        Err(error) if !matches!(error, TransportError::TooLarge) && !error.is_temporary() => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Statuses that mean success for some request of this API.
fn is_success(status: u16) -> bool {
    matches!(status, 200 | 201 | 204 | 304)
}

/// The start of an error body, if it is text.
fn readable(body: &[u8]) -> String {
    let text = std::str::from_utf8(&body[..body.len().min(200)]).unwrap_or_default();
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) { String::new() } else { text.trim().to_owned() }
}
