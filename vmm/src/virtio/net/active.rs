//! The activated network card, user-space path: `readv` and `writev` straight between the tap and guest memory.

use std::collections::VecDeque;
use std::io;

use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::Net;
use super::tap::HEADER;
use crate::virtio::chain::{Chain, Segment, copy_to, iovecs};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{ActiveDevice, Device, DeviceFault, DeviceStats, Progress, Source};

/// Token of the receive queue's doorbell; equals its queue index.
const RECEIVE: u8 = 0;
/// Token of the transmit queue's doorbell.
const TRANSMIT: u8 = 1;
/// Token of the tap.
const TAP: u8 = 2;
/// Frames handled in one go before other devices have their turn.
const BUDGET: usize = 256;
/// Largest frame a tap with offloads delivers, header included (64 KiB segment plus link and virtio headers).
const MAX_FRAME: u64 = 65_535 + 18 + HEADER as u64;

/// A receive chain taken from the ring and not used yet.
struct Buffer {
    head: u16,
    len: u64,
    segments: Vec<Segment>,
}

pub(super) struct ActiveTap {
    device: Net,
    receive: VirtQueue,
    transmit: VirtQueue,
    mergeable: bool,
    /// Receive chains in ring order, at least one frame's worth when the driver keeps up.
    buffers: VecDeque<Buffer>,
    buffered: u64,
    chain: Chain,
    iovecs: Vec<libc::iovec>,
    /// The tap took no more: transmit waits until it is writable.
    transmit_blocked: bool,
    stats: DeviceStats,
}

// SAFETY: `iovecs` is scratch space, filled and used within one call and empty between calls.
unsafe impl Send for ActiveTap {}

impl ActiveTap {
    pub(super) fn new(device: Net, [receive, transmit]: [VirtQueue; 2], features: u64) -> Self {
        Self {
            device,
            receive,
            transmit,
            mergeable: features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0,
            buffers: VecDeque::new(),
            buffered: 0,
            chain: Chain::default(),
            iovecs: Vec::new(),
            transmit_blocked: false,
            stats: DeviceStats::default(),
        }
    }

    fn transmit(&mut self) -> Result<Progress, DeviceFault> {
        let fault = DeviceFault::ring(&self.device.options.name, 1);
        self.transmit.take_kick();
        if self.transmit_blocked {
            return Ok(Progress::Drained);
        }
        for _ in 0..BUDGET {
            if !self.transmit.pop(&mut self.chain).map_err(&fault)? {
                if self.transmit.enable_kicks().map_err(&fault)? {
                    continue;
                }
                self.transmit.notify().map_err(&fault)?;
                return Ok(Progress::Drained);
            }
            let len = self.chain.readable_len();
            if len < HEADER as u64 {
                return Err(fault(self.chain.shape_fault("a frame starts with a 12-byte header")));
            }
            self.iovecs.clear();
            iovecs(self.transmit.ram(), self.chain.readable.iter().copied(), &mut self.iovecs);
            let sent = self.device.tap.send(&self.iovecs);
            self.iovecs.clear();
            match sent {
                Ok(_) => {
                    self.stats.out_ops += 1;
                    self.stats.out_bytes += len - HEADER as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.transmit.unpop(1);
                    self.transmit_blocked = true;
                    break;
                }
                // The link is down or the frame is nonsense: frames get lost, as on a wire.
                Err(_) => self.stats.errors += 1,
            }
            self.transmit.push(self.chain.head, 0).map_err(&fault)?;
        }
        self.transmit.notify().map_err(&fault)?;
        Ok(if self.transmit_blocked { Progress::Drained } else { Progress::Again })
    }

    /// Takes chains until one frame of any size fits; `false` when the driver has offered too little.
    fn fill(&mut self) -> Result<bool, DeviceFault> {
        let fault = DeviceFault::ring(&self.device.options.name, 0);
        loop {
            let enough = if self.mergeable { self.buffered >= MAX_FRAME } else { !self.buffers.is_empty() };
            if enough {
                return Ok(true);
            }
            if !self.receive.pop(&mut self.chain).map_err(&fault)? {
                if self.receive.enable_kicks().map_err(&fault)? {
                    continue;
                }
                // Less than the largest frame: still better than nothing once it holds a usual one.
                return Ok(self.mergeable && self.buffered >= 2048);
            }
            let len = self.chain.writable_len();
            if len < HEADER as u64 {
                return Err(fault(self.chain.shape_fault("a receive buffer holds a 12-byte header")));
            }
            self.buffered += len;
            self.buffers.push_back(Buffer {
                head: self.chain.head,
                len,
                segments: std::mem::take(&mut self.chain.writable),
            });
        }
    }

