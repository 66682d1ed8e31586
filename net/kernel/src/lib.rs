//! Actuators of the network: what the kernel is told, over netlink, ioctls and `/proc/sys`, never through a tool.
//!
//! Principles:
//! 1. Every actuator is idempotent: asked twice, the second time changes nothing.
//! 2. What exists is read back from the kernel ([`NetDriver::discover`]); what is ours is marked there (interface alias, protocol
//!    numbers of addresses, routes and rules), so a restarted process disturbs nothing and removes what is left over.
//! 3. The firewall changes in transactions of what changes: no packet ever meets half of a change, and what an app's rules
//!    count survives the change of another's.
//! 4. Every wait for the kernel has a deadline. Links, addresses, routes and rules go through the `rtnetlink` crate, whose
//!    connection is a task of the caller's (current-thread) runtime; nf_tables, which has no crate that fits, is asked
//!    directly.
//! 5. `unsafe` lives in [`sys`] and nowhere else.
//!
//! Reading order: [`driver`] (one driver for all items), `kinds` (a file for each), [`cards`] (what exists by itself),
//! [`rtnl`] (the connection), [`link`],
//! [`tap`], [`address`], [`route`], [`nft`], [`sysctl`], [`sockets`] (what `netsvc` inherits), [`monitor`], [`netlink`]
//! (messages of nf_tables), [`error`], [`sys`] (system calls).
#![deny(unsafe_code)]

pub mod address;
pub mod cards;
pub mod driver;
pub mod error;
mod kinds;
pub mod link;
pub mod monitor;
pub mod netlink;
pub mod nft;
pub mod route;
pub mod rtnl;
pub mod sockets;
#[allow(unsafe_code)] // The system calls themselves.
pub mod sys;
pub mod sysctl;
pub mod tap;

pub use driver::{NetDriver, Services};
pub use error::NetlinkError;
pub use monitor::{Event, Monitor};
pub use netlink::Netlink;
pub use rtnl::Rtnl;
pub use sockets::{Prepared, prepare};

/// Alias that marks the interfaces made here (`ip link` shows it).
pub const ALIAS: &str = "holdfast";
/// Protocol number that marks addresses, routes and rules made here; free in `rtnetlink(7)` and `rt_protos`.
pub const PROTOCOL: u8 = 72;
