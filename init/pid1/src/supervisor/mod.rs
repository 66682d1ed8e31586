//! The supervision loop: units, their output, their clients, health, and the way down.
//!
//! Decisions are pure and take the time as a value: [`unit`] (state machine and backoff), [`health`] (heartbeats),
//! [`ends`] (why a run ended), [`logs`] and [`lines`] (output), [`shutdown`] (order of the way down). Acting is in [`spawn`], [`reap`],
//! [`cgroup`], [`server`]; [`run`] joins them in one `poll` loop.

pub mod cgroup;
pub mod ends;
pub mod health;
pub mod lines;
pub mod logs;
pub mod reap;
pub mod run;
pub mod server;
pub mod shutdown;
pub mod spawn;
pub mod unit;

pub use run::{Options, Platform, Supervisor};
pub use shutdown::{Cause, Down, DownKind};
