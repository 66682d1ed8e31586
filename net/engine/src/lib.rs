//! A generic graph engine: says which operations make what exists equal to what is intended, and which of them can run now.
//!
//! It knows items with keys and needs, and nothing of networking. Principles:
//! 1. No I/O and no waiting: [`Engine::next`] gives operations, whoever runs them hands the results to [`Engine::finished`].
//! 2. Order is safety: an item is created after all that it needs, and deleted before any of it.
//! 3. Faults stay local: an item that fails is tried again with backoff, an operation that never ends blocks only what depends
//!    on its items, and an item that spoils a batch is tried apart from the others.
//! 4. Idempotence: a failed action may have happened in part. An item whose creation failed is still deleted when it is no
//!    longer wanted, and drivers accept to create what exists and to delete what does not.
//! 5. What runs is not disturbed: what an external item needs is not removed before it has left, and a pinned item keeps its
//!    value for as long as the item that pins it exists.
//! 6. Rest: when nothing changed, there is no operation.
//!
//! Reading order: [`item`] (what the engine is told about), [`graph`] (items with their needs indexed), [`diff`] (what has to
//! change, pure), [`engine`] (state, retries, and which operations can run now), [`drive`] (a loop for tests and tools).
#![forbid(unsafe_code)]

pub mod diff;
pub mod drive;
pub mod engine;
pub mod graph;
pub mod item;

pub use diff::{Change, Difference, Doubt, Facts, diff};
pub use drive::{Driver, Report, drive};
pub use engine::{Backoff, Engine, Fact, Op, OpId, State};
pub use graph::Graph;
pub use item::{Action, Item, Need, Transition};
