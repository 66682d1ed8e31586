//! Ends of processes: looked at first, reaped when everything else about them is done.
//!
//! Until it is reaped a process keeps its id, so signals sent to it or its group cannot reach a stranger.

use holdfast_supervise::Exit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Which child to look at.
#[derive(Debug, Clone, Copy)]
pub enum Whose<'a> {
    /// Any child that has ended.
    Any,
    /// The one behind this pidfd.
    Pidfd(BorrowedFd<'a>),
}

/// The id and end of a child that has ended and is not reaped yet.
pub fn peek(whose: Whose<'_>) -> Option<(u32, Exit)> {
    let (kind, id) = match whose {
        Whose::Any => (libc::P_ALL, 0),
        Whose::Pidfd(fd) => (libc::P_PIDFD, fd.as_raw_fd() as libc::id_t),
    };
    // SAFETY: `siginfo_t` is plain data for which zero is valid; `waitid` fills it, and leaves the pid 0 when there is none.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(kind, id, &mut info, flags) != 0 || info.si_pid() == 0 {
            return None;
        }
        let exit = match info.si_code {
            libc::CLD_EXITED => Exit::Code(info.si_status()),
            _ => Exit::Signal(info.si_status()),
        };
        Some((info.si_pid() as u32, exit))
    }
}

/// Reaps a child that [`peek`] has shown.
pub fn reap(pid: u32) {
    // SAFETY: a plain system call that may be told to write nothing.
    unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), libc::WNOHANG) };
}
