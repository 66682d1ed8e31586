//! I/O engines: move bytes between a file and guest memory. io_uring where the host allows it, plain syscalls elsewhere.
//!
//! A job's buffers are guest memory: the engine holds the RAM until the job is complete, and [`Engine::drain`] must have
//! returned before anyone forgets a job.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, register::Restriction, types};

use crate::memory::GuestRam;

/// Jobs in flight at once, at most.
pub const DEPTH: usize = 256;
/// How long [`Engine::drain`] waits for the host's storage.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// File to guest memory.
    Read,
    /// Guest memory to file. `durable`: complete only when on stable storage.
    Write {
        /// Complete only when on stable storage.
        durable: bool,
    },
    /// Everything completed before is on stable storage.
    Flush,
}

/// One job. `id` comes back with its completion.
#[derive(Debug)]
pub struct Job {
    /// Caller's number.
    pub id: u16,
    /// What to do.
    pub op: Op,
    /// File offset.
    pub offset: u64,
    /// Host addresses of guest buffers.
    pub buffers: Vec<libc::iovec>,
    /// Keeps the buffers alive.
    pub ram: Arc<GuestRam>,
}

impl Job {
    fn remaining(&self) -> usize {
        self.buffers.iter().map(|b| b.iov_len).sum()
    }

    /// Forgets the first `done` bytes: a short transfer continues behind them.
    fn advance(&mut self, mut done: usize) {
        self.offset += done as u64;
        self.buffers.retain_mut(|buffer| {
            let skip = done.min(buffer.iov_len);
            done -= skip;
            // SAFETY: `skip` is at most the buffer's length, so the pointer stays within or one past the end of it.
            buffer.iov_base = unsafe { buffer.iov_base.cast::<u8>().add(skip) }.cast();
            buffer.iov_len -= skip;
            buffer.iov_len > 0
        });
    }
}

/// A finished job.
#[derive(Debug)]
pub struct Done {
    /// The job's number.
    pub id: u16,
    /// Whether all its bytes were moved.
    pub result: io::Result<()>,
}

/// The engine of one disk.
pub enum Engine {
    /// Asynchronous.
    Uring(Box<UringEngine>),
    /// At submission, on the calling thread.
    Sync(SyncEngine),
}

impl Engine {
    /// The best engine for `file` on this host.
    pub fn new(file: File) -> Self {
        match UringEngine::ring() {
            Ok(ring) => {
                Engine::Uring(Box::new(UringEngine { ring, file, jobs: Vec::new(), free: Vec::new(), queued: 0 }))
            }
            Err(_) => Engine::Sync(SyncEngine { file, done: VecDeque::new() }),
        }
    }

    /// A synchronous engine.
    pub fn synchronous(file: File) -> Self {
        Engine::Sync(SyncEngine { file, done: VecDeque::new() })
    }

    /// Becomes readable when jobs complete; `None` when they complete at submission.
    pub fn completion_fd(&self) -> Option<RawFd> {
        match self {
            Engine::Uring(engine) => Some(engine.ring.as_raw_fd()),
            Engine::Sync(_) => None,
        }
    }

    /// Queues a job. The caller keeps fewer than [`DEPTH`] in flight.
    ///
    /// # Errors
    /// When the kernel takes no more jobs.
    pub fn push(&mut self, job: Job) -> io::Result<()> {
        match self {
            Engine::Uring(engine) => engine.push(job),
            Engine::Sync(engine) => {
                engine.run(job);
                Ok(())
            }
        }
    }

    /// Hands queued jobs to the kernel: one syscall for all of them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn submit(&mut self) -> io::Result<()> {
        match self {
            Engine::Uring(engine) => engine.submit(),
            Engine::Sync(_) => Ok(()),
        }
    }

    /// A completed job, if there is one.
    ///
    /// # Errors
    /// When a short transfer cannot be continued.
    pub fn reap(&mut self) -> io::Result<Option<Done>> {
        match self {
            Engine::Uring(engine) => engine.reap(),
            Engine::Sync(engine) => Ok(engine.done.pop_front()),
        }
    }

    /// Waits until nothing is in flight; completions go to `each`.
    ///
    /// # Errors
    /// `TimedOut` when the host's storage does not answer. The buffers must then stay alive for ever: end the process.
    pub fn drain(&mut self, mut each: impl FnMut(Done)) -> io::Result<()> {
        let deadline = Instant::now() + DRAIN_DEADLINE;
        loop {
            while let Some(done) = self.reap()? {
                each(done);
            }
            let Engine::Uring(engine) = self else {
                return Ok(());
            };
            if engine.in_flight() == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            engine.wait(Duration::from_millis(200))?;
        }
    }
}

