//! A kernel that only takes notes, for tests and fuzzing.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::Queue;

use super::Vsock;
use super::vhost::Kernel;
use crate::memory::GuestRam;
use crate::virtio::Device;
use crate::virtio::vhost::RingWorker;

/// What was asked of it, in order, and what it answers.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) asked: Vec<String>,
    /// Ring positions.
    pub(super) bases: [u16; 2],
    /// The error of the next request, if any.
    pub(super) refuse: Option<i32>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct PaperKernel(pub(super) Arc<Mutex<Notes>>);

impl PaperKernel {
    fn note(&self, what: String) -> io::Result<()> {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.asked.push(what);
        notes.refuse.take().map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)))
    }
}

impl Kernel for PaperKernel {
    fn features(&self) -> u64 {
        u64::MAX
    }

    fn set_cid(&self, cid: u32) -> io::Result<()> {
        self.note(format!("cid {cid}"))
    }

    fn set_running(&self, running: bool) -> io::Result<()> {
        self.note(if running { "run".into() } else { "stop".into() })
    }
}

impl RingWorker for PaperKernel {
    fn configure(&self, features: u64, _: &GuestRam) -> io::Result<()> {
        self.note(format!("features {features:#x}"))
    }

    fn set_ring(&self, index: u32, _: &Queue, _: &GuestRam, _: RawFd, _: RawFd) -> io::Result<()> {
        self.note(format!("ring {index}"))
    }

    fn set_call(&self, index: u32, _: RawFd) -> io::Result<()> {
        self.note(format!("call {index}"))
    }

    fn ring_base(&self, index: u32) -> io::Result<u16> {
        self.note(format!("base of {index}?"))?;
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(notes.bases.get(index as usize).copied().unwrap_or(0))
    }

    fn set_ring_base(&self, index: u32, base: u16) -> io::Result<()> {
        self.note(format!("base of {index}: {base}"))
    }
}

/// A device whose kernel takes notes.
pub(crate) fn vsock(cid: u32) -> Option<(Vsock, PaperKernel)> {
    let kernel = PaperKernel::default();
    let device = Vsock::with("vsock".into(), Box::new(kernel.clone()), cid).ok()?;
    Some((device, kernel))
}

/// Hostile configuration accesses, then a hostile event queue with an event due.
pub(super) fn drive(data: &[u8]) {
    let Some((mut device, _)) = vsock(3) else {
        return;
    };
    let config = device.config_space();
    for step in data.chunks(9).take(64) {
        let mut at = [0; 8];
        at[..step.len().min(8)].copy_from_slice(&step[..step.len().min(8)]);
        config.write(u64::from_le_bytes(at), &step[step.len() / 2..]);
        config.read(u64::from_le_bytes(at), &mut [0; 8]);
    }
    assert_eq!(config.le32(0), 3, "a driver cannot change its address");
    let order = crate::virtio::Order::VsockCid { cid: 4 + u32::from(data.first().copied().unwrap_or(0)) };
    let _ = device.order(order);
    crate::virtio::fuzzing::drive_with(Box::new(device), data, |active| {
        let _ = active.order(crate::virtio::Order::VsockCid { cid: 3 });
    });
}
