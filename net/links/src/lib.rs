//! Virtual cables: what joins a VM's network card with a network.
//!
//! Principles:
//! 1. A cable's two sides are separate: the network side is planned and made by the reconciler; here is only the VM's side.
//! 2. The VMM gets descriptors, never names or privileges: [`Cable::attach`] runs in its parent.
//! 3. A cable outlives the VM and this process: attaching again after a crash gives the same network.
//! 4. A new kind of cable is a new implementation and a new [`End`], nothing else.
//!
//! Reading order: [`Cable`], [`End`], [`tap`].
#![forbid(unsafe_code)]

pub mod tap;

pub use tap::TapCable;

use holdfast_model::net::Mac;
use std::os::fd::OwnedFd;
use thiserror::Error;

/// Why a VM could not be joined to its network.
#[derive(Debug, Error)]
#[error("cable {cable} for {mac}: {reason}; the network of the app must be created first and no other VM may hold it")]
pub struct CableError {
    /// Name of the cable.
    pub cable: String,
    /// MAC of the card.
    pub mac: String,
    /// What was found.
    pub reason: String,
}

/// The VM's end of a cable.
#[derive(Debug)]
pub enum End {
    /// A descriptor that carries Ethernet frames, each behind a virtio-net header.
    Frames {
        /// Non-blocking; fit for vhost-net (`VHOST_NET_SET_BACKEND`) and for read and write.
        descriptor: OwnedFd,
        /// Bytes of header before each frame.
        header_bytes: u32,
        /// MTU of the network.
        mtu: u32,
    },
}

/// A cable that a VM can be plugged into.
pub trait Cable {
    /// Name for messages.
    fn name(&self) -> &str;

    /// MAC of the card at the VM's end.
    fn mac(&self) -> Mac;

    /// The VM's end. May be called again once the former end is closed; while it is open this is an error.
    fn attach(&self) -> Result<End, CableError>;
}
