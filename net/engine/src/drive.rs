//! A loop for tests and tools: runs one operation after another until nothing is left to do now.
//!
//! A program with other work runs its operations side by side, as tasks, and hands their results back as events.

use crate::engine::Engine;
use crate::item::{Action, Item};
use std::fmt::Display;
use std::future::Future;
use std::time::Instant;

/// Executes operations on real things.
///
/// Idempotent: creating what exists as asked and deleting what does not exist succeed. Every operation ends within a deadline
/// of its own.
pub trait Driver<I: Item> {
    /// Its text reaches the state of the failed item.
    type Error: Display;

    /// Executes the actions of an operation in order and gives a result for each.
    fn run(&self, actions: &[Action<I>]) -> impl Future<Output = Vec<Result<(), Self::Error>>>;
}

/// What a loop did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Actions that succeeded.
    pub done: usize,
    /// Actions that failed.
    pub failed: usize,
    /// Something waits for a retry until then.
    pub next_retry: Option<Instant>,
}

/// Runs all operations that can run at `now`, and those that can run after them, one at a time.
pub async fn drive<I: Item, D: Driver<I>>(engine: &mut Engine<I>, driver: &D, now: Instant) -> Report {
    let mut report = Report::default();
    loop {
        let ops = engine.next(now);
        if ops.is_empty() {
            break;
        }
        for op in ops {
            let results = driver.run(&op.actions).await;
            report.done += results.iter().filter(|r| r.is_ok()).count();
            report.failed += results.iter().filter(|r| r.is_err()).count();
            let results = results.into_iter().map(|r| r.map_err(|e| e.to_string())).collect();
            engine.finished(op.id, results, now);
        }
    }
    report.next_retry = engine.next_retry();
    report
}
