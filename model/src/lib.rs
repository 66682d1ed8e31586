//! The device model: the nouns that every room shares, so that no room needs another room's types.
//!
//! Principles:
//! 1. Plain data only: no I/O, no wire types, no behaviour beyond names, units and limits.
//! 2. What the controller wants ([`desired`]) and what is so ([`observed`]) are two separate trees over the same ids.
//! 3. What is wrong belongs to an object: [`trouble::Trouble`] names it, says what was expected, found and what happens next.
//! 4. State and numbers that change all the time are two trees: a change of [`observed`] is an event, [`gauges`] are sampled.
//! 5. Units live in names (`memory_bytes`, `interval_seconds`) or types.
//!
//! Reading order: [`desired`], [`check`], [`net`], [`storage`], [`app`], [`slot`], [`base_os`], [`properties`], [`trouble`],
//! [`observed`], [`gauges`], [`resources`], [`boot`], [`contract`].
#![forbid(unsafe_code)]

pub mod app;
pub mod base_os;
pub mod boot;
pub mod check;
pub mod contract;
pub mod desired;
pub mod gauges;
pub mod net;
pub mod observed;
pub mod properties;
pub mod resources;
pub mod slot;
pub mod storage;
pub mod trouble;

pub use uuid::Uuid;
