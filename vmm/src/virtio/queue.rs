//! A virtqueue as a device holds it while activated: the ring, the doorbell and the interrupt.

#[cfg(test)]
mod tests;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, RingFault, Table};
use super::interrupt::Interrupts;
use crate::memory::{self, GuestAddress, GuestRam, load, store};

/// An enabled virtqueue.
#[derive(Debug)]
pub struct VirtQueue {
    /// Index within the device.
    pub index: u16,
    queue: Queue,
    ram: Arc<GuestRam>,
    kick: Arc<EventFd>,
    interrupts: Arc<Interrupts>,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    indirect: bool,
    /// Chains taken and not given back.
    in_flight: u16,
    /// Position of the used ring at the last [`VirtQueue::notify`].
    told: u16,
}

impl VirtQueue {
    /// Takes a queue the driver has set up.
    ///
    /// # Errors
    /// When an area of it is not RAM.
    pub fn new(
        index: u16,
        queue: Queue,
        ram: Arc<GuestRam>,
        kick: Arc<EventFd>,
        interrupts: Arc<Interrupts>,
    ) -> Result<Self, RingFault> {
        let size = u64::from(queue.size());
        // virtio 1.3 §2.7: sizes of the three areas, with the event index words.
        for (what, addr, len) in [
            ("descriptor table", queue.desc_table(), 16 * size),
            ("available ring", queue.avail_ring(), 6 + 2 * size),
            ("used ring", queue.used_ring(), 6 + 8 * size),
        ] {
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if addr == 0 || crate::memory::host_slice(&ram, GuestAddress(addr), len).is_none() {
                return Err(RingFault::Ring { what, addr });
            }
        }
        let told = queue.next_used();
        Ok(Self { index, queue, ram, kick, interrupts, indirect: true, in_flight: 0, told })
    }

    /// The driver did not negotiate VIRTIO_F_INDIRECT_DESC.
    pub fn without_indirect(self) -> Self {
        Self { indirect: false, ..self }
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Ring state: addresses, size, indices.
    pub fn ring(&self) -> &Queue {
        &self.queue
    }

    /// The doorbell's descriptor.
    pub fn kick_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }

    /// Clears the doorbell.
    pub fn take_kick(&self) {
        // EAGAIN only says that it was not rung.
        let _ = self.kick.read();
    }

    /// Rings our own doorbell, so that work left over is seen after a resume.
    pub fn ring_self(&self) {
        let _ = self.kick.write(1);
    }

    /// The available index looked at next.
    pub fn ring_position(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Follows a kernel back end that worked the ring up to `next`.
    pub fn set_position(&mut self, next: u16) {
        self.queue.set_next_avail(next);
    }

    /// The next request, into `chain`. `false` when the ring is empty.
    ///
    /// # Errors
    /// [`RingFault`] when the driver broke a rule; the queue must not be used again.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingFault> {
        let size = self.queue.size();
        let avail = u16::from_le(self.avail_word(2)?.load(Ordering::Acquire));
        let next = self.queue.next_avail();
        let ahead = avail.wrapping_sub(next);
        if ahead == 0 {
            return Ok(false);
        }
        if ahead > size {
            return Err(RingFault::AvailIndex { ahead, size });
        }
        // A descriptor that is in flight belongs to the device (§2.7.13): each chain has at least one.
        if self.in_flight >= size {
            return Err(RingFault::InFlight { size });
        }
        let slot = self.queue.avail_ring() + 4 + 2 * u64::from(next % size);
        let head = load(&self.ram, slot).ok_or(RingFault::Ring { what: "available ring", addr: slot })?;
        let head = u16::from_le_bytes(head);
        if head >= size {
            return Err(RingFault::Head { head, size });
        }
        let table = Table { addr: self.queue.desc_table(), size, indirect: self.indirect };
        chain.read(&self.ram, table, head)?;
        self.queue.set_next_avail(next.wrapping_add(1));
        self.in_flight += 1;
        Ok(true)
    }

    /// Puts the last `count` popped chains back: they were not used.
    pub fn unpop(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
        self.in_flight = self.in_flight.saturating_sub(count);
    }

    /// Gives a chain back with `written` bytes in its writable part.
    ///
    /// # Errors
    /// When the used ring is not RAM any more (it always is).
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), RingFault> {
        let (size, next) = (self.queue.size(), self.queue.next_used());
        // virtio 1.3 §2.7.8: id le32, len le32.
        let [[i0, i1, i2, i3], [l0, l1, l2, l3]] = [u32::from(head).to_le_bytes(), written.to_le_bytes()];
        let addr = self.queue.used_ring() + 4 + 8 * u64::from(next % size);
        if !store(&self.ram, addr, [i0, i1, i2, i3, l0, l1, l2, l3]) {
            return Err(RingFault::Ring { what: "used ring", addr });
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        let next = next.wrapping_add(1);
        self.used_word(2)?.store(next.to_le(), Ordering::Release);
        self.queue.set_next_used(next);
        Ok(())
    }

    /// Interrupts the driver if it wants to know of the pushes so far.
    ///
    /// # Errors
    /// As [`VirtQueue::push`].
    pub fn notify(&mut self) -> Result<(), RingFault> {
        let (used, size) = (self.queue.next_used(), u64::from(self.queue.size()));
        let pushed = used.wrapping_sub(std::mem::replace(&mut self.told, used));
        if pushed == 0 {
            return Ok(());
        }
        // §2.7.7.2: used entries are written before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wanted = if self.queue.event_idx_enabled() {
            let event = u16::from_le(self.avail_word(4 + 2 * size)?.load(Ordering::Relaxed));
            used.wrapping_sub(event).wrapping_sub(1) < pushed
        } else {
            // VIRTQ_AVAIL_F_NO_INTERRUPT
            u16::from_le(self.avail_word(0)?.load(Ordering::Relaxed)) & 1 == 0
        };
        if wanted {
            self.interrupts.queue(self.index);
        }
        Ok(())
    }

    /// The 16-bit word at `offset` of the available ring: 0 flags, 2 index, behind the entries the driver's event index.
    #[inline]
    fn avail_word(&self, offset: u64) -> Result<&AtomicU16, RingFault> {
        let addr = self.queue.avail_ring() + offset;
        memory::index(&self.ram, addr).ok_or(RingFault::Ring { what: "available ring", addr })
    }

    /// The 16-bit word at `offset` of the used ring.
    #[inline]
    fn used_word(&self, offset: u64) -> Result<&AtomicU16, RingFault> {
        let addr = self.queue.used_ring() + offset;
        memory::index(&self.ram, addr).ok_or(RingFault::Ring { what: "used ring", addr })
    }

    /// Asks for a doorbell at the next request. `true` when one is there already.
    ///
    /// # Errors
    /// As [`VirtQueue::push`].
    pub fn enable_kicks(&mut self) -> Result<bool, RingFault> {
        let addr = self.queue.used_ring();
        self.queue.enable_notification(&*self.ram).map_err(|_| RingFault::Ring { what: "used ring", addr })
    }

    /// Asks for no doorbells while we poll.
    ///
    /// # Errors
    /// As [`VirtQueue::push`].
    pub fn disable_kicks(&mut self) -> Result<(), RingFault> {
        let addr = self.queue.used_ring();
        self.queue.disable_notification(&*self.ram).map_err(|_| RingFault::Ring { what: "used ring", addr })
    }
}
