//! The inactive socket device.

use std::io;

use super::active::ActiveVsock;
use super::vhost::{Kernel, VhostVsock};
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, DeviceKind, F_COMMON, F_VERSION_1, Order};

/// Packets a data queue holds.
const QUEUE_SIZE: u16 = 128;
/// Events: there is one kind, and several of it say no more than one.
const EVENT_QUEUE_SIZE: u16 = 16;
/// `VIRTIO_VSOCK_F_SEQPACKET` (§5.10.3). Stream sockets need no bit.
const F_VSOCK: u64 = 1 << 1;

/// A socket device.
pub struct Vsock {
    pub(super) name: String,
    pub(super) kernel: Box<dyn Kernel>,
    pub(super) config: DeviceConfig,
}

impl Vsock {
    /// A guest reachable at `cid`, which is its own from now on.
    ///
    /// # Errors
    /// When the kernel refuses `cid`; [`cid_refusal`] has the words for it.
    pub fn new(name: String, kernel: VhostVsock, cid: u32) -> io::Result<Self> {
        Self::with(name, Box::new(kernel), cid)
    }

    pub(super) fn with(name: String, kernel: Box<dyn Kernel>, cid: u32) -> io::Result<Self> {
        kernel.set_cid(cid)?;
        Ok(Self { name, kernel, config: config_of(cid).to_vec().into() })
    }

    /// Changes the address; `true` when it is another than before.
    pub(super) fn change_cid(&mut self, cid: u32) -> Result<bool, String> {
        self.kernel.set_cid(cid).map_err(|e| cid_refusal(cid, &e))?;
        Ok(self.config.update(0, &config_of(cid)))
    }
}

/// §5.10.4: `guest_cid`, le64 @0, whose upper half is reserved and zero.
fn config_of(cid: u32) -> [u8; 8] {
    u64::from(cid).to_le_bytes()
}

/// Why the kernel does not give a guest this context id, and what to do.
pub fn cid_refusal(cid: u32, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => format!("cid {cid} belongs to another VM; give each VM its own"),
        Some(libc::EINVAL) => format!("cid {cid} is reserved; give the VM one from 3 to 4294967294"),
        _ => format!("cannot set cid {cid}: {error}"),
    }
}

impl Device for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        // The kernel knows VERSION_1 since there is vhost-vsock.
        F_VERSION_1 | (F_COMMON | F_VSOCK) & self.kernel.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE]
    }

    fn config_space(&self) -> DeviceConfig {
        self.config.clone()
    }

    fn order(&mut self, order: Order) -> Option<Result<(), String>> {
        match order {
            Order::VsockCid { cid } => Some(self.change_cid(cid).map(|_| ())),
            Order::BalloonTarget { .. } => None,
        }
    }

    fn activate(self: Box<Self>, activation: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
        Ok(Box::new(ActiveVsock::start(*self, activation)?))
    }
}
