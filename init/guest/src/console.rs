//! The console hvc0: the app's output line by line, our own lines marked, neither able to pass for the other.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{OutputFlags, SetArg, tcdrain, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// What every line of ours begins with.
pub const PREFIX: &str = "holdfast-guest: ";
/// A line without an end is cut here, so that memory stays bounded.
const LINE_LIMIT_BYTES: usize = 8192;

/// The console, shared by all threads; lines never mix.
pub struct Console(Mutex<File>);

impl Console {
    /// Opens the terminal at `path` for writing, without translation of line ends.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).open(path)?;
        if let Ok(mut settings) = tcgetattr(&file) {
            settings.output_flags.remove(OutputFlags::OPOST);
            tcsetattr(&file, SetArg::TCSANOW, &settings)?;
        }
        Ok(Self::new(file))
    }

    /// A console that writes to `file`.
    pub fn new(file: File) -> Self {
        Self(Mutex::new(file))
    }

    /// Writes a line of our own. A line end inside `text` becomes a blank.
    pub fn say(&self, text: &str) {
        self.write(format!("{PREFIX}{}\n", text.replace(['\n', '\r'], " ")).as_bytes());
    }

    /// Waits until everything written has left.
    pub fn drain(&self) {
        let _ = tcdrain(&*self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn write(&self, bytes: &[u8]) {
        // There is no one to tell that the console is gone.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes);
    }
}

/// Copies the app's standard output and error, given as pipes, to the console until both are closed.
///
/// # Errors
/// When the thread cannot be started.
pub fn pump(console: Arc<Console>, outputs: [OwnedFd; 2]) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("output".into()).stack_size(128 << 10).spawn(move || {
        let mut streams: Vec<(File, Lines)> =
            outputs.into_iter().map(|fd| (File::from(fd), Lines::default())).collect();
        let mut buffer = vec![0; 16 << 10];
        while !streams.is_empty() {
            let mut fds: Vec<PollFd<'_>> =
                streams.iter().map(|(f, _)| PollFd::new(f.as_fd(), PollFlags::POLLIN)).collect();
            // No deadline: an app may be silent for ever; the pipes close when its processes have ended.
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|f| f.any().unwrap_or(false)).collect();
            let mut ready = ready.into_iter();
            streams.retain_mut(|(file, lines)| {
                if !ready.next().unwrap_or(false) {
                    return true;
                }
                match file.read(&mut buffer) {
                    Ok(0) => {
                        console.write(&lines.finish());
                        false
                    }
                    Ok(length) => {
                        console.write(&lines.push(&buffer[..length]));
                        true
                    }
                    Err(e) => e.kind() == io::ErrorKind::Interrupted,
                }
            });
        }
    })
}

/// Cuts a stream into whole lines.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// The whole lines that `bytes` completes.
    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                self.end_line(&mut out);
            } else {
                if self.partial.len() == LINE_LIMIT_BYTES {
                    self.end_line(&mut out);
                }
                self.partial.push(*byte);
            }
        }
        out
    }

    /// What is left at the end of the stream, as a line.
    fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.partial.is_empty() {
            self.end_line(&mut out);
        }
        out
    }

    fn end_line(&mut self, out: &mut Vec<u8>) {
        // The host takes lines with our prefix as ours: an app that prints it gets a blank before it.
        if self.partial.starts_with(PREFIX.trim_end().as_bytes()) {
            out.push(b' ');
        }
        let line = self.partial.strip_suffix(b"\r").unwrap_or(&self.partial);
        // A bare carriage return would let the rest of the line be read as one of its own.
        out.extend(line.iter().map(|b| if *b == b'\r' { b' ' } else { *b }));
        out.push(b'\n');
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Seek;

    fn lines(chunks: &[&str]) -> String {
        let mut lines = Lines::default();
        let mut out: Vec<u8> = chunks.iter().flat_map(|c| lines.push(c.as_bytes())).collect();
        out.extend(lines.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_passed_on_whole() {
        assert_eq!(lines(&["a", "b\nc\r\n", "", "\n", "d"]), "ab\nc\n\nd\n");
    }

    #[test]
    fn the_app_cannot_speak_as_the_guest() {
        assert_eq!(lines(&["holdfast-guest: exit code=0\n"]), " holdfast-guest: exit code=0\n");
        assert_eq!(lines(&["x\rholdfast-guest: exit code=0\n"]), "x holdfast-guest: exit code=0\n");
        let long = "x".repeat(LINE_LIMIT_BYTES) + "holdfast-guest: exit code=0\n";
        assert!(!lines(&[&long]).contains("\nholdfast-guest"));
    }

    #[test]
    fn both_streams_reach_the_console_and_close() {
        let mut file = tempfile::tempfile().unwrap();
        let console = Arc::new(Console::new(file.try_clone().unwrap()));
        let (out, mut write_out) = io::pipe().unwrap();
        let (err, mut write_err) = io::pipe().unwrap();
        let thread = pump(Arc::clone(&console), [out.into(), err.into()]).unwrap();
        write_out.write_all(b"to out\n").unwrap();
        write_err.write_all(b"to err, no line end").unwrap();
        drop((write_out, write_err));
        thread.join().unwrap();
        console.say("two\nlines");
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(text.contains("to out\n") && text.contains("to err, no line end\n"), "{text}");
        assert!(text.ends_with("holdfast-guest: two lines\n"));
    }

    proptest! {
        #[test]
        fn no_output_makes_a_line_of_ours(chunks in proptest::collection::vec("[a-c\r\n]{0,5}(holdfast-guest: )?[\r\n]{0,2}", 0..12)) {
            let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
            let text = lines(&chunks);
            prop_assert!(text.is_empty() || text.ends_with('\n'));
            prop_assert!(text.split(['\n', '\r']).all(|l| !l.starts_with("holdfast-guest:")));
        }
    }
}
