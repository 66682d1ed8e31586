//! Lines for people: on every console of the kernel, and in the kernel log so that they outlive a crash.
//!
//! A serial line may be slow or held up by flow control, and nothing may hold up PID 1. So consoles are written
//! without blocking from a bounded queue; what does not fit is dropped there and still stands in the kernel log.
#![forbid(unsafe_code)]

use crate::clock;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

/// Bytes that wait for one console.
const QUEUE_BYTES: usize = 64 * 1024;
/// Longest that [`Console::drain`] waits.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// All consoles, and the stages of this boot.
#[derive(Debug, Default)]
pub struct Console {
    outputs: Vec<Output>,
    kernel_log: Option<File>,
    stages: Vec<(String, u64)>,
}

#[derive(Debug)]
struct Output {
    file: File,
    queue: VecDeque<u8>,
}

impl Console {
    /// Opens `/dev/console` (needs devtmpfs) and then, when sysfs is there, what the kernel lists as active.
    pub fn open() -> Console {
        let mut console =
            Console { kernel_log: OpenOptions::new().write(true).open("/dev/kmsg").ok(), ..Console::default() };
        let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let mut names: Vec<&str> = active.split_whitespace().collect();
        if names.is_empty() {
            names.push("console");
        }
        for name in names {
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
                .open(format!("/dev/{name}"));
            console.outputs.extend(file.ok().map(|file| Output { file, queue: VecDeque::new() }));
        }
        console
    }

    /// Writes a line, stamped like the kernel's own.
    pub fn say(&mut self, text: &str) {
        let text = crate::supervisor::lines::printable(text);
        let now = clock::now_ms();
        let line = format!("[{:5}.{:03}] {text}\n", now / 1000, now % 1000);
        if let Some(log) = &mut self.kernel_log {
            // One write is one record; the kernel cuts at 1 KiB, and we before it so that none is refused.
            let cut = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= 900).last();
            let _ = writeln!(log, "<6>{}", &text[..cut.unwrap_or(0)]);
        }
        for output in &mut self.outputs {
            if output.queue.len() + line.len() <= QUEUE_BYTES {
                output.queue.extend(line.as_bytes());
            }
            output.flush();
        }
    }

    /// A stage of the boot is reached: shown and kept for the facts.
    pub fn stage(&mut self, name: &str, detail: &str) {
        self.stages.push((name.to_owned(), clock::now_ms()));
        self.say(&format!("pid1: {name}{}{detail}", if detail.is_empty() { "" } else { ": " }));
    }

    /// Stages so far with their time in milliseconds.
    pub fn stages(&self) -> &[(String, u64)] {
        &self.stages
    }

    /// A console that has lines waiting.
    pub fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.outputs.iter().find(|o| !o.queue.is_empty()).map(|o| o.file.as_fd())
    }

    /// Writes what the consoles take now.
    pub fn flush(&mut self) {
        self.outputs.iter_mut().for_each(Output::flush);
    }

    /// Waits a bounded time until everything is written: before a reset.
    pub fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_DEADLINE;
        while self.waiting().is_some() && Instant::now() < deadline {
            self.flush();
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Output {
    fn flush(&mut self) {
        while !self.queue.is_empty() {
            match self.file.write(self.queue.as_slices().0) {
                Ok(n) => drop(self.queue.drain(..n)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    if error.kind() != ErrorKind::WouldBlock {
                        self.queue.clear(); // a console that is gone
                    }
                    return;
                }
            }
        }
    }
}
