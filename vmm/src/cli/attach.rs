//! `vmm --attach`: this terminal becomes a console of the guest.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use holdfast_model::contract::end::{End, ExitClass};
use holdfast_vmm::control::ControlClient;

use super::control;
use super::tty::{Raw, Signals, window_size};

/// Ctrl-].
const ESCAPE: u8 = 0x1d;
/// Behind the escape: detach.
const DETACH: u8 = b'd';

/// Attaches until the user detaches or the VM ends.
///
/// # Errors
/// [`ExitClass::Resource`] when the VM cannot be reached or refuses, [`ExitClass::Stopped`] after a signal. The terminal
/// is as it was in any case.
pub fn run(socket: &Path, console: Option<&str>, replay: bool) -> Result<(), End> {
    let mut client = ControlClient::connect(socket).map_err(|e| control::end(&e))?;
    let (stream, name, _) = client.attach(console, replay).map_err(|e| control::end(&e))?;
    // Places at the control socket are few; a change of size connects again.
    drop(client);
    let here = |e: io::Error| End::host_fault(format!("console {name}: {e}"));
    let resize = || {
        if let Some(size) = window_size(1) {
            // A guest that cannot be told keeps its size.
            let _ = ControlClient::connect(socket).and_then(|mut client| client.resize(Some(&name), size));
        }
    };
    let signals = Signals::catch().map_err(here)?;
    let terminal = Raw::enter(0).map_err(here)?;
    if terminal.is_some() {
        eprint!("console {name}: Ctrl-] d detaches\r\n");
        resize();
    }
    let escape = terminal.is_some().then(Escape::default);
    // SAFETY: standard input stays open as long as the program; the wrapper does not close it.
    let keyboard = ManuallyDrop::new(unsafe { File::from_raw_fd(0) });
    let over = pump(&keyboard, &mut io::stdout().lock(), stream, &signals, escape, resize).map_err(here)?;
    drop(terminal);
    match over {
        Over::Detached => eprintln!("\nconsole {name}: detached; the VM runs on"),
        Over::Ended => eprintln!("\nconsole {name}: the VM has ended"),
        Over::Signal(signal) => {
            return Err(End::new(ExitClass::Stopped, format!("console {name}: detached by signal {signal}")));
        }
    }
    Ok(())
}

/// Why it is over.
#[derive(Debug, PartialEq, Eq)]
enum Over {
    /// The user wanted it, or nobody reads our output any more.
    Detached,
    /// The VM closed the stream.
    Ended,
    /// A signal.
    Signal(i32),
}

