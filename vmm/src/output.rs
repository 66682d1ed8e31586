//! Guest output to a host descriptor that may stall: never blocks, keeps the latest bytes, says what it lost.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Bytes kept while nobody reads.
const BACKLOG: usize = 64 * 1024;
/// A pipe that polls writable takes this much without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// A bounded, never blocking writer.
#[derive(Debug)]
pub struct Output {
    file: File,
    backlog: VecDeque<u8>,
    dropped: u64,
    broken: bool,
}

impl Output {
    /// Writes to `fd`. Its flags are left alone: the description may be shared with other programs.
    pub fn new(fd: OwnedFd) -> Self {
        Self { file: File::from(fd), backlog: VecDeque::new(), dropped: 0, broken: false }
    }

    /// The descriptor, for polling.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Queues `data` and writes what the reader takes. The oldest bytes go when [`BACKLOG`] is full.
    pub fn put(&mut self, data: &[u8]) {
        if self.broken {
            return;
        }
        self.backlog.extend(data);
        self.flush_some();
        if let Some(excess) = self.backlog.len().checked_sub(BACKLOG).filter(|n| *n > 0) {
            self.backlog.drain(..excess);
            self.dropped += excess as u64;
        }
    }

    /// Writes as much of the backlog as the reader takes without blocking.
    pub fn flush_some(&mut self) {
        while !self.backlog.is_empty() && writable(self.fd()) {
            if self.dropped > 0 {
                let note = format!("\r\n[{} bytes of output lost]\r\n", self.dropped);
                self.dropped = 0;
                for byte in note.bytes().rev() {
                    self.backlog.push_front(byte);
                }
            }
            let front = self.backlog.as_slices().0;
            let len = front.len().min(CHUNK);
            match self.file.write(&front[..len]) {
                Ok(written) => {
                    self.backlog.drain(..written);
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return;
                }
                Err(_) => {
                    // The reader is gone for good; the guest must not notice.
                    self.broken = true;
                    self.backlog = VecDeque::new();
                    return;
                }
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.put(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_some();
        Ok(())
    }
}

fn writable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd, no waiting.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    // An error (reader gone) counts as writable, so that the write reports it.
    ready == 1 && poll.revents != 0
}

/// The kernel's random number generator as a reader; needs no open file.
pub struct KernelRandom;

impl Read for KernelRandom {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer is valid for writes of its length.
        let got = unsafe { libc::getrandom(buf.as_mut_ptr().cast(), buf.len(), 0) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;

    fn pipe() -> (File, OwnedFd) {
        let mut fds = [0; 2];
        // SAFETY: the array has room for both descriptors.
        assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: fresh descriptors, owned by nobody else.
        unsafe { (File::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
    }

    #[test]
    fn stalled_reader_never_blocks_and_learns_of_the_loss() {
        let (mut reader, writer) = pipe();
        let mut output = Output::new(writer);
        let line = [b'x'; 1000];
        for _ in 0..300 {
            output.put(&line);
        }
        let mut got = vec![0; 1 << 20];
        let mut seen = Vec::new();
        for _ in 0..40 {
            let n = reader.read(&mut got).unwrap();
            seen.extend_from_slice(&got[..n]);
            output.flush_some();
            if output.backlog.is_empty() && output.dropped == 0 {
                break;
            }
        }
        let text = String::from_utf8_lossy(&seen);
        assert!(text.contains("bytes of output lost]"), "{} bytes", seen.len());
        assert!(seen.len() < 300_000);
    }

    #[test]
    fn vanished_reader_is_not_the_guests_problem() {
        let (reader, writer) = pipe();
        let mut output = Output::new(writer);
        drop(reader);
        // Rust programs ignore SIGPIPE.
        output.put(b"hello");
        output.put(b"again");
        assert!(output.broken && output.backlog.is_empty());
    }
}
