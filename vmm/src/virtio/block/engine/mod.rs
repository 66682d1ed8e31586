//! I/O engines: move bytes between a file and guest memory. io_uring where the host allows it, plain syscalls elsewhere.
//!
//! A job's buffers are guest memory. The engine holds the RAM from [`Engine::attach`] on, and when it is dropped with jobs
//! in flight it leaks RAM and buffer lists rather than free what the kernel may still write to.
//!
//! Jobs live in slots that are used again, so that a request costs no allocation. What a system call's result means for its
//! job is decided in one place ([`Slot::took`]) for both engines.

#[cfg(test)]
mod tests;
mod uring;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::uring::Uring;
use crate::memory::GuestRam;

/// Jobs in flight at once, at most; a job's number is below it.
pub const DEPTH: usize = 256;
/// Buffers of one system call (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;
/// Places that a slot's buffer list keeps for its next job.
const KEPT_IOVECS: usize = 8;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// File to guest memory.
    Read,
    /// Guest memory to file.
    Write,
    /// Everything completed before is on stable storage.
    Flush,
    /// The range's content is of no more use: its blocks go back to the file system.
    Discard,
    /// The range reads as zeros from now on.
    WriteZeroes {
        /// Its blocks may go back to the file system; else they stay allocated.
        unmap: bool,
    },
}

/// One job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// The caller's number, below [`DEPTH`] and of no other job in flight. It comes back with the completion.
    pub id: u16,
    /// What to do.
    pub op: Op,
    /// Complete only when what it changes is on stable storage.
    pub durable: bool,
    /// File offset.
    pub offset: u64,
    /// Bytes in all; 0 for a flush.
    pub bytes: u64,
}

/// A finished job.
#[derive(Debug)]
pub struct Done {
    /// The job's number.
    pub id: u16,
    /// Whether all of it was done.
    pub result: io::Result<()>,
}

/// The system call that a job needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Read,
    /// With these `RWF_` flags.
    Write(libc::c_int),
    Sync,
    /// With this mode.
    Fallocate(libc::c_int),
}

/// Frees blocks; what is left of them at the edges is zeroed (fallocate(2)).
const PUNCH: Call = Call::Fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
/// Zeroes and keeps blocks allocated.
const ZERO: Call = Call::Fallocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE);
/// Allocates what is not.
const ALLOCATE: Call = Call::Fallocate(libc::FALLOC_FL_KEEP_SIZE);

/// What the host's file system turned out to do.
#[derive(Debug, Clone, Copy)]
struct Host {
    /// Not refused so far. tmpfs has no ZERO_RANGE: there a hole is punched and filled again.
    zero_range: bool,
}

impl Host {
    fn first_call(self, op: Op, durable: bool) -> Call {
        match op {
            Op::Read => Call::Read,
            Op::Write => Call::Write(if durable { libc::RWF_DSYNC } else { 0 }),
            Op::Flush => Call::Sync,
            Op::WriteZeroes { unmap: false } if self.zero_range => ZERO,
            Op::Discard | Op::WriteZeroes { .. } => PUNCH,
        }
    }
}

/// A job's place.
#[derive(Debug)]
struct Slot {
    op: Op,
    durable: bool,
    call: Call,
    offset: u64,
    /// Bytes not moved yet.
    left: u64,
    /// Where they go or come from. The kernel reads this list until the call is complete: it is not touched before.
    buffers: Vec<libc::iovec>,
    busy: bool,
}

impl Slot {
    const EMPTY: Slot =
        Slot { op: Op::Flush, durable: false, call: Call::Sync, offset: 0, left: 0, buffers: Vec::new(), busy: false };

