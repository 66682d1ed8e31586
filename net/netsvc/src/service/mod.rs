//! The loop: waits for sockets and deadlines, and moves packets between them and the state machines.

mod client;
mod network;
mod tcp;

use crate::control::Server;
use holdfast_model::contract::network::{Mode, ServiceDocument};
use holdfast_unit::fds::{self, FdError};
use holdfast_unit::packet;
use std::io;
use std::os::fd::AsFd as _;
use thiserror::Error;

/// Why a service ends.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// An inherited descriptor is missing.
    #[error(transparent)]
    Descriptor(#[from] FdError),
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
    let taken = fds::adopt(fd, what)?;
    packet::set_nonblocking(taken.as_fd())?;
    Ok(taken)
}
