//! The agent: one config in, the machine made to match, reports out.
//!
//! Principles:
//! 1. A kernel that knows no noun ([`kernel`]), and one part for each domain ([`part`], [`parts`]). A turn is synchronous and returns
//!    operations; nothing in the loop waits.
//! 2. Deciding is pure ([`parts::app::decide`], [`parts::content::state`], `slots::step`, `net/plan`), acting is idempotent: after a
//!    crash at any point the next turn looks at what exists and goes on.
//! 3. PID 1 owns processes. A restarted agent finds every VM and service again by asking PID 1.
//! 4. A fault stays with its object; the same text reaches console, log and info message.
//! 5. Each part keeps its own file ([`keeper`]), read field by field ([`kept`]).
//!
//! Reading order: [`part`], [`kernel`], [`parts`], [`setup`] (what parts are constructed from), [`world`] (what they act through),
//! [`boot`] and [`trust`] (what this boot is, keys, vault), [`fetching`], [`keeper`], [`kept`], [`last_good`], [`unsure`], [`gauges`],
//! [`vmstats`], [`machine`], [`debug`] and [`resources`].
#![forbid(unsafe_code)]

pub mod boot;
pub mod debug;
pub mod fetching;
pub mod gauges;
pub mod keeper;
pub mod kept;
pub mod kernel;
pub mod last_good;
pub mod machine;
pub mod part;
pub mod parts;
pub mod resources;
pub mod setup;
#[cfg(test)]
mod testing;
pub mod trust;
pub mod unsure;
pub mod vmstats;
pub mod world;
