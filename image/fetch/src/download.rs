//! A transfer that goes on where it stopped: one loop for layers, payloads and files.
#![forbid(unsafe_code)]

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE};

use crate::failure::Failure;
use crate::http::{Answer, Client, Get, RequestFailure};
use holdfast_model::contract::fetch::FailureClass;

/// Attempts in a row without progress.
pub const ATTEMPTS: u32 = 6;
/// First pause; doubled each time up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(16);
/// Bytes that count as progress: a server that gives less at a time is counted as failing.
const PROGRESS: u64 = 64 << 10;

/// Bounds of a transfer.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Exact size, when it is known.
    pub exact: Option<u64>,
    /// Longest size.
    pub max: u64,
}

/// Brings the bytes of `target` to `sink`, in order and each once. `sink` also gets the total, 0 while not known. Returns
/// the number of bytes.
///
/// # Errors
/// The sink's, or a transfer that does not complete in [`ATTEMPTS`] attempts without progress.
pub async fn download(
    client: &Client,
    target: &str,
    bounds: Bounds,
    mut sink: impl FnMut(&[u8], u64) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut transfer = Transfer { done: 0, etag: None };
    let mut attempt = 0;
    loop {
        let before = transfer.done;
        let stopped = match transfer.go_on(client, target, bounds, &mut sink).await {
            Ok(()) => return Ok(transfer.done),
            Err(stopped) => stopped,
        };
        attempt = if transfer.done >= before + PROGRESS { 1 } else { attempt + 1 };
        rest(stopped, attempt).await?;
    }
}

/// A small answer in memory, with the same retries.
///
/// # Errors
/// As [`download`].
pub async fn fetch_small(client: &Client, get: &Get, max: usize) -> Result<Vec<u8>, Failure> {
    let mut attempt = 0;
    loop {
        let stopped = match client.get(get).await {
            Ok(mut answer) => match answer.read_all(max).await {
                Ok(body) => return Ok(body),
                Err(failure) => failure.into(),
            },
            Err(stopped) => stopped,
        };
        attempt += 1;
        rest(stopped, attempt).await?;
    }
}

/// Waits for the next attempt, or gives up.
async fn rest(stopped: RequestFailure, attempt: u32) -> Result<(), Failure> {
    let transient = stopped.failure.class == FailureClass::Transport && !stopped.hopeless;
    if !transient || attempt >= ATTEMPTS {
        return Err(stopped.failure);
    }
    let pause = PAUSE * 2u32.saturating_pow(attempt.saturating_sub(1));
    tokio::time::sleep(stopped.wait.unwrap_or(pause.min(PAUSE_MAX))).await;
    Ok(())
}

struct Transfer {
    done: u64,
    etag: Option<String>,
}

impl Transfer {
    async fn go_on(
        &mut self,
        client: &Client,
        target: &str,
        bounds: Bounds,
        sink: &mut impl FnMut(&[u8], u64) -> Result<(), Failure>,
    ) -> Result<(), RequestFailure> {
        let get = Get { target: target.into(), offset: self.done, if_range: self.etag.clone(), ..Get::default() };
        let mut answer = client.get(&get).await?;
        self.take(&mut answer, bounds, sink).await.map_err(RequestFailure::from)
    }

    async fn take(
        &mut self,
        answer: &mut Answer,
        bounds: Bounds,
        sink: &mut impl FnMut(&[u8], u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // A server that starts over: skip what is there already. Whether it is the same is for the digest to say.
        let mut skip = match (answer.status, self.done) {
            (StatusCode::PARTIAL_CONTENT, done) if range_start(answer) == Some(done) => 0,
            (StatusCode::PARTIAL_CONTENT, done) => {
                return Err(Failure::transport(format!(
                    "{}: expected the range from byte {done}, found {:?}",
                    answer.url,
                    answer.headers.get(CONTENT_RANGE)
                )));
            }
            (_, done) => done,
        };
        self.etag = answer.etag().or(self.etag.take());
        let length = answer.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let total = length.map(|l| l.saturating_add(self.done - skip));
        let too_long = |found: u64| {
            let expected = bounds.exact.unwrap_or(bounds.max);
            let at_most = if bounds.exact.is_some() { "" } else { "at most " };
            Failure::content(format!("{}: expected {at_most}{expected} bytes, found {found}", answer.url))
        };
        let limit = bounds.exact.unwrap_or(bounds.max).min(bounds.max);
        if let Some(total) = total.filter(|t| *t > limit) {
            return Err(too_long(total));
        }
        let known = total.or(bounds.exact).unwrap_or(0);
        let url = answer.url.clone();
        while let Some(chunk) = answer.chunk().await? {
            let fresh = &chunk[usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len())..];
            skip -= (chunk.len() - fresh.len()) as u64;
            if self.done + fresh.len() as u64 > limit {
                return Err(Failure::content(format!("{url}: expected at most {limit} bytes, more came")));
            }
            if !fresh.is_empty() {
                self.done += fresh.len() as u64;
                sink(fresh, known)?;
            }
        }
        match total.or(bounds.exact) {
            Some(expected) if expected != self.done => Err(Failure::transport(format!(
                "{url}: expected {expected} bytes, the answer ended after {}",
                self.done
            ))),
            _ => Ok(()),
        }
    }
}

fn range_start(answer: &Answer) -> Option<u64> {
    let range = answer.headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}
