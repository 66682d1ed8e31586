//! The unit protocol: how `node` asks PID 1 to start, stop and watch processes.
//!
//! Principles:
//! 1. PID 1 owns processes. A unit lives on when the one who asked for it dies; a restarted `node`
//!    finds every unit again with [`Client::list`], including the [`UnitSpec`] it was started with.
//! 2. One packet is one JSON message, at most [`MAX_PACKET`] bytes, with a version; unknown fields
//!    and values out of range are refused, so both ends mean the same thing or say that they do not.
//! 3. File descriptors travel with the packet that names them, are close-on-exec on arrival, and a
//!    packet that is refused closes them.
//! 4. Nothing here waits without a deadline.
//!
//! Modules in reading order:
//! - [`name`]: what a unit may be called;
//! - [`spec`]: what a unit is: program, limits, restart and stop policy, sandbox;
//! - [`message`]: requests, replies, events;
//! - [`wire`]: packets and descriptors over `SOCK_SEQPACKET`, used by both ends;
//! - [`client`]: the blocking client and the event subscription;
//! - `asynchronous` (feature `tokio`): the same for programs that run tokio.
//!
//! | wait | deadline | EVE property |
//! |---|---|---|
//! | one call of [`Client`] | [`client::CALL_DEADLINE`] | none |
//! | stop of a unit | [`spec::StopPolicy::deadline_ms`] | none |
//! | restart of a unit | [`spec::Backoff`] | none |

#[cfg(feature = "tokio")]
pub mod asynchronous;
pub mod client;
pub mod message;
pub mod name;
pub mod spec;
pub mod wire;

#[cfg(feature = "tokio")]
pub use asynchronous::{AsyncClient, AsyncSubscription};
pub use client::{CallError, Client, Subscription};
pub use message::{Event, Exit, LogLine, Logs, RefusalKind, Refused, Reply, Request, Stream, UnitState, UnitStatus};
pub use name::{NameError, UnitName};
pub use spec::{Backoff, Capabilities, Capability, Limits, Restart, Sandbox, SpecError, StopPolicy, UnitSpec};
pub use wire::{MAX_FDS, MAX_PACKET, WireError};

/// Where PID 1 listens.
pub const SOCKET_PATH: &str = "/run/holdfast/supervise.sock";

/// Parent of every unit's cgroup; a unit's own is [`cgroup_path`].
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup/units";

/// The cgroup of a unit, there while the unit runs; `memory.current`, `cpu.stat` and the like are read from it.
pub fn cgroup_path(unit: &UnitName) -> std::path::PathBuf {
    std::path::Path::new(CGROUP_ROOT).join(unit.as_str())
}
