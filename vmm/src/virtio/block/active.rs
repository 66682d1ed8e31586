//! The activated block device.

use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use super::Block;
use super::engine::{DEPTH, Done, Job, Op};
use super::request::{HEADER, Request};
use crate::virtio::chain::{Chain, Segment, copy_to, iovecs, window};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{ActiveDevice, Device, DeviceFault, DeviceStats, Progress, Source};

/// Token of the doorbell.
const KICK: u8 = 0;
/// Token of the engine's completions.
const DONE: u8 = 1;
/// Bytes of the serial.
const ID_BYTES: usize = 20;

/// A request the engine works on.
#[derive(Debug, Clone, Copy)]
struct Pending {
    head: u16,
    status: Segment,
    /// Bytes the driver finds in its writable part, status included, when all went well.
    written: u32,
    read: u64,
    wrote: u64,
}

pub(super) struct ActiveBlock {
    device: Block,
    queue: VirtQueue,
    /// Without VIRTIO_BLK_F_FLUSH a write is durable when it completes (virtio 1.3 §5.2.6.2).
    write_through: bool,
    pending: Vec<Option<Pending>>,
    free: Vec<u16>,
    chain: Chain,
    stats: DeviceStats,
}

impl ActiveBlock {
    pub(super) fn new(device: Block, queue: VirtQueue, flushes: bool) -> Self {
        Self {
            device,
            queue,
            write_through: !flushes,
            pending: vec![None; DEPTH],
            free: (0..DEPTH as u16).rev().collect(),
            chain: Chain::default(),
            stats: DeviceStats::default(),
        }
    }

    /// Takes requests until the ring is empty or the engine is full, then submits them in one go.
    fn take_requests(&mut self) -> Result<(), DeviceFault> {
        while !self.free.is_empty() {
            let more = self.queue.pop(&mut self.chain).map_err(DeviceFault::ring(&self.device.name, 0))?;
            if !more {
                if self.queue.enable_kicks().map_err(DeviceFault::ring(&self.device.name, 0))? {
                    continue;
                }
                break;
            }
            self.start()?;
        }
        self.device.engine.submit().map_err(DeviceFault::host(&self.device.name, "submit to io_uring"))
    }

    fn start(&mut self) -> Result<(), DeviceFault> {
        let ram = self.queue.ram().clone();
        let request = Request::parse(&ram, &self.chain).map_err(DeviceFault::ring(&self.device.name, 0))?;
        let writable = self.chain.writable_len();
        // `parse` saw at least one writable byte, so the window holds exactly the last one.
        let status = window(&self.chain.writable, writable - 1, 1)
            .next()
            .ok_or_else(|| self.chain.shape_fault("a block request has a status byte"))
            .map_err(DeviceFault::ring(&self.device.name, 0))?;
        let mut pending = Pending { head: self.chain.head, status, written: 1, read: 0, wrote: 0 };
        let mut buffers = Vec::new();
        let (op, offset) = match request {
            Request::Read { sector, bytes } => {
                let Some(offset) = self.place(sector, bytes) else {
                    return self.finish(pending, VIRTIO_BLK_S_IOERR);
                };
                iovecs(&ram, window(&self.chain.writable, 0, bytes), &mut buffers);
                // A chain is shorter than 4 GiB.
                pending.written = u32::try_from(writable).unwrap_or(u32::MAX);
                pending.read = bytes;
                (Op::Read, offset)
            }
            Request::Write { sector, bytes } => {
                let place = if self.device.read_only { None } else { self.place(sector, bytes) };
                let Some(offset) = place else {
                    return self.finish(pending, VIRTIO_BLK_S_IOERR);
                };
                iovecs(&ram, window(&self.chain.readable, HEADER, bytes), &mut buffers);
                pending.wrote = bytes;
                (Op::Write { durable: self.write_through }, offset)
            }
            Request::Flush if self.device.read_only => {
                return self.finish(pending, VIRTIO_BLK_S_OK);
            }
            Request::Flush => (Op::Flush, 0),
            Request::GetId { room } => {
                let mut id = [0u8; ID_BYTES];
                let len = self.device.id.len().min(ID_BYTES);
                id[..len].copy_from_slice(&self.device.id.as_bytes()[..len]);
                let data: Vec<Segment> = window(&self.chain.writable, 0, room).collect();
                pending.written += u32::try_from(copy_to(&ram, &data, &id)).unwrap_or(0);
                return self.finish(pending, VIRTIO_BLK_S_OK);
            }
            Request::Unknown { .. } => return self.finish(pending, VIRTIO_BLK_S_UNSUPP),
        };
        let Some(id) = self.free.pop() else {
            return self.finish(pending, VIRTIO_BLK_S_IOERR);
        };
        self.pending[usize::from(id)] = Some(pending);
        let job = Job { id, op, offset, buffers, ram };
        self.device.engine.push(job).map_err(DeviceFault::host(&self.device.name, "queue a request"))
    }

