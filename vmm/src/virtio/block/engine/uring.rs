//! A ring on one file.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, register::Restriction, squeue, types};

use super::{Call, DEPTH, Done, Host, MAX_IOVECS, Slot};

/// The file is number 0 of the ring's own table, which saves the kernel a look-up for each request.
const FILE: types::Fixed = types::Fixed(0);

/// The ring accepts only what is used here, and only on its own file, so that a taken-over process gains nothing from it.
pub(super) struct Uring {
    ring: IoUring,
    /// Scratch: jobs that need another call.
    again: Vec<u16>,
}

impl Uring {
    /// A ring for `file`.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // Completions are found when we look, not by interrupting us (Linux 5.19).
        let ring: IoUring = IoUring::builder()
            .setup_r_disabled()
            .setup_coop_taskrun()
            .build(DEPTH as u32)
            .or_else(|_| IoUring::builder().setup_r_disabled().build(DEPTH as u32))?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        let mut allowed = [
            Restriction::sqe_op(opcode::Read::CODE),
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
        ];
        submitter.register_restrictions(&mut allowed)?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, again: Vec::new() })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Whether there are calls that the kernel has not taken.
    pub(super) fn is_stalled(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Queues the slot's call.
    pub(super) fn queue(&mut self, id: u16, slot: &Slot) -> io::Result<()> {
        let entry = entry(slot).user_data(u64::from(id));
        // SAFETY: file, buffer list and buffers stay as they are until the completion is reaped: the slot is busy, and the
        // engine holds the RAM, or leaks all of it when it goes first.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit()?;
            if self.ring.submission().is_full() {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
        }
        Ok(())
    }

    /// Hands queued calls to the kernel. When it is short of memory some stay queued.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while self.is_stalled() {
            match self.ring.submit() {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) => break,
                    _ => return Err(e),
                },
            }
        }
        Ok(())
    }

    /// Waits for a completion.
    pub(super) fn wait(&mut self, limit: Duration) -> io::Result<()> {
        self.submit()?;
        let limit = types::Timespec::from(limit);
        let args = types::SubmitArgs::new().timespec(&limit);
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Adds what is finished to `done`; calls that moved only a part are continued.
    pub(super) fn reap(&mut self, slots: &mut [Slot], host: &mut Host, done: &mut Vec<Done>) -> io::Result<()> {
        loop {
            for entry in self.ring.completion() {
                // The kernel gives back the number that `queue` gave it.
                let id = entry.user_data() as u16;
                let Some(slot) = slots.get_mut(usize::from(id)).filter(|slot| slot.busy) else {
                    continue;
                };
                match slot.took(i64::from(entry.result()), host) {
                    Some(result) => done.push(Done { id, result }),
                    None => self.again.push(id),
                }
            }
            if self.again.is_empty() {
                return Ok(());
            }
            for id in std::mem::take(&mut self.again) {
                self.queue(id, &slots[usize::from(id)])?;
            }
            self.submit()?;
        }
    }
}

/// The submission entry for a slot's call.
fn entry(slot: &Slot) -> squeue::Entry {
    // Neither cuts anything: the length of one buffer is a u32, and a job of more buffers is continued like any short one.
    let length = |buffer: &libc::iovec| u32::try_from(buffer.iov_len).unwrap_or(u32::MAX);
    let count = slot.buffers.len().min(MAX_IOVECS) as u32;
    match (slot.call, slot.buffers.as_slice()) {
        // One buffer needs no list: the common small request saves its copy.
        (Call::Read, [one]) => opcode::Read::new(FILE, one.iov_base.cast(), length(one)).offset(slot.offset).build(),
        (Call::Read, list) => opcode::Readv::new(FILE, list.as_ptr(), count).offset(slot.offset).build(),
        (Call::Write(flags), [one]) => {
            opcode::Write::new(FILE, one.iov_base.cast(), length(one)).offset(slot.offset).rw_flags(flags).build()
        }
        (Call::Write(flags), list) => {
            opcode::Writev::new(FILE, list.as_ptr(), count).offset(slot.offset).rw_flags(flags).build()
        }
        (Call::Sync, _) => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        (Call::Fallocate(mode), _) => opcode::Fallocate::new(FILE, slot.left).offset(slot.offset).mode(mode).build(),
    }
}
