//! Receive chains taken from the ring and not used yet, as one flat list of buffers: nothing is allocated or translated
//! for each frame.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use holdfast_links::buffer::write_at;
use holdfast_links::{Buffer, Link, MAX_BUFFERS};

use crate::memory::{GuestAddress, GuestRam, host_iovec};
use crate::virtio::chain::Segment;

/// Most buffers kept ready: one place is for what does not fit.
pub(super) const MOST: usize = MAX_BUFFERS - 1;

/// Appends guest memory to `out`. The buffers may be used as long as `ram` lives.
pub(super) fn append(ram: &Arc<GuestRam>, segments: &[Segment], out: &mut Vec<Buffer>) {
    for segment in segments {
        if let Some(iovec) = host_iovec(ram, GuestAddress(segment.addr), segment.len as usize) {
            // SAFETY: guest memory, mapped as long as the queue that holds `ram` lives, which is longer than the lists of
            // its buffers; nobody makes references to it.
            out.push(unsafe { Buffer::new(iovec.iov_base.cast(), iovec.iov_len) });
        }
    }
}

/// One chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// For the used ring.
    pub head: u16,
    /// Bytes it holds.
    pub bytes: usize,
    buffers: usize,
}

/// Chains in ring order.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    chains: VecDeque<Taken>,
    buffers: Vec<Buffer>,
    /// First of `buffers` in use.
    start: usize,
    bytes: usize,
}

impl Ahead {
    /// Bytes that all chains hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of chains.
    pub(super) fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Whether `more` buffers would be too many.
    pub(super) fn is_full_for(&self, more: usize) -> bool {
        self.buffers.len() - self.start + more > MOST
    }

    /// Adds the chain at `head`, made of `segments`.
    pub(super) fn push(&mut self, head: u16, segments: &[Segment], ram: &Arc<GuestRam>) {
        // Used places at the front are given up now and then, not at each frame.
        if self.start > MAX_BUFFERS {
            self.buffers.drain(..self.start);
            self.start = 0;
        }
        let before = self.buffers.len();
        append(ram, segments, &mut self.buffers);
        let bytes = self.buffers[before..].iter().map(Buffer::len).sum();
        self.chains.push_back(Taken { head, bytes, buffers: self.buffers.len() - before });
        self.bytes += bytes;
    }

    /// Receives one frame into the chains, and what does not fit into `spill`.
    pub(super) fn receive(&mut self, link: &dyn Link, spill: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the spill outlives this call, and nobody looks at it before the buffer is gone again.
        self.buffers.push(unsafe { Buffer::new(spill.as_mut_ptr(), spill.len()) });
        let got = link.receive(&mut self.buffers[self.start..]);
        self.buffers.pop();
        got
    }

    /// Writes into the chains from byte `at` on.
    pub(super) fn write_at(&self, at: usize, data: &[u8]) {
        write_at(&self.buffers[self.start..], at, data);
    }

    /// Number of chains that hold the first `len` bytes.
    pub(super) fn chains_for(&self, len: usize) -> u16 {
        let mut covered = 0;
        let whole = self.chains.iter().take_while(|chain| {
            let needed = covered < len;
            covered += chain.bytes;
            needed
        });
        u16::try_from(whole.count()).unwrap_or(u16::MAX)
    }

    /// Takes the first chain out.
    pub(super) fn pop(&mut self) -> Option<Taken> {
        let chain = self.chains.pop_front()?;
        self.start += chain.buffers;
        self.bytes -= chain.bytes;
        if self.chains.is_empty() {
            self.buffers.clear();
            self.start = 0;
        }
        Some(chain)
    }

    /// Forgets all chains; their number.
    pub(super) fn clear(&mut self) -> u16 {
        let count = u16::try_from(self.chains.len()).unwrap_or(u16::MAX);
        *self = Self::default();
        count
    }
}
