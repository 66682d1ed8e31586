//! Records every system call of a VM's threads from the moment each has closed its filter.
//!
//! The VM is the production program with its production filters. It inherits one filter more, which asks a thread of ours
//! about each call (`SECCOMP_RET_USER_NOTIF`); the answer is always to go on. Where the production filter says trap, the
//! kernel takes the stricter of the two, so a call outside the table still ends the VM.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast_vmm::jail::seccomp::{Allowance, ThreadKind};

use crate::host::text;
use crate::support::check;

/// Places for what is seen; the recording thread must not allocate, see [`Recorder::serve`].
const PLACES: usize = 8192;
const THREADS: usize = 256;

/// `struct seccomp_notif` (linux/seccomp.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    ip: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// In place of the listener.
const NOT_YET: i32 = -1;
const REFUSED: i32 = -2;

/// SECCOMP_IOCTL_NOTIF_RECV and _SEND.
const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
const GO_ON: u32 = 1;
const NEW_LISTENER: u64 = 1 << 3;
/// Signals wait until a call that we have heard of is answered.
const WAIT_KILLABLE: u64 = 1 << 5;

/// A thread that has closed its filter.
#[derive(Clone, Copy)]
struct Thread {
    id: u32,
    name: [u8; 16],
}

/// One kind of call of one thread.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    thread: u32,
    call: i64,
    /// Request of an `ioctl`.
    request: u64,
}

/// What was written down.
type Record = Result<(Vec<Thread>, Vec<Seen>), String>;

/// Records one VM.
pub struct Recorder(JoinHandle<Record>);

/// Runs `start` on a thread whose children are recorded.
pub fn record<T: Send + 'static>(
    start: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<(T, Recorder), String> {
    let listener = Arc::new(AtomicI32::new(NOT_YET));
    let recorder = {
        let listener = listener.clone();
        Recorder(std::thread::spawn(move || Recorder::serve(&listener)))
    };
    let starter = std::thread::spawn(move || {
        // Once the filter is there, every call of this thread waits for the recorder.
        let filter = install();
        listener.store(*filter.as_ref().unwrap_or(&REFUSED), Ordering::Release);
        filter.and_then(|_| start())
    });
    let started = starter.join().map_err(|_| "the starting thread panicked".to_string())?;
    match started {
        Ok(value) => Ok((value, recorder)),
        Err(reason) => {
            let _ = recorder.finish(0);
            Err(reason)
        }
    }
}

/// Installs a filter that asks about each call; the listener.
fn install() -> Result<i32, String> {
    let ask = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF };
    let program = libc::sock_fprog { len: 1, filter: (&raw const ask).cast_mut() };
    let flags = NEW_LISTENER | WAIT_KILLABLE;
    // SAFETY: a program of one instruction, read during the call.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
    check(fd as i32).map_err(|e| format!("recording filter: {e}"))?;
    Ok(fd as i32)
}

impl Recorder {
    /// Answers until nobody is left to ask. A thread that waits for an answer may hold any lock of the allocator (`fork` takes
    /// all), so nothing here allocates after the first call.
    fn serve(listener: &AtomicI32) -> Record {
        let (mut threads, mut seen) = (Vec::with_capacity(THREADS), Vec::with_capacity(PLACES));
        while listener.load(Ordering::Acquire) == NOT_YET {
            std::thread::sleep(Duration::from_millis(1));
        }
        let listener = listener.load(Ordering::Acquire);
        if listener == REFUSED {
            return Err("the recording filter was not installed".into());
        }
        // SAFETY: made for us by the other thread, which does not use it.
        let listener = unsafe { OwnedFd::from_raw_fd(listener) };
        let mut full = false;
        loop {
            let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            unsafe { libc::poll(&mut poll, 1, 100) };
            if poll.revents & libc::POLLIN == 0 {
                // Everybody who had the filter is gone. Not before: a call without a listener fails, even `exit`.
                if poll.revents & libc::POLLHUP != 0 {
                    break;
                }
                continue;
            }
            // SAFETY: all zeros is what the kernel asks for.
            let mut call: Notification = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes one notification.
            if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &mut call) } < 0 {
                // The caller was killed in between.
                continue;
            }
            full |= !note(&mut threads, &mut seen, &call);
            let answer = Answer { id: call.id, value: 0, error: 0, flags: GO_ON };
            // SAFETY: the kernel reads one answer; a caller that is gone needs none.
            unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &answer) };
        }
        if full { Err(format!("more than {THREADS} threads or {PLACES} kinds of calls")) } else { Ok((threads, seen)) }
    }

    /// What was called, once the VM has ended. `waiter` is the process that only waits, 0 for none.
    pub fn finish(self, waiter: u32) -> Result<Vec<Allowance>, String> {
        let (threads, seen) = self.0.join().map_err(|_| "the recording thread panicked".to_string())??;
        let mut all: Vec<Allowance> = Vec::new();
        for Seen { thread, call, request } in seen {
            let name = threads.iter().find(|t| t.id == thread).map_or([0; 16], |t| t.name);
            let kind = match &name {
                _ if thread == waiter => ThreadKind::Waiter,
                name if name.starts_with(b"vcpu") => ThreadKind::Vcpu,
                name if name.starts_with(b"vmm\n") => ThreadKind::Device,
                name => return Err(format!("a thread of no known kind: {:?}", String::from_utf8_lossy(name))),
            };
            all.push(Allowance { kind, call, request: (call == libc::SYS_ioctl).then_some(request) });
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}

/// Writes down a call of a thread that has closed its filter; false when there is no place left.
fn note(threads: &mut Vec<Thread>, seen: &mut Vec<Seen>, call: &Notification) -> bool {
    let number = i64::from(call.number);
    let known = threads.iter().position(|t| t.id == call.pid);
    if number == libc::SYS_seccomp {
        let thread = Thread { id: call.pid, name: name(call.pid) };
        match known {
            Some(known) => threads[known] = thread,
            None if threads.len() < THREADS => threads.push(thread),
            None => return false,
        }
        return true;
    }
    if known.is_none() {
        return true;
    }
    let request = if number == libc::SYS_ioctl { call.arguments[1] & 0xffff_ffff } else { 0 };
    let this = Seen { thread: call.pid, call: number, request };
    if seen.contains(&this) {
        return true;
    }
    if seen.len() == PLACES {
        return false;
    }
    seen.push(this);
    true
}

/// Name of a thread, without a trip to the allocator.
fn name(id: u32) -> [u8; 16] {
    let mut path = [0u8; 32];
    let mut writer = io::Cursor::new(&mut path[..31]);
    let mut name = [0u8; 16];
    if io::Write::write_fmt(&mut writer, format_args!("/proc/{id}/comm")).is_err() {
        return name;
    }
    // SAFETY: a path that ends with a zero byte, a buffer of its length, a descriptor of our own.
    unsafe {
        let fd = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::read(fd, name.as_mut_ptr().cast(), name.len());
            libc::close(fd);
        }
    }
    name
}

/// What happened, for the log.
pub fn text_of(all: &[Allowance]) -> String {
    let one = |a: &Allowance| match a.request {
        Some(request) => format!("{:?} ioctl {request:#x}", a.kind),
        None => format!("{:?} call {}", a.kind, a.call),
    };
    text(all.iter().map(one).collect::<Vec<_>>().join(", "))
}
