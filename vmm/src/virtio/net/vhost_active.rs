//! The activated network card, vhost path: the kernel works the rings, we only hear of ring errors (and pass on
//! interrupts when the driver uses no MSI-X).

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::Net;
use super::device::Backend;
use super::vhost::VhostNet;
use crate::memory::GuestRam;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{ActiveDevice, Device, DeviceFault, DeviceStats, Progress, Source};

/// Token of the error eventfd.
const ERROR: u8 = 0;
/// Token of ring 0's call eventfd, then ring 1's.
const CALL: u8 = 1;

pub(super) struct ActiveVhost {
    device: Net,
    queues: [VirtQueue; 2],
    interrupts: Arc<Interrupts>,
    error: EventFd,
    /// Only for rings whose interrupt is not an MSI-X vector.
    calls: [Option<EventFd>; 2],
}

impl ActiveVhost {
    pub(super) fn start(
        device: Net,
        queues: [VirtQueue; 2],
        ram: &GuestRam,
        features: u64,
        interrupts: Arc<Interrupts>,
    ) -> Result<Self, DeviceFault> {
        let name = device.options.name.clone();
        let eventfd = || {
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(DeviceFault::host(&name, "make an eventfd"))
        };
        let mut active = Self { device, queues, interrupts, error: eventfd()?, calls: [None, None] };
        let vhost = active.vhost()?;
        vhost.configure(features, ram).map_err(DeviceFault::host(&name, "configure vhost-net"))?;
        let mut calls = [None, None];
        for (index, queue) in (0u32..).zip(&active.queues) {
            vhost
                .set_ring(index, queue.ring(), ram, queue.kick_fd(), active.error.as_raw_fd())
                .map_err(DeviceFault::host(&name, "give vhost-net a ring"))?;
            let call = match active.interrupts.queue_eventfd(queue.index) {
                Some(fd) => fd,
                None => calls[index as usize].insert(eventfd()?).as_raw_fd(),
            };
            vhost.set_call(index, call).map_err(DeviceFault::host(&name, "give vhost-net an interrupt"))?;
        }
        active.calls = calls;
        active.set_backends(true)?;
        Ok(active)
    }

    fn vhost(&self) -> Result<&VhostNet, DeviceFault> {
        match &self.device.backend {
            Backend::Vhost(vhost) => Ok(vhost),
            Backend::User => Err(DeviceFault::Guest {
                device: self.device.options.name.clone(),
                reason: "has no vhost back end".into(),
            }),
        }
    }

    fn set_backends(&self, running: bool) -> Result<(), DeviceFault> {
        let tap = running.then(|| self.device.tap.fd());
        for index in 0..2 {
            self.vhost()?
                .set_backend(index, tap)
                .map_err(DeviceFault::host(&self.device.options.name, "attach the tap to vhost-net"))?;
        }
        Ok(())
    }
}

impl ActiveDevice for ActiveVhost {
    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![Source::input(self.error.as_raw_fd(), ERROR)];
        for (token, call) in (CALL..).zip(&self.calls) {
            sources.extend(call.as_ref().map(|fd| Source::input(fd.as_raw_fd(), token)));
        }
        sources
    }

    fn ready(&mut self, token: u8) -> Result<Progress, DeviceFault> {
        if token == ERROR {
            // A spurious wake-up reads nothing.
            if self.error.read().is_ok() {
                return Err(DeviceFault::Guest {
                    device: self.device.options.name.clone(),
                    reason: "vhost-net found a broken ring or buffer".into(),
                });
            }
            return Ok(Progress::Drained);
        }
        let ring = usize::from(token - CALL);
        if let Some(Some(call)) = self.calls.get(ring)
            && call.read().is_ok()
        {
            self.interrupts.queue(self.queues[ring].index);
        }
        Ok(Progress::Drained)
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        self.set_backends(false)
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        self.set_backends(true)?;
        for queue in &self.queues {
            queue.ring_self();
        }
        Ok(())
    }

    fn deactivate(self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        self.set_backends(false)?;
        Ok(Box::new(self.device))
    }

    /// The kernel counts on the tap interface instead.
    fn stats(&self) -> DeviceStats {
        DeviceStats::default()
    }
}