/// io_uring on one file. The ring accepts only the three opcodes used here, so that a taken-over process gains nothing
/// from it.
pub struct UringEngine {
    ring: IoUring,
    file: File,
    /// Slab of jobs in flight; the index is the kernel's `user_data`. A job's buffer list does not move while in flight.
    jobs: Vec<Option<Box<Job>>>,
    free: Vec<usize>,
    queued: usize,
}

// SAFETY: the raw pointers inside are guest buffers kept alive by each job's `Arc<GuestRam>`; the engine is used by one
// thread at a time.
unsafe impl Send for UringEngine {}

impl UringEngine {
    fn ring() -> io::Result<IoUring> {
        let ring: IoUring = IoUring::builder().setup_r_disabled().build(DEPTH as u32)?;
        let mut allowed = [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
        ];
        ring.submitter().register_restrictions(&mut allowed)?;
        ring.submitter().register_enable_rings()?;
        Ok(ring)
    }

    fn in_flight(&self) -> usize {
        self.jobs.len() - self.free.len()
    }

    fn push(&mut self, job: Job) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.jobs.push(None);
            self.jobs.len() - 1
        });
        self.jobs[slot] = Some(Box::new(job));
        self.queue(slot)
    }

    fn queue(&mut self, slot: usize) -> io::Result<()> {
        let Some(job) = &self.jobs[slot] else {
            return Ok(());
        };
        let fd = types::Fd(self.file.as_raw_fd());
        let count = u32::try_from(job.buffers.len()).unwrap_or(u32::MAX);
        let entry = match job.op {
            Op::Read => opcode::Readv::new(fd, job.buffers.as_ptr(), count).offset(job.offset).build(),
            Op::Write { durable } => opcode::Writev::new(fd, job.buffers.as_ptr(), count)
                .offset(job.offset)
                .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
                .build(),
            Op::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        }
        .user_data(slot as u64);
        // SAFETY: file, buffer list and buffers are owned by the slab entry (through its RAM handle) until its
        // completion is reaped.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit()?;
        }
        self.queued += 1;
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        while self.queued > 0 {
            match self.ring.submit() {
                Ok(taken) => self.queued = self.queued.saturating_sub(taken),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn wait(&mut self, limit: Duration) -> io::Result<()> {
        self.submit()?;
        let limit = types::Timespec::from(limit);
        let args = types::SubmitArgs::new().timespec(&limit);
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn reap(&mut self) -> io::Result<Option<Done>> {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return Ok(None);
            };
            let slot = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some(job) = self.jobs.get_mut(slot).and_then(Option::as_mut) else {
                continue;
            };
            let moved = usize::try_from(entry.result());
            let result = match moved {
                Err(_) if entry.result() == -libc::EINTR || entry.result() == -libc::EAGAIN => {
                    self.queue(slot)?;
                    self.submit()?;
                    continue;
                }
                Err(_) => Err(io::Error::from_raw_os_error(-entry.result())),
                Ok(_) if job.op == Op::Flush => Ok(()),
                Ok(moved) if moved == job.remaining() => Ok(()),
                // The image shrank under us.
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => {
                    job.advance(moved);
                    self.queue(slot)?;
                    self.submit()?;
                    continue;
                }
            };
            let id = job.id;
            self.jobs[slot] = None;
            self.free.push(slot);
            return Ok(Some(Done { id, result }));
        }
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        // Leak rather than free memory the kernel may still write to.
        for job in self.jobs.drain(..).flatten() {
            std::mem::forget(job);
        }
    }
}

/// Plain syscalls.
pub struct SyncEngine {
    file: File,
    done: VecDeque<Done>,
}

impl SyncEngine {
    fn run(&mut self, mut job: Job) {
        let result = loop {
            if job.op != Op::Flush && job.buffers.is_empty() {
                break Ok(());
            }
            match self.step(&job) {
                Ok(_) if job.op == Op::Flush => break Ok(()),
                Ok(0) => break Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => job.advance(moved),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
        self.done.push_back(Done { id: job.id, result });
    }

    fn step(&self, job: &Job) -> io::Result<usize> {
        let fd = self.file.as_raw_fd();
        let count = job.buffers.len().min(1024) as libc::c_int;
        let offset = libc::off_t::try_from(job.offset).map_err(io::Error::other)?;
        // SAFETY: `buffers` are valid guest memory, kept alive by the job.
        let moved = unsafe {
            match job.op {
                Op::Read => libc::preadv(fd, job.buffers.as_ptr(), count, offset),
                Op::Write { durable } => {
                    libc::pwritev2(fd, job.buffers.as_ptr(), count, offset, if durable { libc::RWF_DSYNC } else { 0 })
                }
                Op::Flush => libc::fdatasync(fd) as isize,
            }
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }
}
