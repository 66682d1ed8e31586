//! A virtqueue as a device holds it while activated: the ring, the doorbell and the interrupt.

#[cfg(test)]
mod tests;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, RingFault, Table};
use super::interrupt::Interrupts;
use crate::memory::{Area, GuestRam};

/// An enabled virtqueue.
#[derive(Debug)]
pub struct VirtQueue {
    /// Index within the device.
    pub index: u16,
    queue: Queue,
    descriptors: Area,
    available: Area,
    used: Area,
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
    /// When an area of it is not RAM, or not aligned.
    pub fn new(
        index: u16,
        queue: Queue,
        ram: Arc<GuestRam>,
        kick: Arc<EventFd>,
        interrupts: Arc<Interrupts>,
    ) -> Result<Self, RingFault> {
        let size = usize::from(queue.size());
        let area = |what, addr: u64, len, align| {
            let aligned = addr != 0 && addr.is_multiple_of(align);
            aligned.then(|| Area::new(&ram, addr, len)).flatten().ok_or(RingFault::Ring { what, addr })
        };
        // virtio 1.3 §2.7: sizes, with the event index words, and alignments of the three areas.
        let descriptors = area("descriptor table", queue.desc_table(), 16 * size, 16)?;
        let available = area("available ring", queue.avail_ring(), 6 + 2 * size, 2)?;
        let used = area("used ring", queue.used_ring(), 6 + 8 * size, 4)?;
        let told = queue.next_used();
        Ok(Self {
            index,
            queue,
            descriptors,
            available,
            used,
            ram,
            kick,
            interrupts,
            indirect: true,
            in_flight: 0,
            told,
        })
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
        let available = self.available.view();
        let avail = u16::from_le(available.word(2).load(Ordering::Acquire));
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
        let head = u16::from_le_bytes(available.load(4 + 2 * self.slot(next)));
        if head >= size {
            return Err(RingFault::Head { head, size });
        }
        let table = Table { memory: self.descriptors.view(), size, indirect: self.indirect };
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
    pub fn push(&mut self, head: u16, written: u32) {
        let (next, used) = (self.queue.next_used(), self.used.view());
        // virtio 1.3 §2.7.8: id le32, len le32.
        let [[i0, i1, i2, i3], [l0, l1, l2, l3]] = [u32::from(head).to_le_bytes(), written.to_le_bytes()];
        used.store(4 + 8 * self.slot(next), [i0, i1, i2, i3, l0, l1, l2, l3]);
        self.in_flight = self.in_flight.saturating_sub(1);
        let next = next.wrapping_add(1);
        used.word(2).store(next.to_le(), Ordering::Release);
        self.queue.set_next_used(next);
    }

    /// The place of a free-running position in a ring, whose size is a power of two (virtio 1.3 §2.7).
    #[inline]
    fn slot(&self, position: u16) -> usize {
        usize::from(position & (self.queue.size() - 1))
    }

    /// Interrupts the driver if it wants to know of the pushes so far.
    pub fn notify(&mut self) {
        let (used, size) = (self.queue.next_used(), usize::from(self.queue.size()));
        let pushed = used.wrapping_sub(std::mem::replace(&mut self.told, used));
        if pushed == 0 {
            return;
        }
        // §2.7.7.2: used entries are written before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wanted = if self.queue.event_idx_enabled() {
            // The driver's event index, behind the entries.
            let event = u16::from_le(self.available.view().word(4 + 2 * size).load(Ordering::Relaxed));
            used.wrapping_sub(event).wrapping_sub(1) < pushed
        } else {
            // VIRTQ_AVAIL_F_NO_INTERRUPT
            u16::from_le(self.available.view().word(0).load(Ordering::Relaxed)) & 1 == 0
        };
        if wanted {
            self.interrupts.queue(self.index);
        }
    }

    /// Asks for a doorbell at the next request. `true` when one is there already.
    pub fn enable_kicks(&mut self) -> bool {
        let (used, next) = (self.used.view(), self.queue.next_avail());
        if self.queue.event_idx_enabled() {
            // The device's event index, behind the entries (§2.7.8).
            used.word(4 + 8 * usize::from(self.queue.size())).store(next.to_le(), Ordering::Relaxed);
        } else {
            used.word(0).store(0, Ordering::Relaxed);
        }
        // §2.7.10.1: asked for, and only then looked.
        fence(Ordering::SeqCst);
        u16::from_le(self.available.view().word(2).load(Ordering::Acquire)) != next
    }

    /// Asks for no doorbells while we poll.
    pub fn disable_kicks(&mut self) {
        // With event indices there is nothing to do: the driver rings when it passes ours, which it has.
        if !self.queue.event_idx_enabled() {
            self.used.view().word(0).store(VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
        }
    }
}
