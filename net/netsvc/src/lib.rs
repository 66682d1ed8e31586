//! The network service: DHCP server and DNS forwarder of one network, or DHCP client of one port.
//!
//! It parses what strangers send, so it owns nothing. Principles:
//! 1. All sockets are inherited, already open; the process has no privilege, no file, no way to open either ([`sandbox`]).
//! 2. Decisions are state machines without I/O ([`dhcp::server`], [`dhcp::client`], [`dns::forwarder`]); the [`service`] loop
//!    moves packets and time.
//! 3. Every table is bounded, every query and lease has a deadline, every retry a backoff.
//! 4. Addresses come from the controller's assignments; a name is answered from own tables before anyone is asked.
//! 5. It is told everything over its document and its control socket ([`holdfast_model::contract::network`], [`control`]), and may be told anew.
//!
//! Reading order: [`holdfast_model::contract::network`], [`dhcp`], [`dns`], [`control`], [`service`], [`sandbox`], [`sys`].
#![deny(unsafe_code)]

pub mod control;
pub mod dhcp;
pub mod dns;
pub mod sandbox;
pub mod service;
#[allow(unsafe_code)] // The system calls themselves.
pub mod sys;
