//! Frames out of guest memory onto the cable, on this process's path.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use holdfast_links::{Buffer, HEADER, Link, MAX_BUFFERS, MAX_FRAME};

use super::ahead::append;
use super::turn::Direction;
use crate::rate::Limiter;
use crate::virtio::DeviceFault;
use crate::virtio::chain::Chain;
use crate::virtio::queue::VirtQueue;

/// The transmitting half of a queue pair.
pub(super) struct Transmitter {
    device: String,
    queue: VirtQueue,
    chain: Chain,
    /// Of the frame that is being sent.
    buffers: Vec<Buffer>,
    /// The cable took no more: wait until it is writable.
    pub(super) blocked: bool,
    /// When the limit has room again; until then nothing is sent.
    pub(super) wake_at: Option<Instant>,
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) lost: u64,
}

impl Transmitter {
    pub(super) fn new(device: &str, queue: VirtQueue) -> Self {
        Self {
            device: device.to_string(),
            queue,
            chain: Chain::default(),
            buffers: Vec::new(),
            blocked: false,
            wake_at: None,
            frames: 0,
            bytes: 0,
            lost: 0,
        }
    }

    pub(super) fn kick_fd(&self) -> RawFd {
        self.queue.kick_fd()
    }

    /// Forgets what it waited for.
    pub(super) fn rest(&mut self) {
        self.blocked = false;
        self.wake_at = None;
    }
}

impl Direction for Transmitter {
    fn queue(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    fn step(&mut self, link: &dyn Link, limiter: &mut Option<Limiter>) -> Result<bool, DeviceFault> {
        if self.blocked {
            return Ok(false);
        }
        let fault = DeviceFault::ring(&self.device, self.queue.index);
        if !self.queue.pop(&mut self.chain).map_err(&fault)? {
            return Ok(self.queue.enable_kicks());
        }
        let len = self.chain.readable_len();
        if len < HEADER as u64 || !self.chain.writable.is_empty() {
            return Err(fault(self.chain.shape_fault("a frame is read-only and starts with a 12-byte header")));
        }
        if self.chain.readable.len() > MAX_BUFFERS {
            return Err(fault(self.chain.shape_fault("a frame has at most 1024 pieces")));
        }
        let bytes = len - HEADER as u64;
        if let Some(limiter) = limiter.as_mut() {
            self.wake_at = limiter.check(bytes, Instant::now()).err();
            if self.wake_at.is_some() {
                self.queue.unpop(1);
                return Ok(false);
            }
        }
        if len > MAX_FRAME as u64 {
            self.lost += 1;
        } else {
            self.buffers.clear();
            append(self.queue.ram(), &self.chain.readable, &mut self.buffers);
            match link.transmit(&mut self.buffers) {
                Ok(_) => {
                    self.frames += 1;
                    self.bytes += bytes;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.queue.unpop(1);
                    self.blocked = true;
                    return Ok(false);
                }
                // The cable is cut or the frame is nonsense: frames get lost, as on a wire.
                Err(_) => self.lost += 1,
            }
        }
        // Not before: a frame that the cable refused comes again.
        if let Some(limiter) = limiter.as_mut() {
            limiter.charge(bytes);
        }
        self.queue.push(self.chain.head, 0);
        Ok(true)
    }
}
