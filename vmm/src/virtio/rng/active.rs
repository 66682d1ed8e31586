//! The activated entropy device.

use std::io::Read;

use super::Rng;
use crate::virtio::chain::{Chain, copy_to};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{ActiveDevice, Device, DeviceFault, Progress, Source};
use holdfast_model::contract::vm::DeviceStats;

/// Most bytes given for one request; a driver asks again for more.
const MAX_BYTES: usize = 4096;
/// Requests served before other devices have their turn.
const BUDGET: usize = 64;

pub(super) struct ActiveRng {
    device: Rng,
    queue: VirtQueue,
    chain: Chain,
    stats: DeviceStats,
}

impl ActiveRng {
    pub(super) fn new(device: Rng, queue: VirtQueue) -> Self {
        Self { device, queue, chain: Chain::default(), stats: DeviceStats::default() }
    }

    fn serve(&mut self) -> Result<Progress, DeviceFault> {
        let fault = DeviceFault::ring(&self.device.name, 0);
        self.queue.take_kick();
        for _ in 0..BUDGET {
            if !self.queue.pop(&mut self.chain).map_err(&fault)? {
                if self.queue.enable_kicks() {
                    continue;
                }
                self.queue.notify();
                return Ok(Progress::Drained);
            }
            if !self.chain.readable.is_empty() {
                return Err(fault(self.chain.shape_fault("entropy requests are writable only")));
            }
            let mut buf = [0u8; MAX_BYTES];
            let want = usize::try_from(self.chain.writable_len()).unwrap_or(MAX_BYTES).min(MAX_BYTES);
            random(&mut buf[..want]).map_err(DeviceFault::host(&self.device.name, "read random bytes"))?;
            let done = copy_to(self.queue.ram(), &self.chain.writable, &buf[..want]);
            self.queue.push(self.chain.head, u32::try_from(done).unwrap_or(0));
            self.stats.in_ops += 1;
            self.stats.in_bytes += done as u64;
        }
        self.queue.notify();
        Ok(Progress::Again)
    }
}

impl ActiveDevice for ActiveRng {
    fn sources(&self) -> Vec<Source> {
        vec![Source::input(self.queue.kick_fd(), 0)]
    }

    fn ready(&mut self, _token: u8) -> Result<Progress, DeviceFault> {
        self.serve()
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        self.queue.ring_self();
        Ok(())
    }

    fn deactivate(self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        Ok(Box::new(self.device))
    }

    fn stats(&self) -> DeviceStats {
        self.stats
    }
}

/// Random bytes from the kernel, which never blocks once the host has booted.
fn random(buf: &mut [u8]) -> std::io::Result<()> {
    crate::random::KernelRandom.read_exact(buf)
}
