//! SIGTERM: a request to shut the guest down, not to die. The supervisor's deadline and SIGKILL follow it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Descriptor of the eventfd that the handler writes to; -1 before there is one.
static TERMINATE: AtomicI32 = AtomicI32::new(-1);
/// Process that the handler of a waiting parent passes the signal to; 0 before there is one.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Makes SIGTERM write to the eventfd that is returned. Once per process; it stays open for ever, so that the handler
/// never writes to a descriptor of another.
///
/// # Errors
/// When eventfds run out.
pub fn terminate_to_eventfd() -> io::Result<Arc<EventFd>> {
    let eventfd = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
    std::mem::forget(eventfd.clone());
    TERMINATE.store(eventfd.as_raw_fd(), Ordering::Release);
    handle(libc::SIGTERM, on_terminate)?;
    Ok(eventfd)
}

/// Makes SIGTERM go to `child`.
///
/// # Errors
/// When the handler is refused.
pub(crate) fn pass_on_to(child: libc::pid_t) -> io::Result<()> {
    CHILD.store(child, Ordering::Release);
    handle(libc::SIGTERM, on_pass)
}

/// The process that SIGTERM goes on to; 0 when there is none.
pub(crate) fn child() -> libc::pid_t {
    CHILD.load(Ordering::Acquire)
}

extern "C" fn on_terminate(_: libc::c_int) {
    let one = 1u64;
    // SAFETY: an async-signal-safe call on a descriptor that stays open; a full counter is as good as a written one.
    unsafe { libc::write(TERMINATE.load(Ordering::Acquire), (&raw const one).cast(), 8) };
}

extern "C" fn on_pass(signal: libc::c_int) {
    // SAFETY: an async-signal-safe call; the child is not reaped before this process ends.
    unsafe { libc::kill(child(), signal) };
}

fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    // SAFETY: all zeros is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: both handlers make one async-signal-safe call on atomics.
    if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
