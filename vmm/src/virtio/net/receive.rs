//! Frames from the cable into guest memory, on this process's path.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use virtio_queue::QueueT;

use holdfast_links::{HEADER, Link, MAX_FRAME};

use super::ahead::{Ahead, MOST};
use super::features;
use super::turn::Direction;
use crate::rate::Limiter;
use crate::virtio::DeviceFault;
use crate::virtio::chain::Chain;
use crate::virtio::queue::VirtQueue;

/// Shortest Ethernet frame: two addresses and a type.
const MIN_FRAME: usize = HEADER + 14;
/// Place of num_buffers in the header (virtio 1.3 §5.1.6).
const NUM_BUFFERS: usize = 10;

/// A frame that needs more chains than the driver had offered when it came: its end waits in the spill.
#[derive(Debug, Clone, Copy)]
struct Carried {
    len: usize,
    /// Bytes that are in the chains already.
    placed: usize,
}

/// The receiving half of a queue pair.
pub(super) struct Receiver {
    device: String,
    queue: VirtQueue,
    mergeable: bool,
    /// The driver takes over checksums.
    checksum: bool,
    ahead: Ahead,
    chain: Chain,
    carried: Option<Carried>,
    spill: Vec<u8>,
    /// When the limit has room again; until then nothing is received.
    pub(super) wake_at: Option<Instant>,
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) lost: u64,
}

impl Receiver {
    pub(super) fn new(device: &str, queue: VirtQueue, accepted: u64) -> Self {
        Self {
            device: device.to_string(),
            queue,
            mergeable: accepted & features::MRG_RXBUF != 0,
            checksum: accepted & features::GUEST_CSUM != 0,
            ahead: Ahead::default(),
            chain: Chain::default(),
            carried: None,
            spill: vec![0; MAX_FRAME + 1],
            wake_at: None,
            frames: 0,
            bytes: 0,
            lost: 0,
        }
    }

    pub(super) fn kick_fd(&self) -> RawFd {
        self.queue.kick_fd()
    }

    fn must_wait(&mut self, limiter: &mut Option<Limiter>) -> bool {
        let Some(limiter) = limiter else {
            return false;
        };
        // The size shows when the frame is here, so it is paid for afterwards.
        self.wake_at = limiter.check(1, Instant::now()).err();
        self.wake_at.is_some()
    }

    /// Takes chains until `wanted` bytes fit. `false` when the driver has not offered so much; it rings when it offers more.
    fn fill(&mut self, wanted: usize) -> Result<bool, DeviceFault> {
        let fault = DeviceFault::ring(&self.device, self.queue.index);
        while self.ahead.bytes() < wanted {
            if !self.queue.pop(&mut self.chain).map_err(&fault)? {
                if self.queue.enable_kicks() {
                    continue;
                }
                return Ok(false);
            }
            if self.chain.writable_len() < HEADER as u64 || !self.chain.readable.is_empty() {
                return Err(fault(self.chain.shape_fault("a receive buffer is write-only and holds a 12-byte header")));
            }
            if self.chain.writable.len() > MOST {
                return Err(fault(self.chain.shape_fault("a receive buffer has at most 1023 pieces")));
            }
            if self.ahead.is_full_for(self.chain.writable.len()) {
                self.queue.unpop(1);
                return Ok(false);
            }
            self.ahead.push(self.chain.head, &self.chain.writable, self.queue.ram());
        }
        Ok(true)
    }

    /// Goes on with a frame that did not fit; `false` when it still does not.
    fn place(&mut self, Carried { len, placed }: Carried, limiter: &mut Option<Limiter>) -> Result<bool, DeviceFault> {
        if !self.fill(len)? {
            // The driver cannot offer more before it gets some back.
            let exhausted = self.ahead.chains() >= usize::from(self.queue.ring().size()) || self.ahead.is_full_for(1);
            if exhausted {
                self.carried = None;
                self.lost += 1;
            }
            return Ok(exhausted);
        }
        self.ahead.write_at(placed, &self.spill[..len - placed]);
        self.carried = None;
        self.deliver(len, limiter);
        Ok(true)
    }

    /// Gives the chains that hold a frame of `len` bytes (header included) to the driver.
    fn deliver(&mut self, len: usize, limiter: &mut Option<Limiter>) {
        let chains = self.ahead.chains_for(len);
        // virtio 1.3 §5.1.6.4.1: 1 without mergeable buffers, and no flags for a driver that knows none.
        self.ahead.write_at(NUM_BUFFERS, &chains.to_le_bytes());
        if !self.checksum {
            self.ahead.write_at(0, &[0]);
        }
        let mut left = len;
        for _ in 0..chains {
            let Some(chain) = self.ahead.pop() else {
                break;
            };
            let here = left.min(chain.bytes);
            left -= here;
            self.queue.push(chain.head, u32::try_from(here).unwrap_or(u32::MAX));
        }
        let bytes = (len - HEADER) as u64;
        self.frames += 1;
        self.bytes += bytes;
        if let Some(limiter) = limiter {
            limiter.charge(bytes);
        }
    }

    /// Puts chains taken ahead back into the ring; a frame half placed is lost.
    pub(super) fn put_back(&mut self) {
        self.queue.unpop(self.ahead.clear());
        if self.carried.take().is_some() {
            self.lost += 1;
        }
        self.wake_at = None;
    }
}

impl Direction for Receiver {
    fn queue(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    fn step(&mut self, link: &dyn Link, limiter: &mut Option<Limiter>) -> Result<bool, DeviceFault> {
        if let Some(carried) = self.carried {
            return self.place(carried, limiter);
        }
        if self.must_wait(limiter) {
            return Ok(false);
        }
        // With mergeable buffers any frame should fit at once; without, the driver promises that each chain is large enough.
        self.fill(if self.mergeable { MAX_FRAME } else { 1 })?;
        if self.ahead.chains() == 0 {
            return Ok(false);
        }
        let room = self.ahead.bytes();
        match self.ahead.receive(link, &mut self.spill) {
            Ok(len) if len <= room && (MIN_FRAME..=MAX_FRAME).contains(&len) => self.deliver(len, limiter),
            Ok(len) if self.mergeable && (MIN_FRAME..=MAX_FRAME).contains(&len) => {
                self.carried = Some(Carried { len, placed: room });
            }
            // A runt, a giant, or larger than the driver's buffer: lost, as on a wire.
            Ok(_) => self.lost += 1,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The interface is down or the other end is gone; frames stop coming, the guest goes on.
            Err(_) => {
                self.lost += 1;
                return Ok(false);
            }
        }
        Ok(true)
    }
}
