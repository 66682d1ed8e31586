//! Helpers for device tests: RAM, a mock driver, and chains laid out by hand.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupts;
use super::queue::VirtQueue;
use super::{Activation, F_VERSION_1};
use crate::memory::{Bytes, GuestAddress, GuestRam};

/// RAM size of [`ram`].
pub(crate) const RAM_BYTES: usize = 0x20_0000;

/// 2 MiB of RAM at 0.
pub(crate) fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap())
}

/// A new file in memory.
pub(crate) fn memory_file() -> File {
    // SAFETY: the name is a constant.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "no memfd");
    // SAFETY: just created, owned by nobody else.
    unsafe { File::from_raw_fd(fd) }
}

/// A driver-side view of one queue: table at `0x1_0000 * (index + 1)`, rings behind it. `virtio-queue`'s own mock lets
/// its used ring overlap the available ring for more than a few entries, so the layout is ours.
pub(crate) struct Driver<'a> {
    pub ram: &'a Arc<GuestRam>,
    table: u64,
    size: u16,
    next: u16,
    avail: u16,
    kick: Arc<EventFd>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(ram: &'a Arc<GuestRam>, index: u16, size: u16) -> Self {
        let kick = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        Self { ram, table: 0x1_0000 * (u64::from(index) + 1), size, next: 0, avail: 0, kick }
    }

    pub(crate) fn avail_addr(&self) -> u64 {
        self.table + 0x8000
    }

    fn used_addr(&self) -> u64 {
        self.table + 0xa000
    }

    /// The device's side.
    pub(crate) fn queue(&self, index: u16, interrupts: &Arc<Interrupts>) -> VirtQueue {
        let mut queue = Queue::new(self.size).unwrap();
        let low = |addr: u64| Some(u32::try_from(addr).unwrap());
        queue.set_desc_table_address(low(self.table), Some(0));
        queue.set_avail_ring_address(low(self.avail_addr()), Some(0));
        queue.set_used_ring_address(low(self.used_addr()), Some(0));
        queue.set_ready(true);
        VirtQueue::new(index, queue, self.ram.clone(), self.kick.clone(), interrupts.clone()).unwrap()
    }

    /// Writes a descriptor as is.
    pub(crate) fn raw(&self, index: u16, addr: u64, len: u32, flags: u32, next: u16) {
        self.raw_at(self.table + 16 * u64::from(index), addr, len, flags, next);
    }

    /// Writes a descriptor anywhere (indirect tables).
    pub(crate) fn raw_at(&self, at: u64, addr: u64, len: u32, flags: u32, next: u16) {
        let desc = Descriptor::new(addr, len, u16::try_from(flags).unwrap(), next);
        self.ram.write_obj(desc, GuestAddress(at)).unwrap();
    }

    /// Makes `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = self.avail_addr() + 4 + 2 * u64::from(self.avail % self.size);
        self.ram.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_idx(self.avail);
    }

    /// Table and available ring, which no device writes.
    pub(crate) fn rings(&self) -> (Vec<u8>, Vec<u8>) {
        let size = usize::from(self.size);
        (self.bytes(self.table, 16 * size), self.bytes(self.avail_addr(), 6 + 2 * size))
    }

    /// Whether all memory but the three areas of the queue is still zero.
    pub(crate) fn rest_is_untouched(&self) -> bool {
        let size = usize::from(self.size);
        let mut memory = self.bytes(0, RAM_BYTES);
        for (addr, len) in
            [(self.table, 16 * size), (self.avail_addr(), 6 + 2 * size), (self.used_addr(), 6 + 8 * size)]
        {
            let start = usize::try_from(addr).unwrap();
            memory[start..start + len].fill(0);
        }
        memory == vec![0; RAM_BYTES]
    }

    /// The device's used index.
    pub(crate) fn used_idx(&self) -> u16 {
        self.ram.read_obj(GuestAddress(self.used_addr() + 2)).unwrap()
    }

    /// `(head, written)` of the used element at a place of the ring that wraps.
    pub(crate) fn used_at(&self, n: usize) -> (u32, u32) {
        let at = self.used_addr() + 4 + 8 * (n as u64 % u64::from(self.size));
        (self.ram.read_obj(GuestAddress(at)).unwrap(), self.ram.read_obj(GuestAddress(at + 4)).unwrap())
    }

    /// Writes a slot of the available ring as is.
    pub(crate) fn set_head(&self, slot: u16, head: u16) {
        self.ram.write_obj(head, GuestAddress(self.avail_addr() + 4 + 2 * u64::from(slot))).unwrap();
    }

    /// The head in the available ring just before `position`.
    pub(crate) fn offered_before(&self, position: u16) -> u16 {
        let slot = u64::from(position.wrapping_sub(1) % self.size);
        self.ram.read_obj(GuestAddress(self.avail_addr() + 4 + 2 * slot)).unwrap()
    }

    /// Rings the doorbell.
    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Starts over with an empty used ring.
    pub(crate) fn clear_used(&self) {
        self.ram.write_obj(0u16, GuestAddress(self.used_addr() + 2)).unwrap();
    }

    /// Moves the available index without an entry.
    pub(crate) fn jump(&mut self, by: u16) {
        self.avail = self.avail.wrapping_add(by);
        self.set_avail_idx(self.avail);
    }

    /// Writes the available index as is.
    pub(crate) fn set_avail_idx(&self, index: u16) {
        self.ram.write_obj(index, GuestAddress(self.avail_addr() + 2)).unwrap();
    }

    /// Offers a chain of `(addr, len, device writes)`; returns its head.
    pub(crate) fn chain(&mut self, parts: &[(u64, u32, bool)]) -> u16 {
        let head = self.next;
        for (n, (addr, len, write)) in parts.iter().enumerate() {
            let last = n + 1 == parts.len();
            let flags = if *write { VRING_DESC_F_WRITE } else { 0 } | if last { 0 } else { VRING_DESC_F_NEXT };
            self.raw(self.next, *addr, *len, flags, self.next + 1);
            self.next += 1;
        }
        self.offer(head);
        head
    }

    /// `(head, written)` of every used element so far.
    pub(crate) fn used(&self) -> Vec<(u32, u32)> {
        let base = self.used_addr();
        let count: u16 = self.ram.read_obj(GuestAddress(base + 2)).unwrap();
        (0..u64::from(count))
            .map(|n| {
                let at = base + 4 + 8 * n;
                (self.ram.read_obj(GuestAddress(at)).unwrap(), self.ram.read_obj(GuestAddress(at + 4)).unwrap())
            })
            .collect()
    }

    pub(crate) fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.ram.read_slice(&mut buf, GuestAddress(addr)).unwrap();
        buf
    }

    pub(crate) fn write(&self, addr: u64, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(addr)).unwrap();
    }
}

/// Interrupts with one MSI-X vector per queue, enabled.
pub(crate) fn interrupts(queues: u16) -> (Arc<Interrupts>, Vec<Arc<EventFd>>) {
    let fds: Vec<_> = (0..queues).map(|_| Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())).collect();
    let irq = Arc::new(Interrupts::new(fds.clone(), usize::from(queues), None));
    irq.set_msix_enabled(true);
    for queue in 0..queues {
        irq.set_queue_vector(queue, queue);
    }
    (irq, fds)
}

/// An activation with all of `drivers`' queues.
pub(crate) fn activation(ram: &Arc<GuestRam>, drivers: &[&Driver<'_>]) -> (Activation, Vec<Arc<EventFd>>) {
    let (irq, fds) = interrupts(u16::try_from(drivers.len()).unwrap());
    let queues = drivers.iter().zip(0u16..).map(|(d, n)| d.queue(n, &irq)).collect();
    (Activation { ram: ram.clone(), features: F_VERSION_1, queues, interrupts: irq }, fds)
}
