//! The virtio device contract, and the devices.
//!
//! ```text
//!            activate (driver wrote DRIVER_OK)
//!  Device  ------------------------------------>  ActiveDevice  --+ ready, pause, resume
//!    ^                                                 |         <-+
//!    +-------------------------------------------------+
//!            deactivate (driver wrote status 0)
//! ```
//!
//! Every method of both traits is called on the device thread only, except the getters of [`Device`], which are called
//! once, before the VM starts. Each device is a folder with the same files: `mod.rs` (what it is), `device.rs` (inactive:
//! features and configuration space), `active.rs` (activated: the data path), `tests.rs`.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod device_config;
mod fuzzing;
pub mod interrupt;
#[cfg(test)]
mod malformed;
pub mod net;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod vhost;
pub mod vsock;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use holdfast_model::contract::vm::{DeviceStats, MemoryStats};
use thiserror::Error;

use self::chain::RingFault;
use self::device_config::DeviceConfig;
use self::interrupt::Interrupts;
use self::queue::VirtQueue;
use crate::memory::GuestRam;

/// VIRTIO_F_VERSION_1: always offered and required.
pub const F_VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_RING_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_RING_INDIRECT_DESC.
pub const F_INDIRECT: u64 = 1 << 28;
/// What every device here offers.
pub const F_COMMON: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT;

/// Device type (virtio 1.3 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceKind {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Rng = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Socket device.
    Vsock = 19,
}

/// A device that no driver uses. The getters' answers never change.
pub trait Device: Send {
    /// Type.
    fn kind(&self) -> DeviceKind;
    /// Name in messages: `net0`, `block data`.
    fn name(&self) -> &str;
    /// Every feature bit offered; includes [`F_COMMON`].
    fn features(&self) -> u64;
    /// Largest size of each queue; powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// Device configuration space. One whose fields change is kept by the device, so that the answer is always the
    /// same space; it outlives activations and resets as the device does.
    fn config_space(&self) -> DeviceConfig;
    /// The agent wants something while no driver uses the device. `None` when this is not the device for it.
    fn order(&mut self, _order: Order) -> Option<Result<(), String>> {
        None
    }
    /// The driver wrote DRIVER_OK. All enabled queues are in `activation`; a queue the driver did not enable is absent.
    /// After an error the device is gone and the VM ends.
    ///
    /// # Errors
    /// [`DeviceFault::Guest`] when the driver left out a queue this device needs, [`DeviceFault::Host`] otherwise.
    fn activate(self: Box<Self>, activation: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault>;
}

/// A device that a driver uses.
pub trait ActiveDevice: Send {
    /// Descriptors to watch, edge-triggered. Asked once after activation and once after each [`ActiveDevice::resume`];
    /// the device keeps them open while it is active.
    fn sources(&self) -> Vec<Source>;
    /// Descriptor `token` became ready, or the last call for it returned [`Progress::Again`]. Must not block, and must
    /// drain what it was told of or return [`Progress::Again`]. Never called while paused.
    ///
    /// # Errors
    /// The fault ends the VM; the device is not called again.
    fn ready(&mut self, token: u8) -> Result<Progress, DeviceFault>;
    /// When the device wants to be called although no descriptor is ready (a rate limit has room again). Asked after
    /// each other call; a device without an answer sleeps until a descriptor wakes it.
    fn deadline(&self) -> Option<Instant> {
        None
    }
    /// The instant of the last [`ActiveDevice::deadline`] has passed, by a few milliseconds at most. Must not block. Never
    /// called while paused, nor early.
    ///
    /// # Errors
    /// As [`ActiveDevice::ready`].
    fn expired(&mut self) -> Result<(), DeviceFault> {
        Ok(())
    }
    /// Stop touching guest memory. When this returns, no request is in flight. Not called twice in a row.
    ///
    /// # Errors
    /// As [`ActiveDevice::ready`].
    fn pause(&mut self) -> Result<(), DeviceFault>;
    /// Carry on, and look for work that arrived while paused. Only called after [`ActiveDevice::pause`].
    ///
    /// # Errors
    /// As [`ActiveDevice::ready`].
    fn resume(&mut self) -> Result<(), DeviceFault>;
    /// The driver reset the device, or the VM ends: finish or abandon every request, touch guest memory no more.
    ///
    /// # Errors
    /// When the back end cannot be detached.
    fn deactivate(self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault>;
    /// Counters since activation.
    fn stats(&self) -> DeviceStats;
    /// Memory figures, when this is the balloon; asks the driver for newer ones. May be called while paused, when guest
    /// memory is not to be touched.
    fn memory(&mut self) -> Option<MemoryStats> {
        None
    }
    /// The agent wants something; may be called while paused, when guest memory is not to be touched. `None` when this
    /// is not the device for it.
    fn order(&mut self, _order: Order) -> Option<Result<(), String>> {
        None
    }
}

/// What an agent can change on a device while the VM runs. The refusal of one is a sentence for the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The balloon takes this much memory from the guest.
    BalloonTarget {
        /// MiB.
        mib: u32,
    },
    /// The guest gets another address; its connections end.
    VsockCid {
        /// Context id.
        cid: u32,
    },
}

/// What activation gives a device.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// Negotiated features, a subset of those offered.
    pub features: u64,
    /// Enabled queues in index order.
    pub queues: Vec<VirtQueue>,
    /// Interrupts of the device.
    pub interrupts: Arc<Interrupts>,
}

