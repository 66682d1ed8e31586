//! The loop: waits for sockets and deadlines, and moves packets between them and the state machines.

mod client;
mod network;
mod tcp;

use crate::control::Server;
use crate::sys;
use holdfast_model::contract::network::{Mode, ServiceDocument};
use std::io;
use thiserror::Error;

/// Why a service ends.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// An inherited descriptor is missing or of the wrong kind.
    #[error("descriptor {fd} for {what}: {source}")]
    Descriptor {
        /// Number in the configuration.
        fd: i32,
        /// What it should be.
        what: &'static str,
        /// System error.
        source: io::Error,
    },
    /// Waiting or the random source failed.
    #[error("event loop: {0}")]
    Loop(#[from] io::Error),
}

/// Runs the configured service. Returns only on a fault.
pub fn run(config: ServiceDocument) -> Result<(), ServiceError> {
    let control = Server::new(take(config.control_fd, "control")?)?;
    match config.mode {
        Mode::Network { sockets, service } => network::Network::new(&sockets, service, control)?.run(),
        Mode::DhcpClient { sockets, service } => client::Port::new(&sockets, service, control)?.run(),
    }
}

fn take(fd: i32, what: &'static str) -> Result<std::os::fd::OwnedFd, ServiceError> {
    let taken = sys::inherit(fd).and_then(|f| sys::set_nonblocking(&f).map(|()| f));
    taken.map_err(|source| ServiceError::Descriptor { fd, what, source })
}