    /// Takes in what a call returned (a count, or a negative error number). `None`: make [`Slot::call`] again.
    fn took(&mut self, result: i64, host: &mut Host) -> Option<io::Result<()>> {
        const INTERRUPTED: i64 = -libc::EINTR as i64;
        const BUSY: i64 = -libc::EAGAIN as i64;
        const UNSUPPORTED: i64 = -libc::EOPNOTSUPP as i64;
        match (result, self.call) {
            (INTERRUPTED | BUSY, _) => None,
            (UNSUPPORTED, ZERO) => {
                host.zero_range = false;
                self.call = host.first_call(self.op, self.durable);
                None
            }
            (..0, _) => Some(Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO)))),
            (_, PUNCH) if self.op == (Op::WriteZeroes { unmap: false }) => {
                self.call = ALLOCATE;
                None
            }
            (_, Call::Fallocate(_)) if self.durable => {
                self.call = Call::Sync;
                None
            }
            (_, Call::Sync | Call::Fallocate(_)) => Some(Ok(())),
            (moved, Call::Read | Call::Write(_)) => {
                let moved = moved.unsigned_abs();
                if moved >= self.left {
                    return Some(Ok(()));
                }
                if moved == 0 {
                    // The image shrank under us.
                    return Some(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                self.advance(moved);
                None
            }
        }
    }

    /// Forgets the first `done` bytes: a short transfer continues behind them.
    fn advance(&mut self, done: u64) {
        self.offset += done;
        self.left -= done;
        let mut done = usize::try_from(done).unwrap_or(usize::MAX);
        self.buffers.retain_mut(|buffer| {
            let skip = done.min(buffer.iov_len);
            done -= skip;
            // SAFETY: `skip` is at most the buffer's length, so the pointer stays within or one past the end of it.
            buffer.iov_base = unsafe { buffer.iov_base.cast::<u8>().add(skip) }.cast();
            buffer.iov_len -= skip;
            buffer.iov_len > 0
        });
    }

    /// Makes the call here and now; what it returned, as [`Slot::took`] takes it.
    fn make_call(&self, file: &File) -> i64 {
        let fd = file.as_raw_fd();
        let (Ok(offset), Ok(left)) = (libc::off_t::try_from(self.offset), libc::off_t::try_from(self.left)) else {
            return i64::from(-libc::EFBIG);
        };
        let (list, count) = (self.buffers.as_ptr(), self.buffers.len().min(MAX_IOVECS) as libc::c_int);
        // SAFETY: the buffers are guest memory, which the engine holds; the list is not touched meanwhile.
        let result = unsafe {
            match self.call {
                Call::Read => libc::preadv(fd, list, count, offset) as i64,
                Call::Write(flags) => libc::pwritev2(fd, list, count, offset, flags) as i64,
                Call::Sync => i64::from(libc::fdatasync(fd)),
                Call::Fallocate(mode) => i64::from(libc::fallocate(fd, mode, offset, left)),
            }
        };
        if result < 0 { -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)) } else { result }
    }
}

/// How system calls are made.
enum Backend {
    /// By io_uring, on one ring for this file.
    Uring(Box<Uring>),
    /// At once, on the calling thread; what is finished waits here.
    Sync(Vec<Done>),
}

/// The engine of one disk. Used by one thread at a time.
pub struct Engine {
    file: File,
    backend: Backend,
    /// By job number; as many as were ever in flight at once.
    slots: Vec<Slot>,
    in_flight: usize,
    host: Host,
    ram: Option<Arc<GuestRam>>,
}

// SAFETY: the raw pointers in the slots are guest memory that `ram` keeps mapped, wherever the engine is.
unsafe impl Send for Engine {}

impl Engine {
    /// The best engine for `file` on this host.
    pub fn new(file: File) -> Self {
        match Uring::new(&file) {
            Ok(ring) => Self::with(file, Backend::Uring(Box::new(ring))),
            Err(_) => Self::synchronous(file),
        }
    }

    /// An engine that makes each call on the calling thread.
    pub fn synchronous(file: File) -> Self {
        Self::with(file, Backend::Sync(Vec::new()))
    }

    fn with(file: File, backend: Backend) -> Self {
        Self { file, backend, slots: Vec::new(), in_flight: 0, host: Host { zero_range: true }, ram: None }
    }

