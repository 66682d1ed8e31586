//! The activated block device.

use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};

use super::Block;
use super::device::SEG_MAX;
use super::engine::{DEPTH, Done, Job, Op};
use super::request::Request;
use crate::memory::store;
use crate::virtio::chain::{Chain, Segment, copy_to, iovecs, window};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{ActiveDevice, Device, DeviceFault, Progress, Source};
use holdfast_model::contract::vm::DeviceStats;

/// Token of the doorbell.
const KICK: u8 = 0;
/// Token of the engine's completions.
const DONE: u8 = 1;
/// Rounds of taking and completing before other devices have their turn: a driver that polls could keep us for ever.
const ROUNDS: usize = 4;
/// When the kernel is asked again after it was short of memory.
const STALL_RETRY: Duration = Duration::from_millis(1);

/// A request the engine works on.
#[derive(Debug, Clone, Copy)]
struct Pending {
    head: u16,
    status: Segment,
    op: Op,
    /// Bytes of data; whichever way they go.
    bytes: u64,
    /// Bytes the driver finds in its writable part, status included, when all went well.
    written: u32,
}

pub(super) struct ActiveBlock {
    device: Block,
    queue: VirtQueue,
    /// Without VIRTIO_BLK_F_FLUSH a change is durable when it completes (virtio 1.3 §5.2.6.2).
    write_through: bool,
    /// Negotiated.
    discard: bool,
    /// Negotiated.
    write_zeroes: bool,
    /// By job number.
    pending: Vec<Option<Pending>>,
    /// Job numbers not in use.
    free: Vec<u16>,
    /// When to go on although nothing happens: a limit has room again, or the kernel memory.
    wake_at: Option<Instant>,
    /// The host's first error has been told.
    told: bool,
    stats: DeviceStats,
    // Scratch, kept for its memory.
    chain: Chain,
    done: Vec<Done>,
}

impl ActiveBlock {
    pub(super) fn new(device: Block, queue: VirtQueue, features: u64) -> Self {
        let negotiated = |bit: u32| features & 1 << bit != 0;
        Self {
            device,
            queue,
            write_through: !negotiated(VIRTIO_BLK_F_FLUSH),
            discard: negotiated(VIRTIO_BLK_F_DISCARD),
            write_zeroes: negotiated(VIRTIO_BLK_F_WRITE_ZEROES),
            pending: vec![None; DEPTH],
            free: (0..DEPTH as u16).rev().collect(),
            wake_at: None,
            told: false,
            stats: DeviceStats::default(),
            chain: Chain::default(),
            done: Vec::new(),
        }
    }

    /// Takes requests until the ring is empty, a limit is reached or the engine is full, then submits them in one go.
    fn take_requests(&mut self) -> Result<(), DeviceFault> {
        self.wake_at = None;
        while !self.free.is_empty() {
            let more = self.queue.pop(&mut self.chain).map_err(DeviceFault::ring(&self.device.name, 0))?;
            if !more {
                if self.queue.enable_kicks() {
                    continue;
                }
                break;
            }
            if let Err(at) = self.start()? {
                // Read again when its time has come: the driver may change it until then.
                self.queue.unpop(1);
                self.wake_at = Some(at);
                break;
            }
        }
        self.device.engine.submit().map_err(DeviceFault::host(&self.device.name, "submit to io_uring"))?;
        if self.device.engine.is_stalled() {
            let retry = Instant::now() + STALL_RETRY;
            self.wake_at = Some(self.wake_at.map_or(retry, |at| at.min(retry)));
        }
        Ok(())
    }

    /// Begins the request in `chain`. The inner error is when the limits let it begin.
    fn start(&mut self) -> Result<Result<(), Instant>, DeviceFault> {
        let ring = DeviceFault::ring(&self.device.name, 0);
        let request = Request::parse(self.queue.ram(), &self.chain).map_err(&ring)?;
        if let Some(limiter) = &mut self.device.limiter
            && let Err(at) = limiter.take(request.data_bytes(), Instant::now())
        {
            return Ok(Err(at));
        }
        let last = self.chain.writable.iter().rev().find(|segment| segment.len > 0);
        let Some(status) = last.map(|last| Segment { addr: last.addr + u64::from(last.len) - 1, len: 1 }) else {
            return Err(ring(self.chain.shape_fault("a block request has a status byte")));
        };
        drop(ring);
        let mut pending =
            Pending { head: self.chain.head, status, op: Op::Flush, bytes: request.data_bytes(), written: 1 };
        let changes = !self.device.options.read_only;
        let place = match request {
            Request::Read { sector, bytes } => {
                pending.op = Op::Read;
                // A chain is shorter than 4 GiB.
                pending.written = u32::try_from(bytes + 1).unwrap_or(u32::MAX);
                Ok((sector, bytes))
            }
            Request::Write { sector, bytes } if changes => {
                pending.op = Op::Write;
                Ok((sector, bytes))
            }
            Request::Write { .. } => Err(VIRTIO_BLK_S_IOERR),
            Request::Flush if changes => Ok((0, 0)),
            Request::Flush => Err(VIRTIO_BLK_S_OK),
            Request::Discard { sector, bytes } if changes && self.discard => {
                pending.op = Op::Discard;
                Ok((sector, bytes))
            }
            Request::WriteZeroes { sector, bytes, unmap } if changes && self.write_zeroes => {
                pending.op = Op::WriteZeroes { unmap };
                Ok((sector, bytes))
            }
            Request::Discard { .. } | Request::WriteZeroes { .. } => Err(VIRTIO_BLK_S_UNSUPP),
            Request::GetId { room } => {
                pending.written += self.give_id(room);
                Err(VIRTIO_BLK_S_OK)
            }
            Request::Refused { status } => Err(status),
        };
        let place = place.and_then(|(sector, bytes)| {
            let offset = self.device.format.locate(sector, bytes).filter(|_| self.fits_segments(&request));
            offset.map(|offset| (offset, bytes)).ok_or(VIRTIO_BLK_S_IOERR)
        });
        let (offset, bytes) = match place {
            Ok(place) => place,
            Err(status) => {
                self.finish(&pending, status);
                return Ok(Ok(()));
            }
        };
        let Some(id) = self.free.pop() else {
            self.finish(&pending, VIRTIO_BLK_S_IOERR);
            return Ok(Ok(()));
        };
        let durable = self.write_through && pending.op != Op::Read;
        let (ram, chain) = (self.queue.ram(), &self.chain);
        self.device
            .engine
            .start(Job { id, op: pending.op, durable, offset, bytes }, |list| iovecs(ram, request.data(chain), list))
            .map_err(DeviceFault::host(&self.device.name, "queue a request"))?;
        self.pending[usize::from(id)] = Some(pending);
        Ok(Ok(()))
    }

