//! One descriptor chain, read strictly: every rule of virtio 1.3 §2.7 that a chain can break has a name here.
//!
//! `virtio-queue` ends a bad chain silently; a hostile guest deserves a reason instead, so the walk is our own and only
//! the ring bookkeeping is the crate's.

#[cfg(test)]
mod tests;

use thiserror::Error;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::memory::{Bytes, GuestAddress, GuestRam, View, host_iovec, host_pointer};

const DESC_BYTES: usize = 16;

/// What a driver did wrong with a ring.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RingFault {
    /// §2.7.6: the available index ran ahead by more than the queue holds.
    #[error("available index is {ahead} entries ahead of a queue of {size}")]
    AvailIndex {
        /// Entries claimed.
        ahead: u16,
        /// Queue size.
        size: u16,
    },
    /// §2.7.6: more chains at once than the queue has descriptors, so one is offered again before it was used.
    #[error("more than {size} requests are in flight in a queue of {size}")]
    InFlight {
        /// Queue size.
        size: u16,
    },
    /// §2.7.6: a head that is no descriptor.
    #[error("available ring names descriptor {head} of a table of {size}")]
    Head {
        /// Head found.
        head: u16,
        /// Queue size.
        size: u16,
    },
    /// §2.7.5: `next` that is no descriptor.
    #[error("descriptor chain continues at {next} in a table of {size}")]
    Next {
        /// Index found.
        next: u16,
        /// Table size.
        size: u32,
    },
    /// §2.7.5: more descriptors than the table has, so it loops.
    #[error("descriptor chain is longer than its table of {size}")]
    Loop {
        /// Table size.
        size: u32,
    },
    /// §2.7.5.3.1: indirect table inside an indirect table, or indirect together with next.
    #[error("indirect descriptor is nested or chained")]
    Indirect,
    /// §2.7.5.3.1: an indirect descriptor without VIRTIO_F_INDIRECT_DESC.
    #[error("indirect descriptor that was not negotiated")]
    NotNegotiated,
    /// §2.7.5.3: indirect table of no whole descriptors, or more than fit.
    #[error("indirect table of {bytes} bytes")]
    IndirectSize {
        /// Length found.
        bytes: u32,
    },
    /// A buffer that is not RAM.
    #[error("buffer of {len} bytes at {addr:#x} is outside guest memory")]
    Buffer {
        /// Guest physical address.
        addr: u64,
        /// Length.
        len: u32,
    },
    /// §2.7.4.2: device-readable after device-writable.
    #[error("readable descriptor after a writable one")]
    Order,
    /// §2.7.5.2: more than 4 GiB in one chain.
    #[error("descriptor chain is longer than 4 GiB")]
    TooLong,
    /// A ring or table address that is not RAM, or not aligned (§2.7).
    #[error("the {what} at {addr:#x} is outside guest memory or not aligned")]
    Ring {
        /// Which of the three areas.
        what: &'static str,
        /// Guest physical address.
        addr: u64,
    },
    /// The chain does not have the shape its device needs.
    #[error("{what}: chain has {readable} readable and {writable} writable bytes")]
    Shape {
        /// What was expected.
        what: &'static str,
        /// Bytes found.
        readable: u64,
        /// Bytes found.
        writable: u64,
    },
}

/// A guest buffer that was inside RAM when the chain was read. RAM never shrinks while the VM lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// A queue's descriptor table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'ram> {
    /// Its entries' bytes.
    pub(super) memory: View<'ram>,
    /// Entries.
    pub(super) size: u16,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub(super) indirect: bool,
}

/// One request: buffers the device reads, then buffers it writes. Reused between requests to save allocations.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Descriptor index that goes into the used ring.
    pub head: u16,
    /// Device-readable buffers in order.
    pub readable: Vec<Segment>,
    /// Device-writable buffers in order.
    pub writable: Vec<Segment>,
}

impl Chain {
    /// Total device-readable bytes.
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Total device-writable bytes.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// A fault saying that this chain is not what the device expects.
    pub fn shape_fault(&self, what: &'static str) -> RingFault {
        RingFault::Shape { what, readable: self.readable_len(), writable: self.writable_len() }
    }