    /// Buffers of the jobs to come are in `ram`. Only when nothing is in flight.
    pub fn attach(&mut self, ram: Arc<GuestRam>) {
        debug_assert_eq!(self.in_flight, 0);
        self.ram = Some(ram);
    }

    /// Lets go of the memory. Only when nothing is in flight.
    pub fn detach(&mut self) {
        debug_assert_eq!(self.in_flight, 0);
        self.ram = None;
    }

    /// Becomes readable when jobs complete; `None` when they complete at submission.
    pub fn completion_fd(&self) -> Option<RawFd> {
        match &self.backend {
            Backend::Uring(ring) => Some(ring.fd()),
            Backend::Sync(_) => None,
        }
    }

    /// Jobs started and not yet given back by [`Engine::reap`].
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Jobs that the kernel has not taken: it was short of memory. Call [`Engine::submit`] again a little later.
    pub fn is_stalled(&mut self) -> bool {
        match &mut self.backend {
            Backend::Uring(ring) => ring.is_stalled(),
            Backend::Sync(_) => false,
        }
    }

    /// Starts a job; `fill` adds its buffers, which lie in the attached RAM and have `job.bytes` bytes in all. io_uring
    /// gets to see it at the next [`Engine::submit`].
    ///
    /// # Errors
    /// When the kernel takes no more jobs.
    pub fn start(&mut self, job: Job, fill: impl FnOnce(&mut Vec<libc::iovec>)) -> io::Result<()> {
        let index = usize::from(job.id);
        while self.slots.len() <= index {
            self.slots.push(Slot::EMPTY);
        }
        let slot = &mut self.slots[index];
        debug_assert!(!slot.busy, "job {index} is in flight");
        slot.buffers.clear();
        fill(&mut slot.buffers);
        (slot.op, slot.durable, slot.call) = (job.op, job.durable, self.host.first_call(job.op, job.durable));
        (slot.offset, slot.left, slot.busy) = (job.offset, job.bytes, true);
        self.in_flight += 1;
        match &mut self.backend {
            Backend::Uring(ring) => ring.queue(job.id, slot),
            Backend::Sync(finished) => {
                let result = loop {
                    if let Some(result) = slot.took(slot.make_call(&self.file), &mut self.host) {
                        break result;
                    }
                };
                finished.push(Done { id: job.id, result });
                Ok(())
            }
        }
    }

    /// Hands started jobs to the kernel: one system call for all of them.
    ///
    /// # Errors
    /// When the kernel refuses for good.
    pub fn submit(&mut self) -> io::Result<()> {
        match &mut self.backend {
            Backend::Uring(ring) => ring.submit(),
            Backend::Sync(_) => Ok(()),
        }
    }

    /// Adds the completed jobs to `done`.
    ///
    /// # Errors
    /// When a short transfer cannot be continued.
    pub fn reap(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        let before = done.len();
        match &mut self.backend {
            Backend::Uring(ring) => ring.reap(&mut self.slots, &mut self.host, done)?,
            Backend::Sync(finished) => done.append(finished),
        }
        for finished in &done[before..] {
            let slot = &mut self.slots[usize::from(finished.id)];
            slot.busy = false;
            if slot.buffers.capacity() > KEPT_IOVECS {
                slot.buffers.clear();
                slot.buffers.shrink_to(KEPT_IOVECS);
            }
        }
        self.in_flight -= done.len() - before;
        Ok(())
    }

    /// Waits until nothing is in flight; completions are added to `done`.
    ///
    /// # Errors
    /// `TimedOut` when the host's storage does not answer within `limit`. The buffers must then stay alive for ever: end
    /// the process.
    pub fn drain(&mut self, limit: Duration, done: &mut Vec<Done>) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            self.reap(done)?;
            if self.in_flight == 0 {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if let Backend::Uring(ring) = &mut self.backend {
                ring.wait(left.min(Duration::from_millis(200)))?;
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(self.ram.take());
        }
    }
}
