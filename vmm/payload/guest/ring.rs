//! The driver's side of a split virtqueue (virtio 1.3 §2.7).

use core::sync::atomic::{Ordering, fence};

use crate::{cpu, memory};

/// Most descriptors of a ring.
pub const MAX_SIZE: u16 = 256;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const NO_INTERRUPT: u16 = 1;

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// A queue's three areas, and the driver's book-keeping.
pub struct Ring {
    size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    doorbell: u64,
    index: u16,
    event_index: bool,
    free: [u16; MAX_SIZE as usize],
    free_len: u16,
    next_available: u16,
    next_used: u16,
    /// Available index when the device was last told.
    told: u16,
}

impl Ring {
    /// Areas for `size` descriptors.
    pub fn new(index: u16, size: u16, doorbell: u64, event_index: bool) -> Self {
        let entries = u64::from(size);
        let mut free = [0; MAX_SIZE as usize];
        for (slot, n) in free.iter_mut().zip((0..size).rev()) {
            *slot = n;
        }
        let mut ring = Self {
            size,
            descriptors: memory::allocate(16 * entries),
            available: memory::allocate(6 + 2 * entries),
            used: memory::allocate(6 + 8 * entries),
            doorbell,
            index,
            event_index,
            free,
            free_len: size,
            next_available: 0,
            next_used: 0,
            told: 0,
        };
        ring.set_interrupts(false);
        ring
    }

    /// Free descriptors.
    pub fn room(&self) -> usize {
        self.free_len.into()
    }

    /// Makes a chain available; its head, which comes back from [`Ring::take`].
    ///
    /// # Panics
    /// Without room for it.
    pub fn put(&mut self, chain: &[Buffer]) -> u16 {
        assert!(chain.len() <= self.room(), "ring is full");
        let first = usize::from(self.free_len) - chain.len();
        let taken = &self.free[first..usize::from(self.free_len)];
        for (n, buffer) in chain.iter().enumerate() {
            let next = taken.get(n + 1).copied();
            let flags = if buffer.writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            self.write_descriptor(taken[n], *buffer, flags, next.unwrap_or(0));
        }
        let head = taken[0];
        self.free_len = first as u16;
        self.publish(head);
        head
    }

    /// Writes one descriptor as it is; for drivers that misbehave.
    pub fn write_descriptor(&self, n: u16, buffer: Buffer, flags: u16, next: u16) {
        let at = self.descriptors + 16 * u64::from(n);
        cpu::write64(at, buffer.address);
        cpu::write32(at + 8, buffer.len);
        cpu::write16(at + 12, flags);
        cpu::write16(at + 14, next);
    }

    /// Makes the chain at `head` available, whatever it is.
    pub fn publish(&mut self, head: u16) {
        cpu::write16(self.available + 4 + 2 * u64::from(self.next_available % self.size), head);
        self.skip(1);
    }

    /// Moves the available index on.
    pub fn skip(&mut self, entries: u16) {
        self.next_available = self.next_available.wrapping_add(entries);
        fence(Ordering::Release);
        cpu::write16(self.available + 2, self.next_available);
    }

    /// Tells the device of new chains, if it wants to know (§2.7.13.4.1).
    pub fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let (new, old) = (self.next_available, self.told);
        self.told = new;
        let wanted = if self.event_index {
            let event = cpu::read16(self.used + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            cpu::read16(self.used) & 1 == 0
        };
        if wanted {
            self.ring_doorbell();
        }
    }

    /// Rings whether the device wants it or not.
    pub fn ring_doorbell(&self) {
        cpu::write16(self.doorbell, self.index);
    }

    /// A chain the device is done with: head and bytes written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if cpu::read16(self.used + 2) == self.next_used {
            return None;
        }
        fence(Ordering::Acquire);
        let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let (head, len) = (cpu::read32(at) as u16, cpu::read32(at + 4));
        self.next_used = self.next_used.wrapping_add(1);
        let mut n = head;
        loop {
            assert!(n < self.size && self.free_len < self.size, "device gave back what it did not have");
            self.free[usize::from(self.free_len)] = n;
            self.free_len += 1;
            let descriptor = self.descriptors + 16 * u64::from(n);
            if cpu::read16(descriptor + 12) & NEXT == 0 {
                return Some((head, len));
            }
            n = cpu::read16(descriptor + 14);
        }
    }

    /// Spins until a chain is done.
    pub fn wait(&mut self) -> (u16, u32) {
        loop {
            if let Some(done) = self.take() {
                return done;
            }
            core::hint::spin_loop();
        }
    }

    /// Asks for an interrupt at the next used chain, or for none.
    pub fn set_interrupts(&mut self, on: bool) {
        if self.event_index {
            let event = if on { self.next_used } else { self.next_used.wrapping_sub(1) };
            cpu::write16(self.available + 4 + 2 * u64::from(self.size), event);
        } else {
            cpu::write16(self.available, if on { 0 } else { NO_INTERRUPT });
        }
        fence(Ordering::SeqCst);
    }
}