    fn receive(&mut self) -> Result<Progress, DeviceFault> {
        self.receive.take_kick();
        let mut progress = Progress::Again;
        for _ in 0..BUDGET {
            if !self.fill()? {
                progress = Progress::Drained;
                break;
            }
            let chains = if self.mergeable { self.buffers.len() } else { 1 };
            self.iovecs.clear();
            for buffer in self.buffers.iter().take(chains) {
                iovecs(self.receive.ram(), buffer.segments.iter().copied(), &mut self.iovecs);
            }
            let got = self.device.tap.receive(&self.iovecs);
            self.iovecs.clear();
            match got {
                Ok(len) if len >= HEADER => self.deliver(len as u64)?,
                Ok(_) => self.stats.errors += 1,
                Err(e) => {
                    // EIO: the interface is down, or its device is gone; frames stop coming, the guest goes on.
                    if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                        self.stats.errors += 1;
                    }
                    progress = Progress::Drained;
                    break;
                }
            }
        }
        self.receive.notify().map_err(DeviceFault::ring(&self.device.options.name, 0))?;
        Ok(progress)
    }

    /// Gives the chains that hold a frame of `len` bytes (header included) to the driver.
    fn deliver(&mut self, len: u64) -> Result<(), DeviceFault> {
        let fault = DeviceFault::ring(&self.device.options.name, 0);
        let (mut used, mut covered) = (0u16, 0u64);
        for buffer in &self.buffers {
            used += 1;
            covered += buffer.len;
            if covered >= len {
                break;
            }
        }
        // num_buffers @10 of the header (virtio 1.3 §5.1.6.4.1); 1 without mergeable buffers.
        let header: Vec<Segment> = match self.buffers.front() {
            Some(first) => crate::virtio::chain::window(&first.segments, 10, 2).collect(),
            None => return Ok(()),
        };
        copy_to(self.receive.ram(), &header, &used.to_le_bytes());
        let mut left = len;
        for _ in 0..used {
            let Some(buffer) = self.buffers.pop_front() else {
                break;
            };
            self.buffered -= buffer.len;
            let here = left.min(buffer.len);
            left -= here;
            self.receive.push(buffer.head, u32::try_from(here).unwrap_or(u32::MAX)).map_err(&fault)?;
            self.chain.writable = buffer.segments;
        }
        self.stats.in_ops += 1;
        self.stats.in_bytes += len - HEADER as u64;
        Ok(())
    }

    /// Puts chains taken ahead back into the ring.
    fn unfill(&mut self) {
        self.receive.unpop(u16::try_from(self.buffers.len()).unwrap_or(0));
        self.buffers.clear();
        self.buffered = 0;
    }
}

impl ActiveDevice for ActiveTap {
    fn sources(&self) -> Vec<Source> {
        vec![
            Source::input(self.receive.kick_fd(), RECEIVE),
            Source::input(self.transmit.kick_fd(), TRANSMIT),
            Source { fd: self.device.tap.fd(), token: TAP, writable: true },
        ]
    }

    fn ready(&mut self, token: u8) -> Result<Progress, DeviceFault> {
        match token {
            RECEIVE => self.receive(),
            TRANSMIT => self.transmit(),
            _ => {
                if std::mem::take(&mut self.transmit_blocked) && self.transmit()? == Progress::Again {
                    self.transmit.ring_self();
                }
                self.receive()
            }
        }
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        self.unfill();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        self.transmit_blocked = false;
        self.receive.ring_self();
        self.transmit.ring_self();
        Ok(())
    }

    fn deactivate(self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        Ok(Box::new(self.device))
    }

    fn stats(&self) -> DeviceStats {
        self.stats
    }
}
