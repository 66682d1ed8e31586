//! A small, real controller for devices that speak the EVE device API v2: a library that tests start in their own
//! process, and the program `holdfast-controller`.
//!
//! Principles:
//! 1. It is a second reader of the wire. Envelope, object encryption, attestation and log format are written here from
//!    the specification and share nothing with the device but the generated protobuf types, so that a shared mistake
//!    cannot hide.
//! 2. It is as strict as the specification. Where the reference controller is lenient, this one refuses; where the two
//!    differ and a device must cope with both, a quirk switches.
//! 3. It misbehaves on demand ([`faults`]) and never otherwise.
//! 4. What it accepted survives a restart: files are replaced atomically ([`store`]).
//! 5. Every wait has a deadline and says what was seen last.
//!
//! Reading order:
//! - [`controller`]: the object that tests hold
//! - [`endpoints`]: what each request does; [`device_api`]: how it comes in; [`envelope`]: its signature
//! - [`attest`], [`tpm`]: what a quote proves
//! - [`config`]: the friendly document and its wire form; [`cipher`]: secrets in it
//! - [`logs`], [`json`], [`status`]: what devices say, and how it is shown
//! - [`records`], [`state`], [`store`]: what is known and kept
//! - [`faults`]: rules that spoil answers
//! - [`artifacts`], [`oci_build`]: images and files that devices fetch
//! - [`admin`]: JSON over HTTP for people and scripts
//! - [`pki`], [`x509`], [`http`]: certificates and servers

#![forbid(unsafe_code)]

pub mod admin;
pub mod artifacts;
pub mod attest;
pub mod cipher;
pub mod config;
pub mod controller;
pub mod device_api;
pub mod endpoints;
pub mod envelope;
pub mod faults;
pub mod http;
pub mod json;
pub mod logs;
pub mod oci_build;
pub mod pki;
pub mod records;
pub mod state;
pub mod status;
pub mod store;
pub mod tpm;
pub mod x509;

pub use config::DeviceConfig;
pub use controller::{Controller, ControllerError, Options};
pub use faults::{Action, Endpoint, Rule};