impl Activation {
    /// Exactly the first `N` queues, or the fault that says which is missing. For devices whose queues are all needed.
    ///
    /// # Errors
    /// [`DeviceFault::Guest`].
    pub fn all_queues<const N: usize>(queues: Vec<VirtQueue>, device: &str) -> Result<[VirtQueue; N], DeviceFault> {
        let found = queues.len();
        queues.try_into().map_err(|_| DeviceFault::Guest {
            device: device.to_string(),
            reason: format!("driver enabled {found} of {N} queues"),
        })
    }

    /// The queue of that index, once; `None` when the driver did not enable it.
    pub fn take_queue(&mut self, index: u16) -> Option<VirtQueue> {
        let place = self.queues.iter().position(|queue| queue.index == index)?;
        Some(self.queues.remove(place))
    }

    /// The queue of that index, without which the device cannot work.
    ///
    /// # Errors
    /// [`DeviceFault::Guest`].
    pub fn needed_queue(&mut self, index: u16, device: &str) -> Result<VirtQueue, DeviceFault> {
        self.take_queue(index).ok_or_else(|| DeviceFault::Guest {
            device: device.to_string(),
            reason: format!("driver did not enable queue {index}"),
        })
    }
}

/// A descriptor to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The descriptor.
    pub fd: RawFd,
    /// Given back in [`ActiveDevice::ready`].
    pub token: u8,
    /// Also watch for room to write.
    pub writable: bool,
}

impl Source {
    /// Watch `fd` for input.
    pub fn input(fd: RawFd, token: u8) -> Self {
        Self { fd, token, writable: false }
    }
}

/// Whether a call drained its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing left; call again when the descriptor becomes ready.
    Drained,
    /// The fair share of work is done and more is there; call again soon.
    Again,
}

/// Why a device cannot go on.
#[derive(Debug, Error)]
pub enum DeviceFault {
    /// The driver broke a ring rule.
    #[error("{device} queue {queue}: {fault}")]
    Ring {
        /// Device name.
        device: String,
        /// Queue index.
        queue: u16,
        /// The rule.
        fault: RingFault,
    },
    /// The driver broke another rule.
    #[error("{device}: {reason}")]
    Guest {
        /// Device name.
        device: String,
        /// The rule.
        reason: String,
    },
    /// The host failed.
    #[error("{device}: {what}: {source}")]
    Host {
        /// Device name.
        device: String,
        /// What was tried.
        what: &'static str,
        /// How it failed.
        source: io::Error,
    },
}

impl DeviceFault {
    /// Adds device and queue to a ring fault.
    pub fn ring(device: &str, queue: u16) -> impl Fn(RingFault) -> DeviceFault + '_ {
        move |fault| DeviceFault::Ring { device: device.to_string(), queue, fault }
    }

    /// Adds device and action to an I/O error.
    pub fn host<'a>(device: &'a str, what: &'static str) -> impl Fn(io::Error) -> DeviceFault + 'a {
        move |source| DeviceFault::Host { device: device.to_string(), what, source }
    }
}
