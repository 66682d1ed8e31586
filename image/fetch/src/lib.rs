//! One short-lived, unprivileged, sandboxed process per download, unpack or verify job.
//!
//! 1. Everything that comes from the network is a stranger's: sizes are bounded, parsers do not panic, every digest is
//!    checked before the bytes are used.
//! 2. The process has no files but the descriptors it was given, and locks itself in before the first packet.
//! 3. A failed job leaves nothing usable: outputs are emptied, spool files never had a name.
//! 4. Every wait has a deadline; a broken transfer goes on where it stopped; retries are counted and pause longer each time.
//! 5. An error names the URL or object, what was expected and what was found.
//!
//! Reading order: [`holdfast_model::contract::fetch`] (the contract), [`run`] (a job from start to end), [`failure`], [`report`], [`fds`], [`sandbox`];
//! [`http`], [`auth`] and [`download`] (the network); [`digest`], [`manifest`], [`registry`], [`tar`], [`layer`], [`oci`]
//! (container images); [`update`], [`blob`].

pub mod auth;
pub mod blob;
pub mod digest;
pub mod download;
pub mod failure;
pub mod fds;
pub mod http;
pub mod layer;
pub mod manifest;
pub mod oci;
pub mod registry;
pub mod report;
pub mod run;
pub mod sandbox;
pub mod tar;
pub mod update;