/// Carries bytes both ways until it is over. The end of the keyboard (a pipe) ends input only.
fn pump(
    mut keyboard: &File,
    screen: &mut impl Write,
    mut stream: UnixStream,
    signals: &Signals,
    mut escape: Option<Escape>,
    resized: impl Fn(),
) -> io::Result<Over> {
    let mut buf = [0u8; 4096];
    let mut typed: Vec<u8> = Vec::new();
    let mut listens = true;
    stream.set_nonblocking(true)?;
    loop {
        // The keyboard waits while the guest does not read.
        let keys = if listens && typed.is_empty() { libc::POLLIN } else { 0 };
        let room = if typed.is_empty() { 0 } else { libc::POLLOUT };
        let [from_keyboard, from_stream, from_signals] = poll([
            (if keys == 0 { -1 } else { keyboard.as_raw_fd() }, keys),
            (stream.as_raw_fd(), libc::POLLIN | room),
            (signals.fd(), libc::POLLIN),
        ])?;
        while let Some(signal) = from_signals.then(|| signals.next()).flatten() {
            if signal != libc::SIGWINCH {
                return Ok(Over::Signal(signal));
            }
            resized();
        }
        if from_stream {
            match stream.read(&mut buf) {
                Ok(0) => return Ok(Over::Ended),
                Ok(got) => {
                    if screen.write_all(&buf[..got]).and_then(|()| screen.flush()).is_err() {
                        return Ok(Over::Detached);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Ok(Over::Ended),
            }
        }
        if from_keyboard {
            let got = keyboard.read(&mut buf)?;
            let detach = match &mut escape {
                Some(escape) => escape.pass(&buf[..got], &mut typed),
                None => {
                    typed.extend(&buf[..got]);
                    false
                }
            };
            if detach {
                return Ok(Over::Detached);
            }
            if got == 0 {
                listens = false;
                stream.shutdown(Shutdown::Write)?;
            }
        }
        if !typed.is_empty() {
            match stream.write(&typed) {
                Ok(written) => drop(typed.drain(..written)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Ok(Over::Ended),
            }
        }
    }
}

/// Waits for one of them; which are ready.
fn poll<const N: usize>(wanted: [(RawFd, libc::c_short); N]) -> io::Result<[bool; N]> {
    let mut polls = wanted.map(|(fd, events)| libc::pollfd { fd, events, revents: 0 });
    // SAFETY: the array is as long as said.
    while unsafe { libc::poll(polls.as_mut_ptr(), N as libc::nfds_t, -1) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(polls.map(|poll| poll.revents != 0))
}

/// Finds the user's wish to detach among what is typed.
#[derive(Debug, Default)]
struct Escape {
    /// The escape was typed last.
    begun: bool,
}

impl Escape {
    /// Passes `typed` on to `out` without escapes; `true` when the user wants to detach.
    fn pass(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for byte in typed {
            match (std::mem::take(&mut self.begun), *byte) {
                (true, DETACH) => return true,
                (false, ESCAPE) => self.begun = true,
                (true, ESCAPE) => out.push(ESCAPE),
                // Not for us after all.
                (true, byte) => out.extend([ESCAPE, byte]),
                (false, byte) => out.push(byte),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    #[test]
    fn escape_is_found_across_reads_and_can_be_typed() {
        for (parts, sent, detached) in [
            (&["ls\n"][..], "ls\n", false),
            (&["a\x1dd"], "a", true),
            (&["a\x1d", "d"], "a", true),
            (&["\x1d\x1d", "d"], "\x1dd", false),
            (&["\x1d", "x"], "\x1dx", false),
        ] {
            let (mut escape, mut out) = (Escape::default(), Vec::new());
            let over = parts.iter().any(|part| escape.pass(part.as_bytes(), &mut out));
            assert_eq!((out.as_slice(), over), (sent.as_bytes(), detached), "{parts:?}");
        }
    }

    /// Runs the pump with a piped keyboard and returns why it ended and what was on the screen.
    fn session(escape: Option<Escape>, talk: impl FnOnce(UnixStream, io::PipeWriter)) -> (Over, Vec<u8>) {
        let (keyboard, keys) = io::pipe().unwrap();
        let (vm, stream) = UnixStream::pair().unwrap();
        let signals = Signals::catch().unwrap();
        let pump = std::thread::spawn(move || {
            let mut screen = Vec::new();
            let keyboard = File::from(OwnedFd::from(keyboard));
            let over = pump(&keyboard, &mut screen, stream, &signals, escape, || {}).unwrap();
            (over, screen)
        });
        talk(vm, keys);
        pump.join().unwrap()
    }

    #[test]
    fn bytes_go_both_ways_until_the_vm_ends() {
        let (over, screen) = session(None, |mut vm, mut keys| {
            vm.write_all(b"login: ").unwrap();
            keys.write_all(b"root\x1dd\n").unwrap();
            let mut got = [0; 7];
            vm.read_exact(&mut got).unwrap();
            // Without a terminal nothing is an escape.
            assert_eq!(&got, b"root\x1dd\n");
            drop(keys);
            assert_eq!(vm.read(&mut got).unwrap(), 0, "the end of a pipe is passed on");
            vm.write_all(b"bye").unwrap();
        });
        assert_eq!((over, screen.as_slice()), (Over::Ended, b"login: bye".as_slice()));
    }

    #[test]
    fn user_detaches_and_the_vm_sees_the_end() {
        let (over, _) = session(Some(Escape::default()), |mut vm, mut keys| {
            keys.write_all(b"\x1dd").unwrap();
            assert_eq!(vm.read(&mut [0]).unwrap(), 0);
        });
        assert_eq!(over, Over::Detached);
    }
}
