//! A generic reconciler: makes what exists equal to what is intended, one ordered action at a time.
//!
//! It knows items with keys and dependencies, and nothing of networking. Principles:
//! 1. Deciding is pure: [`diff::diff`] is a function of two graphs; only [`engine::Reconciler::run`] calls the driver.
//! 2. Order is safety: an item is created after all it depends on, and deleted before any of them.
//! 3. Faults stay local: an item that fails is tried again with backoff; items that do not depend on it go on.
//! 4. Idempotence: a failed action may have happened in part, so an item whose creation failed is still deleted when it
//!    is no longer wanted, and the driver accepts "already there" and "already gone".
//! 5. Rest: when nothing changed, no action is taken.
//!
//! Reading order: [`graph`] (items), [`diff`] (deciding), [`engine`] (acting and state), [`driver`] (what it acts through).
#![forbid(unsafe_code)]

pub mod diff;
pub mod driver;
pub mod engine;
pub mod graph;

pub use diff::{Action, Doubt, diff};
pub use driver::Driver;
pub use engine::{Backoff, Reconciler, Report, State};
pub use graph::{Graph, Item, Transition};
