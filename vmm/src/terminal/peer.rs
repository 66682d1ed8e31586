//! One descriptor at the host's side of a console: takes output at its own pace, or gives input, or both.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::history::History;

/// A pipe that polls writable takes this much without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// Where a reader of output is in the stream.
#[derive(Debug)]
struct Cursor {
    at: u64,
    /// What is left to write of a note about lost output.
    note: Vec<u8>,
    lost: u64,
    /// Nobody takes it any more.
    broken: bool,
}

/// What is known of a giver of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// Nothing to read until the descriptor becomes ready.
    Idle,
    /// There may be something.
    Waiting,
    /// There will never be more.
    Ended,
}

/// One end. Its descriptor's flags are left alone: the description may be shared with other programs.
#[derive(Debug)]
pub(super) struct Peer {
    file: File,
    output: Option<Cursor>,
    input: Option<Input>,
}

impl Peer {
    /// Takes output from position `at` on.
    pub(super) fn output(fd: OwnedFd, at: u64) -> Self {
        let cursor = Cursor { at, note: Vec::new(), lost: 0, broken: false };
        Self { file: File::from(fd), output: Some(cursor), input: None }
    }

    /// Gives input.
    pub(super) fn input(fd: OwnedFd) -> Self {
        // A regular file never becomes ready; it is.
        Self { file: File::from(fd), output: None, input: Some(Input::Waiting) }
    }

    /// Does both.
    pub(super) fn both(fd: OwnedFd, at: u64) -> Self {
        Self { input: Some(Input::Idle), ..Self::output(fd, at) }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Output bytes it was too slow for.
    pub(super) fn lost(&self) -> u64 {
        self.output.as_ref().map_or(0, |cursor| cursor.lost)
    }

    /// Neither takes nor gives any more.
    pub(super) fn over(&self) -> bool {
        self.output.as_ref().is_none_or(|cursor| cursor.broken) && self.input.is_none_or(|input| input == Input::Ended)
    }

    /// Takes no output any more; may still have input that nobody has read.
    pub(super) fn hung_up(&self) -> bool {
        self.output.as_ref().is_some_and(|cursor| cursor.broken)
    }

    /// Looks whether the other end of a socket of our own has been closed for good. What it sent before counts still.
    pub(super) fn notice_hang_up(&mut self) {
        let fd = self.fd();
        if let Some(cursor) = &mut self.output
            && poll(fd, 0) & (libc::POLLHUP | libc::POLLERR) != 0
        {
            cursor.broken = true;
            let mut byte = 0u8;
            // SAFETY: room for one byte; nothing is taken from the socket.
            let left = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
            if left <= 0 {
                self.input = Some(Input::Ended);
            }
        }
    }

    /// Whether input may be there; it will be looked at by [`Peer::read`].
    pub(super) fn notice_input(&mut self) -> bool {
        match self.input {
            Some(Input::Idle) if poll(self.fd(), libc::POLLIN) != 0 => {
                self.input = Some(Input::Waiting);
                true
            }
            Some(Input::Waiting) => true,
            _ => false,
        }
    }

    /// Writes what it takes without blocking. What it was too slow for is replaced by a note.
    pub(super) fn flush(&mut self, history: &History) {
        let Some(cursor) = &mut self.output else {
            return;
        };
        while !cursor.broken && (!cursor.note.is_empty() || cursor.at < history.end()) {
            // An error (reader gone) counts as writable, so that the write reports it.
            if poll(self.file.as_raw_fd(), libc::POLLOUT) == 0 {
                return;
            }
            if cursor.note.is_empty() && cursor.at < history.start() {
                let lost = history.start() - cursor.at;
                cursor.lost += lost;
                cursor.at = history.start();
                cursor.note = format!("\r\n[{lost} bytes of output lost]\r\n").into_bytes();
            }
            let part = if cursor.note.is_empty() { history.from(cursor.at) } else { &cursor.note };
            match self.file.write(&part[..part.len().min(CHUNK)]) {
                Ok(written) if cursor.note.is_empty() => cursor.at += written as u64,
                Ok(written) => drop(cursor.note.drain(..written)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // The reader is gone for good; the guest must not notice.
                Err(_) => cursor.broken = true,
            }
        }
    }

    /// Bytes of input; 0 when there are none now, or never again.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> usize {
        if self.input != Some(Input::Waiting) || buf.is_empty() {
            return 0;
        }
        loop {
            // Polling first keeps a blocking descriptor from blocking us.
            if poll(self.fd(), libc::POLLIN) == 0 {
                self.input = Some(Input::Idle);
                return 0;
            }
            match self.file.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.input = Some(Input::Idle);
                    return 0;
                }
                Ok(0) | Err(_) => {
                    self.input = Some(Input::Ended);
                    return 0;
                }
                Ok(got) => return got,
            }
        }
    }
}

/// The events of `wanted` (and hang-up, error) that hold now.
fn poll(fd: RawFd, wanted: libc::c_short) -> libc::c_short {
    let mut poll = libc::pollfd { fd, events: wanted, revents: 0 };
    loop {
        // SAFETY: one valid pollfd, no waiting.
        match unsafe { libc::poll(&mut poll, 1, 0) } {
            1 => return poll.revents,
            0 => return 0,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return libc::POLLERR,
        }
    }
}

/// A connected pair of non-blocking stream sockets.
///
/// # Errors
/// When descriptors or memory run out.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the array has room for both descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fresh descriptors, owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}