    /// Whether the data lies in no more segments than the configuration space allows.
    fn fits_segments(&self, request: &Request) -> bool {
        let most = SEG_MAX as usize;
        self.chain.readable.len() + self.chain.writable.len() <= most || request.data(&self.chain).count() <= most
    }

    /// Writes the serial to the data part; the bytes written.
    fn give_id(&self, room: u64) -> u32 {
        let mut id = [0u8; VIRTIO_BLK_ID_BYTES as usize];
        let own = self.device.options.id.as_bytes();
        let len = own.len().min(id.len());
        id[..len].copy_from_slice(&own[..len]);
        let data: Vec<Segment> = window(&self.chain.writable, 0, room.min(id.len() as u64)).collect();
        u32::try_from(copy_to(self.queue.ram(), &data, &id)).unwrap_or(0)
    }

    /// Gives a request back to the driver.
    fn finish(&mut self, pending: &Pending, status: u32) {
        let good = status == VIRTIO_BLK_S_OK;
        // In RAM, since its chain was read.
        store(self.queue.ram(), pending.status.addr, [status as u8]);
        match pending.op {
            _ if !good => self.stats.errors += 1,
            Op::Read => {
                self.stats.in_ops += 1;
                self.stats.in_bytes += pending.bytes;
            }
            Op::Write | Op::Discard | Op::WriteZeroes { .. } => {
                self.stats.out_ops += 1;
                self.stats.out_bytes += pending.bytes;
            }
            Op::Flush => {}
        }
        let written = if good { pending.written } else { 1 };
        self.queue.push(pending.head, written);
    }

    /// Gives back what the engine has finished; whether there was anything.
    fn complete(&mut self) -> Result<bool, DeviceFault> {
        let mut done = std::mem::take(&mut self.done);
        self.device.engine.reap(&mut done).map_err(DeviceFault::host(&self.device.name, "complete a request"))?;
        let any = !done.is_empty();
        for Done { id, result } in done.drain(..) {
            let Some(pending) = self.pending[usize::from(id)].take() else {
                continue;
            };
            self.free.push(id);
            let status = match result {
                Ok(()) => VIRTIO_BLK_S_OK,
                Err(e) => {
                    if !std::mem::replace(&mut self.told, true) {
                        eprintln!("vmm: {}: {:?}: {e}; later errors are only counted", self.device.name, pending.op);
                    }
                    VIRTIO_BLK_S_IOERR
                }
            };
            self.finish(&pending, status);
        }
        self.done = done;
        Ok(any)
    }

    /// Takes new requests and completes old ones while either moves.
    fn serve(&mut self) -> Result<Progress, DeviceFault> {
        let mut progress = Progress::Again;
        for _ in 0..ROUNDS {
            self.take_requests()?;
            if !self.complete()? {
                progress = Progress::Drained;
                break;
            }
        }
        self.queue.notify();
        Ok(progress)
    }

    /// Waits for everything in flight; what is finished stays in the engine's list for [`ActiveBlock::complete`].
    fn drain(&mut self) -> Result<(), DeviceFault> {
        let limit = self.device.drain_limit;
        self.device
            .engine
            .drain(limit, &mut self.done)
            .map_err(DeviceFault::host(&self.device.name, "wait for the host's storage"))
    }
}

impl ActiveDevice for ActiveBlock {
    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![Source::input(self.queue.kick_fd(), KICK)];
        sources.extend(self.device.engine.completion_fd().map(|fd| Source::input(fd, DONE)));
        sources
    }

    fn ready(&mut self, _token: u8) -> Result<Progress, DeviceFault> {
        // The doorbell is watched for edges, and each ring is one whether or not the last was read: a read would be one
        // system call more for each batch.
        self.serve()
    }

    fn deadline(&self) -> Option<Instant> {
        self.wake_at
    }

    fn expired(&mut self) -> Result<(), DeviceFault> {
        if self.serve()? == Progress::Again {
            self.queue.ring_self();
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        self.drain()?;
        self.complete()?;
        self.wake_at = None;
        self.queue.notify();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        self.queue.ring_self();
        Ok(())
    }

    fn deactivate(mut self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        // What was in flight is finished; the reset driver never looks at the used ring, so it is not told.
        self.drain()?;
        self.device.engine.detach();
        Ok(Box::new(self.device))
    }

    fn stats(&self) -> DeviceStats {
        self.stats
    }
}
