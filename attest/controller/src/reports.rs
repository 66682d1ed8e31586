//! The sender of reports: takes what the queues let go and sends it, one request at a time.

use crate::client::Client;
use crate::failure::Failure;
use crate::identity::DeviceIdentity;
use crate::queue::{InfoQueue, LogFile, LogQueue, Taken};
use crate::timing;
use holdfast_api::info::InfoKey;
use holdfast_api::newlog::{self, Line, Origin};
use holdfast_api::proto::info::ZInfoMsg;
use holdfast_api::proto::metrics::ZMetricMsg;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;
use tokio::time::sleep_until;

/// Reports waiting to be sent. Shared between those who report and the one task that runs [`ReportQueue::run`].
#[derive(Debug)]
pub struct ReportQueue {
    queues: Mutex<Queues>,
    wake: Notify,
}

#[derive(Debug)]
struct Queues {
    info: InfoQueue,
    metrics: Option<Box<ZMetricMsg>>,
    logs: LogQueue,
}

/// What the owner hears of each send that did not succeed.
#[derive(Debug)]
pub struct Refusal<'a> {
    /// What was sent: `info`, `metrics` or `logs`, and of which object.
    pub what: String,
    /// Why it failed.
    pub failure: &'a Failure,
    /// It will not be sent again.
    pub dropped: bool,
}

enum Job {
    Info(Box<Taken>),
    Metrics(Box<ZMetricMsg>),
    Logs(LogFile),
    Wait(Option<Instant>),
}

impl Default for ReportQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl ReportQueue {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        let queues = Queues { info: InfoQueue::default(), metrics: None, logs: LogQueue::new(now()) };
        Self { queues: Mutex::new(queues), wake: Notify::new() }
    }

    /// Adds an info message, replacing an older one of its key. What the controller has already is not sent again.
    pub fn info(&self, key: InfoKey, message: ZInfoMsg) {
        if self.queues().info.put(key, message, now()) {
            self.wake.notify_one();
        }
    }

    /// Adds all messages of [`holdfast_api::info::messages`].
    pub fn info_all(&self, messages: impl IntoIterator<Item = (InfoKey, ZInfoMsg)>) {
        for (key, message) in messages {
            self.info(key, message);
        }
    }

    /// Sends the next message of `key` even when it says nothing new (`timer.deviceinfo.interval`).
    pub fn repeat(&self, key: &InfoKey) {
        self.queues().info.forget(key);
    }

    /// Sends everything again when it is next put (`controller_epoch` changed).
    pub fn repeat_all(&self) {
        self.queues().info.forget_all();
    }

    /// Sets the metrics to be sent; they are tried once.
    pub fn metrics(&self, message: ZMetricMsg) {
        self.queues().metrics = Some(Box::new(message));
        self.wake.notify_one();
    }

    /// Adds log lines of one origin.
    pub fn logs(&self, origin: &Origin, lines: &[Line]) {
        let files = newlog::pack(origin, lines);
        let mut queues = self.queues();
        for gzip in files {
            queues.logs.put(LogFile { origin: origin.clone(), gzip });
        }
        drop(queues);
        self.wake.notify_one();
    }

    /// Info messages waiting.
    #[must_use]
    pub fn info_waiting(&self) -> usize {
        self.queues().info.len()
    }

    /// Log files waiting.
    #[must_use]
    pub fn logs_waiting(&self) -> usize {
        self.queues().logs.len()
    }

    /// Sends what waits, for ever. `report` hears of each failure.
    pub async fn run(
        &self,
        client: &Client,
        identity: &dyn DeviceIdentity,
        mut report: impl FnMut(Refusal<'_>),
    ) -> std::convert::Infallible {
        loop {
            match self.next_job() {
                Job::Info(taken) => {
                    let result = client.send_info(identity, &taken.message).await;
                    let failure = result.as_ref().err();
                    self.queues().info.settle(&taken, failure.map(Failure::class), now());
                    if let Some(failure) = failure {
                        let what = format!("info {:?} {}", taken.key.kind, taken.key.id);
                        report(Refusal { what, failure, dropped: failure.class().is_final() });
                    }
                }
                Job::Metrics(message) => {
                    if let Err(failure) = client.send_metrics(identity, &message).await {
                        report(Refusal { what: "metrics".to_owned(), failure: &failure, dropped: true });
                    }
                }
                Job::Logs(file) => {
                    let result = client.send_logs(identity, &file.origin, file.gzip).await;
                    let failure = result.as_ref().err();
                    let before = self.queues().logs.dropped();
                    let fast = client.timing().fast_logs;
                    self.queues().logs.settle(failure.map(Failure::class), now(), fast, timing::random());
                    if let Some(failure) = failure {
                        let dropped = self.queues().logs.dropped() > before;
                        report(Refusal { what: format!("logs {:?}", file.origin), failure, dropped });
                    }
                }
                Job::Wait(Some(until)) => tokio::select! {
                    () = sleep_until(until.into()) => {}
                    () = self.wake.notified() => {}
                },
                Job::Wait(None) => self.wake.notified().await,
            }
        }
    }

    /// Info first, then metrics, then logs.
    fn next_job(&self) -> Job {
        let mut queues = self.queues();
        let now = now();
        if let Some(taken) = queues.info.take(now) {
            return Job::Info(Box::new(taken));
        }
        if let Some(message) = queues.metrics.take() {
            return Job::Metrics(message);
        }
        if let Some(file) = queues.logs.take(now) {
            return Job::Logs(file.clone());
        }
        Job::Wait([queues.info.next_time(), queues.logs.next_time()].into_iter().flatten().min())
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The clock of the runtime, so that tests can turn it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
