//! Reports: one JSON line each, progress at most a few times a second.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use holdfast_model::contract::fetch::{Outcome, Phase, Report};

const PROGRESS_EVERY: Duration = Duration::from_millis(400);

/// Where reports go.
pub struct Reporter {
    out: File,
    last: Option<(Phase, Instant)>,
}

impl Reporter {
    /// Reports to `out`.
    pub fn new(out: File) -> Self {
        Self { out, last: None }
    }

    /// How far it is. Left out when the last one was just now and of the same phase.
    ///
    /// # Errors
    /// When nobody listens any more: then the job ends, because nobody will use its outputs.
    pub fn progress(&mut self, phase: Phase, bytes: u64, total: u64) -> Result<(), Failure> {
        if self.last.is_some_and(|(p, at)| p == phase && at.elapsed() < PROGRESS_EVERY) {
            return Ok(());
        }
        self.last = Some((phase, Instant::now()));
        self.line(&Report::Progress { phase, bytes, total })
    }

    /// The last report.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub fn finish(&mut self, result: &Result<Outcome, Failure>) -> Result<(), Failure> {
        self.line(&match result {
            Ok(outcome) => Report::Done(outcome.clone()),
            Err(f) => Report::Failed { class: f.class, text: f.text.clone() },
        })
    }

    fn line(&mut self, report: &Report) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(report).map_err(|e| Failure::local(format!("report: {e}")))?;
        line.push(b'\n');
        self.out.write_all(&line).map_err(Failure::file("report descriptor"))
    }
}
