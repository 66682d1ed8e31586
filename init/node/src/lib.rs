//! The agent: one config in, the machine made to match, reports out.
//!
//! Principles:
//! 1. One decision maker. All state lives in [`agent`], on one thread; everything else is told what to do.
//! 2. Deciding is pure ([`parts::app::decide`], [`parts::content::state`], `slots::step`, `net/plan`), acting is idempotent: after a crash at any point the
//!    next turn of the loop looks at what is there and goes on.
//! 3. PID 1 owns processes. A restarted agent finds every VM and service again by asking PID 1.
//! 4. A fault stays with its object; the same text reaches console, log and info message.
//! 5. Nothing waits without a deadline.
//!
//! Reading order: [`agent`] (the loop), [`boot`] and [`trust`] (what this boot is, keys, vault), [`recovery`] (a vault that this boot
//! cannot unseal), [`session`] (the controller's side), [`network`], [`ports`] and [`services`], [`fetching`], [`parts`], [`update`],
//! [`reports`], [`gauges`], [`vmstats`], [`logs`], [`store`], [`supervisor`], [`machine`], [`debug`] and [`resources`].
#![forbid(unsafe_code)]

pub mod agent;
pub mod boot;
pub mod debug;
pub mod fetching;
pub mod gauges;
pub mod keeper;
pub mod kept;
pub mod kernel;
pub mod last_good;
pub mod logs;
pub mod machine;
pub mod network;
pub mod part;
pub mod parts;
pub mod ports;
pub mod recovery;
pub mod reports;
pub mod resources;
pub mod services;
pub mod session;
pub mod setup;
pub mod store;
pub mod supervisor;
#[cfg(test)]
mod testing;
pub mod trust;
pub mod unsure;
pub mod update;
pub mod vmstats;
pub mod world;
