//! Reports to the controller: info when the state changes, metrics when they are due, log lines as they come.

use super::session::Inputs;
use crate::boot::Paths;
use crate::parts::logs::Shared;
use crate::parts::logs::queue::Line;
use crate::{gauges, vmstats};
use holdfast_api::{info, metrics, newlog};
use holdfast_controller_client::{Client, ReportQueue};
use holdfast_model::gauges::Gauges;
use holdfast_model::observed::Observed;
use holdfast_model::properties::Properties;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How often waiting lines are packed for upload.
const PACK_LOGS: Duration = Duration::from_secs(3);
/// Most lines packed at once.
const PACK_LINES: usize = 1000;

/// When the session last heard of the config, for metrics.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ConfigTimes {
    /// The controller last sent a config, or said that the present one is current.
    pub(super) received: Option<SystemTime>,
    /// A new config was last handed on to be put in force.
    pub(super) processed: Option<SystemTime>,
}

/// Turns what is observed into messages for the queue.
pub(super) struct Reporter {
    client: Rc<Client>,
    reports: Rc<ReportQueue>,
    observed: watch::Receiver<Observed>,
    properties: watch::Receiver<Properties>,
    times: Rc<Cell<ConfigTimes>>,
    logs: Shared,
    version: String,
    image: String,
    paths: Paths,
    /// The last sample.
    gauges: Gauges,
    sent: BTreeSet<info::InfoKey>,
}

impl Reporter {
    pub(super) fn new(
        client: Rc<Client>,
        reports: Rc<ReportQueue>,
        properties: watch::Receiver<Properties>,
        times: Rc<Cell<ConfigTimes>>,
        inputs: &Inputs,
    ) -> Self {
        Self {
            client,
            reports,
            observed: inputs.observed.clone(),
            properties,
            times,
            logs: inputs.logs.clone(),
            version: inputs.boot.release.version.clone(),
            image: format!("IMG{}", inputs.boot.facts.slot),
            paths: inputs.paths.clone(),
            gauges: Gauges::default(),
            sent: BTreeSet::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut device_info_at = Instant::now();
        let mut metrics_at = Instant::now();
        let mut logs_at = Instant::now();
        loop {
            let changed = tokio::select! {
                changed = self.observed.changed() => changed.is_ok(),
                () = sleep(Duration::from_secs(1)) => false,
            };
            let now = Instant::now();
            let timing = self.client.timing();
            if changed {
                let observed = self.observed.borrow_and_update().clone();
                // A report without our id is refused; the next change, at the latest our id, brings it.
                if observed.device.id.is_nil() {
                    continue;
                }
                self.info(&observed);
            }
            if now.duration_since(device_info_at) >= timing.device_info {
                device_info_at = now;
                self.reports.repeat_all();
                let observed = self.observed.borrow().clone();
                self.info(&observed);
            }
            if now.duration_since(metrics_at) >= timing.metrics && !self.observed.borrow().device.id.is_nil() {
                metrics_at = now;
                let times = self.times.get();
                let context = metrics::Context {
                    now: Some(SystemTime::now()),
                    last_received_config: times.received,
                    last_processed_config: times.processed,
                    traffic: self.client.traffic(),
                };
                let observed = self.observed.borrow().clone();
                let mut gauges = gauges::sample(&observed, &self.paths);
                let stats = vmstats::collect(&self.paths.control(), &observed).await;
                vmstats::fold(&observed, &mut gauges, &stats);
                self.reports.metrics(metrics::message(&observed, &gauges, &context));
                self.gauges = gauges;
            }
            if now.duration_since(logs_at) >= PACK_LOGS {
                logs_at = now;
                self.pack_logs();
            }
        }
    }

    fn info(&mut self, observed: &Observed) {
        let properties = self.properties.borrow().clone();
        let context =
            info::Context { now: SystemTime::now(), properties: Some(&properties), gauges: Some(&self.gauges) };
        let messages = info::messages(observed, context);
        let present: BTreeSet<info::InfoKey> = messages.iter().map(|(key, _)| key.clone()).collect();
        for key in self.sent.difference(&present) {
            if let Some(message) = info::gone(key, &observed.device.id, SystemTime::now()) {
                self.reports.info(key.clone(), message);
            }
        }
        self.sent = present;
        self.reports.info_all(messages);
    }

    fn pack_logs(&self) {
        let mut waiting = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.device.len().min(PACK_LINES);
        let device: Vec<newlog::Line> = waiting.device.drain(..count).map(wire_line).collect();
        if !device.is_empty() {
            let uuid = self.client.known_uuid().unwrap_or_default().to_string();
            self.reports.logs(
                &newlog::Origin::Device { device: uuid, image: self.image.clone(), version: self.version.clone() },
                &device,
            );
        }
        let observed = self.observed.borrow();
        for (app, lines) in &mut waiting.apps {
            let count = lines.len().min(PACK_LINES);
            let lines: Vec<newlog::Line> = lines.drain(..count).map(wire_line).collect();
            if !lines.is_empty() {
                let name =
                    observed.apps.iter().find(|a| a.id == *app).map_or_else(|| app.to_string(), |a| a.name.clone());
                self.reports.logs(&newlog::Origin::App { id: app.to_string(), name }, &lines);
            }
        }
    }
}

fn wire_line(line: Line) -> newlog::Line {
    newlog::Line {
        severity: line.severity.to_owned(),
        iid: "1".into(),
        source: line.source,
        content: line.text,
        msgid: line.id,
        timestamp: newlog::Stamp {
            seconds: i64::try_from(line.at_ns / 1_000_000_000).unwrap_or(0),
            nanos: i32::try_from(line.at_ns % 1_000_000_000).unwrap_or(0),
        },
        ..newlog::Line::default()
    }
}