    /// File offset of a transfer of whole sectors inside the disk.
    fn place(&self, sector: u64, bytes: u64) -> Option<u64> {
        let whole = bytes > 0 && bytes.is_multiple_of(super::format::SECTOR);
        if whole { self.device.format.locate(sector, bytes) } else { None }
    }

    fn finish(&mut self, pending: Pending, status: u32) -> Result<(), DeviceFault> {
        let written = if status == VIRTIO_BLK_S_OK { pending.written } else { 1 };
        copy_to(self.queue.ram(), &[pending.status], &[status as u8]);
        if status == VIRTIO_BLK_S_OK {
            self.stats.in_bytes += pending.read;
            self.stats.out_bytes += pending.wrote;
            self.stats.in_ops += u64::from(pending.read > 0);
            self.stats.out_ops += u64::from(pending.wrote > 0);
        } else {
            self.stats.errors += 1;
        }
        self.queue.push(pending.head, written).map_err(DeviceFault::ring(&self.device.name, 0))
    }

    fn complete(&mut self, done: Done) -> Result<(), DeviceFault> {
        let Some(pending) = self.pending.get_mut(usize::from(done.id)).and_then(Option::take) else {
            return Ok(());
        };
        self.free.push(done.id);
        let status = if done.result.is_ok() { VIRTIO_BLK_S_OK } else { VIRTIO_BLK_S_IOERR };
        self.finish(pending, status)
    }

    /// Completes what the engine has done, then takes new requests; repeats while either moves.
    fn serve(&mut self) -> Result<Progress, DeviceFault> {
        self.queue.take_kick();
        loop {
            self.take_requests()?;
            let mut reaped = false;
            loop {
                let done = self.device.engine.reap();
                let Some(done) = done.map_err(DeviceFault::host(&self.device.name, "complete a request"))? else {
                    break;
                };
                reaped = true;
                self.complete(done)?;
            }
            if !reaped {
                break;
            }
        }
        self.queue.notify().map_err(DeviceFault::ring(&self.device.name, 0))?;
        Ok(Progress::Drained)
    }

    fn drain(&mut self) -> Result<(), DeviceFault> {
        let mut finished = Vec::new();
        self.device
            .engine
            .drain(|done| finished.push(done))
            .map_err(DeviceFault::host(&self.device.name, "wait for the host's storage"))?;
        finished.into_iter().try_for_each(|done| self.complete(done))
    }
}

impl ActiveDevice for ActiveBlock {
    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![Source::input(self.queue.kick_fd(), KICK)];
        sources.extend(self.device.engine.completion_fd().map(|fd| Source::input(fd, DONE)));
        sources
    }

    fn ready(&mut self, _token: u8) -> Result<Progress, DeviceFault> {
        self.serve()
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        self.drain()?;
        self.queue.notify().map_err(DeviceFault::ring(&self.device.name, 0))
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        self.queue.ring_self();
        Ok(())
    }

    fn deactivate(mut self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        // What was in flight is finished; the reset driver never looks at the used ring, so a full one is no fault.
        let mut ignored = Vec::new();
        self.device
            .engine
            .drain(|done| ignored.push(done.id))
            .map_err(DeviceFault::host(&self.device.name, "wait for the host's storage"))?;
        Ok(Box::new(self.device))
    }

    fn stats(&self) -> DeviceStats {
        self.stats
    }
}
