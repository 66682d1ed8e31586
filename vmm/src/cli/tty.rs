//! The terminal of the one who attaches: raw while attached, as it was afterwards; its size; signals as a descriptor.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use holdfast_model::contract::vm::WindowSize;

/// A terminal in raw mode until this is dropped.
#[derive(Debug)]
pub(super) struct Raw {
    fd: RawFd,
    before: libc::termios,
}

impl Raw {
    /// Makes the terminal `fd` raw; `None` when it is none.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub(super) fn enter(fd: RawFd) -> io::Result<Option<Self>> {
        // SAFETY: all zeros is a valid value to be written over.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: writes one structure.
        if unsafe { libc::tcgetattr(fd, &mut before) } < 0 {
            return Ok(None);
        }
        let mut raw = before;
        // SAFETY: changes one structure.
        unsafe { libc::cfmakeraw(&mut raw) };
        // SAFETY: reads one structure.
        if unsafe { libc::tcsetattr(fd, libc::TCSADRAIN, &raw) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Some(Self { fd, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: reads one structure. A terminal that has gone needs nothing.
        unsafe { libc::tcsetattr(self.fd, libc::TCSADRAIN, &self.before) };
    }
}

/// Size of the terminal `fd`; `None` when it is none, or has no size.
pub(super) fn window_size(fd: RawFd) -> Option<WindowSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: writes one structure.
    let known = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) } == 0;
    (known && size.ws_col > 0 && size.ws_row > 0).then_some(WindowSize { columns: size.ws_col, rows: size.ws_row })
}

/// Signals that would end the program, and the one that tells of another window size, as something to poll.
#[derive(Debug)]
pub(super) struct Signals(OwnedFd);

impl Signals {
    /// From now on these signals only show up here.
    ///
    /// # Errors
    /// When descriptors run out.
    pub(super) fn catch() -> io::Result<Self> {
        // SAFETY: all zeros is a valid set to be written over.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set is initialised before signals are added; this program has one thread.
        let fd = unsafe {
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGWINCH] {
                libc::sigaddset(&mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor, owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The next signal.
    pub(super) fn next(&self) -> Option<i32> {
        // SAFETY: all zeros is a valid value to be written over.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: there is room for one structure.
        let got = unsafe { libc::read(self.fd(), (&raw mut info).cast(), size) };
        (usize::try_from(got) == Ok(size)).then_some(info.ssi_signo.cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of a new pseudo-terminal of 25 lines.
    fn pty() -> (OwnedFd, OwnedFd) {
        let (mut ours, mut terminal) = (0, 0);
        let size = libc::winsize { ws_row: 25, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: room for two descriptors; no name; the terminal's own attributes.
        let made = unsafe { libc::openpty(&mut ours, &mut terminal, std::ptr::null_mut(), std::ptr::null(), &size) };
        assert_eq!(made, 0);
        // SAFETY: fresh descriptors, owned by nobody else.
        unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(terminal)) }
    }

    fn echoes(terminal: &OwnedFd) -> bool {
        // SAFETY: all zeros is a valid value to be written over.
        let mut now: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: writes one structure.
        assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut now) }, 0);
        now.c_lflag & libc::ECHO != 0
    }

    #[test]
    fn terminal_is_raw_for_a_while_only() {
        let (_ours, terminal) = pty();
        assert!(echoes(&terminal));
        let raw = Raw::enter(terminal.as_raw_fd()).unwrap().unwrap();
        assert!(!echoes(&terminal));
        drop(raw);
        assert!(echoes(&terminal));
        assert_eq!(window_size(terminal.as_raw_fd()), Some(WindowSize { columns: 90, rows: 25 }));
    }

    #[test]
    fn pipe_is_no_terminal() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(Raw::enter(reader.as_raw_fd()).unwrap().is_none());
        assert_eq!(window_size(reader.as_raw_fd()), None);
    }
}
