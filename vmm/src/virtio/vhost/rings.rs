//! The rings of an activated device that the kernel works: set up, watched for errors, stopped and gone on with.
//!
//! ```text
//!  set_up --> (the kind's own start) --> running --> (the kind's own stop) --> suspend --> still
//!                                           ^                                               |
//!                                           +------ (the kind's own start) <--- go_on <-----+
//! ```

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::RingWorker;
use crate::memory::GuestRam;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{DeviceFault, Progress, Source};

/// Rings of one vhost instance. Their numbers there are positions in this list; their virtqueue numbers may be others.
pub struct Rings {
    device: String,
    queues: Vec<VirtQueue>,
    interrupts: Arc<Interrupts>,
    /// Written by the kernel when a ring is broken.
    error: EventFd,
    /// Only for rings whose interrupt is not an MSI-X vector: the kernel tells us, we tell the guest.
    calls: Vec<Option<EventFd>>,
    first_token: u8,
}

impl Rings {
    /// Gives `vhost` the negotiated `features`, the guest's memory and `queues` with their doorbells and interrupts.
    /// Sources get tokens from `first_token` on, one more than there are queues.
    ///
    /// # Errors
    /// [`DeviceFault::Host`] when the kernel refuses.
    pub fn set_up(
        vhost: &(impl RingWorker + ?Sized),
        device: &str,
        queues: Vec<VirtQueue>,
        (ram, features): (&GuestRam, u64),
        interrupts: Arc<Interrupts>,
        first_token: u8,
    ) -> Result<Self, DeviceFault> {
        let eventfd = || {
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(DeviceFault::host(device, "make an eventfd"))
        };
        let error = eventfd()?;
        vhost.configure(features, ram).map_err(DeviceFault::host(device, "configure vhost"))?;
        let mut calls = Vec::new();
        for (index, queue) in (0u32..).zip(&queues) {
            vhost
                .set_ring(index, queue.ring(), ram, queue.kick_fd(), error.as_raw_fd())
                .map_err(DeviceFault::host(device, "give vhost a ring"))?;
            let own = if interrupts.queue_eventfd(queue.index).is_none() { Some(eventfd()?) } else { None };
            let call = own.as_ref().map(AsRawFd::as_raw_fd).or(interrupts.queue_eventfd(queue.index));
            vhost.set_call(index, call.unwrap_or(-1)).map_err(DeviceFault::host(device, "give vhost an interrupt"))?;
            calls.push(own);
        }
        Ok(Self { device: device.to_string(), queues, interrupts, error, calls, first_token })
    }

    /// What [`Rings::ready`] wants to hear of.
    pub fn sources(&self) -> Vec<Source> {
        let mut sources = vec![Source::input(self.error.as_raw_fd(), self.first_token)];
        for (token, call) in (self.first_token + 1..).zip(&self.calls) {
            sources.extend(call.as_ref().map(|fd| Source::input(fd.as_raw_fd(), token)));
        }
        sources
    }

    /// A source became ready.
    ///
    /// # Errors
    /// [`DeviceFault::Guest`] when the kernel found a broken ring.
    pub fn ready(&mut self, token: u8) -> Result<Progress, DeviceFault> {
        if token == self.first_token {
            // A spurious wake-up reads nothing.
            if self.error.read().is_ok() {
                return Err(DeviceFault::Guest {
                    device: self.device.clone(),
                    reason: "vhost found a broken ring or buffer".into(),
                });
            }
            return Ok(Progress::Drained);
        }
        let ring = usize::from(token.wrapping_sub(self.first_token)).wrapping_sub(1);
        if let Some(Some(call)) = self.calls.get(ring)
            && call.read().is_ok()
        {
            self.interrupts.queue(self.queues[ring].index);
        }
        Ok(Progress::Drained)
    }

    /// After the kind's own stop: remembers where the kernel left each ring.
    ///
    /// # Errors
    /// [`DeviceFault::Host`].
    pub fn suspend(&mut self, vhost: &(impl RingWorker + ?Sized)) -> Result<(), DeviceFault> {
        for (index, queue) in (0u32..).zip(&mut self.queues) {
            let base = vhost.ring_base(index).map_err(DeviceFault::host(&self.device, "ask vhost for a ring"))?;
            queue.set_position(base);
        }
        Ok(())
    }

    /// Before the kind's own start: sets each ring to where [`Rings::suspend`] found it.
    ///
    /// # Errors
    /// [`DeviceFault::Host`].
    pub fn go_on(&self, vhost: &(impl RingWorker + ?Sized)) -> Result<(), DeviceFault> {
        for (index, queue) in (0u32..).zip(&self.queues) {
            vhost
                .set_ring_base(index, queue.ring_position())
                .map_err(DeviceFault::host(&self.device, "give vhost a ring"))?;
        }
        Ok(())
    }

    /// After the kind's own start: work that arrived meanwhile is looked at.
    pub fn ring_all(&self) {
        self.queues.iter().for_each(VirtQueue::ring_self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Driver, interrupts, ram};

    fn rings(msix: bool) -> (Rings, Arc<Interrupts>) {
        let ram = ram();
        let driver = Driver::new(&ram, 0, 16);
        let (irq, _) = interrupts(1);
        irq.set_msix_enabled(msix);
        let eventfd = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let calls = vec![(!msix).then(eventfd)];
        let (queues, interrupts) = (vec![driver.queue(0, &irq)], irq.clone());
        (Rings { device: "net7".into(), queues, interrupts, error: eventfd(), calls, first_token: 4 }, irq)
    }

    #[test]
    fn broken_ring_is_the_guests_fault_and_a_spurious_wake_is_none() {
        let (mut rings, _) = rings(true);
        assert_eq!(rings.sources().len(), 1, "the kernel raises MSI-X interrupts itself");
        assert_eq!(rings.ready(4).unwrap(), Progress::Drained);
        rings.error.write(1).unwrap();
        let fault = rings.ready(4).unwrap_err();
        assert!(matches!(fault, DeviceFault::Guest { .. }) && fault.to_string().contains("net7"), "{fault}");
    }

    #[test]
    fn interrupt_line_is_raised_for_the_kernel() {
        let (mut rings, irq) = rings(false);
        let tokens: Vec<_> = rings.sources().iter().map(|s| s.token).collect();
        assert_eq!(tokens, [4, 5]);
        rings.ready(5).unwrap();
        assert_eq!(irq.take_isr(), 0, "nothing was called");
        rings.calls[0].as_ref().unwrap().write(1).unwrap();
        rings.ready(5).unwrap();
        assert_eq!(irq.take_isr(), 1);
        // Tokens of others are not ours to trip over.
        for token in [0, 3, 6, 255] {
            assert_eq!(rings.ready(token).unwrap(), Progress::Drained);
        }
    }
}