    /// Walks the chain at `head` of the table `ring`.
    pub(super) fn read(&mut self, ram: &GuestRam, ring: Table<'_>, head: u16) -> Result<(), RingFault> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let (mut table, mut size) = (ring.memory, u32::from(ring.size));
        let (mut index, mut seen, mut indirect, mut bytes) = (u32::from(head), 0u32, false, 0u64);
        loop {
            if index >= size {
                let next = u16::try_from(index).unwrap_or(u16::MAX);
                return Err(RingFault::Next { next, size });
            }
            if seen >= size {
                return Err(RingFault::Loop { size });
            }
            seen += 1;
            let desc = Descriptor::load(table, index);
            let flags = u32::from(desc.flags);
            if flags & VRING_DESC_F_INDIRECT != 0 {
                if !ring.indirect {
                    return Err(RingFault::NotNegotiated);
                }
                if indirect || flags & VRING_DESC_F_NEXT != 0 {
                    return Err(RingFault::Indirect);
                }
                let entries = desc.len / DESC_BYTES as u32;
                if !desc.len.is_multiple_of(DESC_BYTES as u32) || !(1..=0x8000).contains(&entries) {
                    return Err(RingFault::IndirectSize { bytes: desc.len });
                }
                let Some(memory) = View::new(ram, desc.addr, desc.len as usize) else {
                    return Err(RingFault::Ring { what: "indirect descriptor table", addr: desc.addr });
                };
                (table, size, index, seen, indirect) = (memory, entries, 0, 0, true);
                continue;
            }
            let segment = Segment { addr: desc.addr, len: desc.len };
            bytes += u64::from(segment.len);
            if bytes > u64::from(u32::MAX) {
                return Err(RingFault::TooLong);
            }
            if segment.len > 0 && host_pointer(ram, segment.addr, segment.len as usize).is_none() {
                return Err(RingFault::Buffer { addr: segment.addr, len: segment.len });
            }
            if flags & VRING_DESC_F_WRITE != 0 {
                self.writable.push(segment);
            } else if self.writable.is_empty() {
                self.readable.push(segment);
            } else {
                return Err(RingFault::Order);
            }
            if flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = u32::from(desc.next);
        }
    }
}

/// A descriptor (virtio 1.3 §2.7.5): addr le64 @0, len le32 @8, flags le16 @12, next le16 @14.
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline]
    fn load(table: View<'_>, index: u32) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = table.load(index as usize * DESC_BYTES);
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// Total bytes of segments.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.len)).sum()
}

/// Copies from the start of `segments` into `buf`; returns the bytes copied.
pub fn copy_from(ram: &GuestRam, segments: &[Segment], buf: &mut [u8]) -> usize {
    let mut done = 0;
    for segment in segments {
        let len = (buf.len() - done).min(segment.len as usize);
        if ram.read_slice(&mut buf[done..done + len], GuestAddress(segment.addr)).is_err() {
            break;
        }
        done += len;
        if done == buf.len() {
            break;
        }
    }
    done
}

/// Copies `buf` to the start of `segments`; returns the bytes copied.
pub fn copy_to(ram: &GuestRam, segments: &[Segment], buf: &[u8]) -> usize {
    let mut done = 0;
    for segment in segments {
        let len = (buf.len() - done).min(segment.len as usize);
        if ram.write_slice(&buf[done..done + len], GuestAddress(segment.addr)).is_err() {
            break;
        }
        done += len;
        if done == buf.len() {
            break;
        }
    }
    done
}

/// The part of `segments` from byte `skip` on, `take` bytes long at most.
pub fn window(segments: &[Segment], mut skip: u64, mut take: u64) -> impl Iterator<Item = Segment> + '_ {
    segments.iter().filter_map(move |segment| {
        let len = u64::from(segment.len);
        let from = skip.min(len);
        skip -= from;
        let len = (len - from).min(take);
        take -= len;
        // `len` came out of a u32.
        (len > 0).then(|| Segment { addr: segment.addr + from, len: u32::try_from(len).unwrap_or(u32::MAX) })
    })
}

/// Host `iovec`s for segments of a chain that was read from this `ram`.
pub fn iovecs(ram: &GuestRam, segments: impl Iterator<Item = Segment>, out: &mut Vec<libc::iovec>) {
    out.extend(segments.filter_map(|s| host_iovec(ram, GuestAddress(s.addr), s.len as usize)));
}
