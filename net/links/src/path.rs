//! A cable between two VMs that know nothing of each other but a path.
//!
//! ```text
//!  PATH     an empty file: locks on its bytes are the two seats, and the turn to take one
//!  PATH.0   where the VM on seat 0 listens      PATH.1   where the VM on seat 1 listens
//! ```
//!
//! 1. **Who comes later connects.** Each end takes a free seat, listens there, and connects to the other seat if somebody
//!    sits on it; ends come one at a time, so exactly one of two connects, whichever starts first.
//! 2. **Nothing is opened after that.** An end whose partner goes away waits on the socket that it has had from the start:
//!    the partner's successor connects to it. So it works in a jail, where no path leads anywhere.
//! 3. **Seats end with their holders**: a lock goes with the last descriptor of a process that ends, however it ends. Socket
//!    files left behind are in nobody's way.
//! 4. **An unplugged cable loses frames**, as on a wire; the guest does not wait.

use crate::{Buffer, Link, UnixLink, sys};
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Longest path in bytes: `sun_path` has 108 (unix(7)), of which the seat's suffix and the final zero take three.
pub const LONGEST: usize = 105;
/// How long a seat is waited for: the kernel closes the descriptors of a process a little after its end.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// Seats of a cable, and the bytes of its file that stand for them.
const SEATS: [u8; 2] = [0, 1];
/// The byte whose lock is the turn to take a seat.
const TURN: u8 = 2;
/// Connections that may wait for an end that does not look: each start of its partner makes one.
const BACKLOG: libc::c_int = 64;

/// A cable cannot be had.
#[derive(Debug, Error)]
pub enum PathError {
    /// Both seats have their holder.
    #[error("two VMs are plugged into it already")]
    Taken,
    /// The partner lives but takes no connections.
    #[error("the VM at {other} does not answer: {BACKLOG} connections wait for it already")]
    Deaf {
        /// Its socket.
        other: PathBuf,
    },
    /// A system call failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
}

impl PathError {
    fn io<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Self + 'a {
        move |source| PathError::Io { what, path: path.to_path_buf(), source }
    }
}

/// One end of the cable, with a partner or without.
#[derive(Debug)]
pub struct PathLink {
    /// Keeps the seat.
    _seat: File,
    listener: OwnedFd,
    /// Watches the listener and the partner's connection, so that users see one descriptor for life.
    watch: OwnedFd,
    partner: RefCell<Option<UnixLink>>,
}

impl PathLink {
    /// Takes a free seat of the cable at `path`, at most [`LONGEST`] bytes, and connects to the partner if it is there. A
    /// seat that is taken may become free within `patience`.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn plug(path: &Path, patience: Duration) -> Result<Self, PathError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(path)
            .map_err(PathError::io("open", path))?;
        let deadline = Instant::now() + patience;
        loop {
            // A turn lasts a few system calls that never wait.
            sys::lock_byte(&file, TURN, true).map_err(PathError::io("lock", path))?;
            if let Some(seat) = free_seat(&file).map_err(PathError::io("lock", path))? {
                let plugged = Self::sit_down(file.try_clone().map_err(PathError::io("duplicate", path))?, path, seat);
                sys::unlock_byte(&file, TURN).map_err(PathError::io("unlock", path))?;
                return plugged;
            }
            sys::unlock_byte(&file, TURN).map_err(PathError::io("unlock", path))?;
            if Instant::now() >= deadline {
                return Err(PathError::Taken);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Listens on `seat` and looks for the partner. Called by the holder of the turn.
    fn sit_down(file: File, path: &Path, seat: u8) -> Result<Self, PathError> {
        let (own, other) = (socket(path, seat), socket(path, 1 - seat));
        match std::fs::remove_file(&own) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(PathError::io("replace", &own)(e)),
            _ => {}
        }
        let listener = sys::listen_for_packets(&own, BACKLOG).map_err(PathError::io("listen at", &own))?;
        let watch = sys::watch().map_err(PathError::io("watch", path))?;
        sys::watch_edges(&watch, &listener).map_err(PathError::io("watch", &own))?;
        let this = Self { _seat: file, listener, watch, partner: RefCell::new(None) };
        match sys::connect_for_packets(&other) {
            Ok(fd) => this.take(fd).map_err(PathError::io("watch", &other))?,
            // Nobody has been there, or nobody is any more.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(PathError::Deaf { other }),
            Err(e) => return Err(PathError::io("connect to", &other)(e)),
        }
        Ok(this)
    }

    /// Makes `fd` the partner.
    fn take(&self, fd: OwnedFd) -> io::Result<()> {
        sys::watch_edges(&self.watch, &fd)?;
        *self.partner.borrow_mut() = Some(UnixLink::connected(fd));
        Ok(())
    }

    /// Lets `act` work with the partner; with its successor when it has gone.
    ///
    /// # Errors
    /// `NotConnected` when nobody is at the other end; otherwise what `act` says.
    fn with_partner(&self, mut act: impl FnMut(&UnixLink) -> io::Result<usize>) -> io::Result<usize> {
        // Connections of partners that came and went meanwhile may wait before the one that is alive.
        for _ in 0..=BACKLOG {
            let done = self.partner.borrow().as_ref().map(&mut act);
            match done {
                Some(Err(e)) if is_gone(&e) => *self.partner.borrow_mut() = None,
                Some(done) => return done,
                None => {}
            }
            match sys::accept_packets(&self.listener) {
                Ok(fd) => self.take(fd)?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Err(ErrorKind::NotConnected.into())
    }
}

/// Locks the first seat that has no holder.
fn free_seat(file: &File) -> io::Result<Option<u8>> {
    for seat in SEATS {
        match sys::lock_byte(file, seat, false) {
            Ok(()) => return Ok(Some(seat)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// Where the holder of `seat` listens.
fn socket(path: &Path, seat: u8) -> PathBuf {
    let mut name = path.as_os_str().as_bytes().to_vec();
    name.extend([b'.', b'0' + seat]);
    PathBuf::from(std::ffi::OsStr::from_bytes(&name))
}

/// Whether the other end of a connection is no more.
fn is_gone(e: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(e.kind(), UnexpectedEof | ConnectionReset | BrokenPipe | NotConnected)
}

impl Link for PathLink {
    /// Partners come and go behind it; room for a frame shows as readable too.
    fn fd(&self) -> RawFd {
        self.watch.as_raw_fd()
    }

    fn receive(&self, buffers: &mut [Buffer]) -> io::Result<usize> {
        self.with_partner(|partner| partner.receive(buffers)).map_err(|e| match e.kind() {
            // Whoever comes is a reason to look again.
            ErrorKind::NotConnected => ErrorKind::WouldBlock.into(),
            _ => e,
        })
    }

    fn transmit(&self, buffers: &mut [Buffer]) -> io::Result<usize> {
        self.with_partner(|partner| partner.transmit(buffers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HEADER;

    fn plug(path: &Path) -> PathLink {
        PathLink::plug(path, Duration::ZERO).unwrap()
    }

    /// The cable's path in a folder of its own.
    fn cable() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cable");
        (folder, path)
    }

    fn buffer(memory: &mut [u8]) -> [Buffer; 1] {
        // SAFETY: the callers keep the memory and read it only after the last use of the buffer.
        #[allow(unsafe_code)]
        unsafe {
            [Buffer::new(memory.as_mut_ptr(), memory.len())]
        }
    }

    fn send(link: &PathLink, byte: u8) -> io::Result<usize> {
        link.transmit(&mut buffer(&mut [byte; HEADER + 60]))
    }

    /// The bytes that the frames which have come are made of.
    fn received(link: &PathLink) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let mut frame = [0; 100];
            match link.receive(&mut buffer(&mut frame)) {
                Ok(len) => {
                    assert_eq!(len, HEADER + 60);
                    bytes.push(frame[HEADER + 59]);
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock, "{e}");
                    return bytes;
                }
            }
        }
    }

    fn hear_each_other(one: &PathLink, other: &PathLink) {
        for (from, to, byte) in [(one, other, 1), (other, one, 2), (one, other, 3)] {
            assert_eq!(send(from, byte).unwrap(), HEADER + 60);
            assert_eq!(received(to), [byte]);
        }
    }

    /// Whether an edge-triggered watch of `fd`, as the VMM has it, has news.
    struct Watch(OwnedFd);

    impl Watch {
        fn of(link: &PathLink) -> Self {
            let watch = sys::watch().unwrap();
            sys::watch_edges(&watch, &link.watch).unwrap();
            Self(watch)
        }

        fn news(&self) -> bool {
            sys::watch_has_news(&self.0)
        }
    }

    #[test]
    fn the_first_frame_may_come_from_either_end() {
        for first_sends in [true, false] {
            let (_folder, path) = cable();
            let (first, second) = (plug(&path), plug(&path));
            let (from, to) = if first_sends { (&first, &second) } else { (&second, &first) };
            assert!(send(from, 7).is_ok());
            assert_eq!(received(to), [7]);
            hear_each_other(&first, &second);
        }
    }

    #[test]
    fn frames_to_nobody_are_lost_and_do_not_block() {
        let (_folder, path) = cable();
        let alone = plug(&path);
        assert_eq!(send(&alone, 1).unwrap_err().kind(), ErrorKind::NotConnected);
        assert_eq!(received(&alone), []);
        let other = plug(&path);
        assert_eq!(received(&other), [], "what was sent to nobody does not come");
        hear_each_other(&alone, &other);
    }

    #[test]
    fn an_end_that_comes_back_finds_the_other_again_and_again() {
        let (_folder, path) = cable();
        // Each of the ends in turn is the one that stays.
        let (mut stays, mut goes) = (plug(&path), plug(&path));
        for round in 0..6 {
            hear_each_other(&stays, &goes);
            // What it had not taken goes with it.
            send(&stays, 9).unwrap();
            drop(goes);
            if round % 2 == 0 {
                assert_eq!(send(&stays, 9).unwrap_err().kind(), ErrorKind::NotConnected, "noticed by sending");
            } else {
                assert_eq!(received(&stays), [], "noticed by receiving");
            }
            goes = plug(&path);
            hear_each_other(&goes, &stays);
            std::mem::swap(&mut stays, &mut goes);
        }
    }

    #[test]
    fn partners_that_went_unseen_are_passed_over() {
        let (_folder, path) = cable();
        let stays = plug(&path);
        for _ in 0..10 {
            send(&plug(&path), 5).unwrap();
        }
        let last = plug(&path);
        send(&last, 6).unwrap();
        let got = received(&stays);
        assert_eq!(got.last(), Some(&6), "{got:?}");
        hear_each_other(&stays, &last);
    }

    #[test]
    fn a_partner_that_never_looks_is_named() {
        let (_folder, path) = cable();
        let _deaf = plug(&path);
        let refused = (0..200).find_map(|_| PathLink::plug(&path, Duration::ZERO).err()).expect("never full");
        let text = refused.to_string();
        assert!(matches!(refused, PathError::Deaf { .. }) && text.contains("cable.0"), "{text}");
    }

    #[test]
    fn a_third_is_refused_until_a_seat_is_free() {
        let (_folder, path) = cable();
        let (one, two) = (plug(&path), plug(&path));
        for _ in 0..2 {
            assert!(matches!(PathLink::plug(&path, Duration::ZERO), Err(PathError::Taken)));
        }
        hear_each_other(&one, &two);
        drop(one);
        hear_each_other(&two, &plug(&path));
    }

    #[test]
    fn a_seat_that_becomes_free_in_time_is_had() {
        let (_folder, path) = cable();
        let (one, two) = (plug(&path), plug(&path));
        let waits = std::thread::spawn({
            let path = path.clone();
            move || PathLink::plug(&path, Duration::from_secs(60))
        });
        drop(one);
        hear_each_other(&two, &waits.join().unwrap().unwrap());
    }

    #[test]
    fn what_others_left_behind_is_no_obstacle() {
        let (_folder, path) = cable();
        drop((plug(&path), plug(&path)));
        for seat in SEATS {
            assert!(socket(&path, seat).exists(), "this is what a VM leaves behind");
        }
        hear_each_other(&plug(&path), &plug(&path));
        // A plain file in the socket's place is as good.
        std::fs::remove_file(socket(&path, 1)).unwrap();
        std::fs::write(socket(&path, 1), "x").unwrap();
        hear_each_other(&plug(&path), &plug(&path));
    }

    #[test]
    fn of_many_that_start_at_once_two_meet() {
        for _ in 0..20 {
            let (_folder, path) = cable();
            let start = std::sync::Barrier::new(4);
            let (start, path) = (&start, &path);
            let ends = std::thread::scope(|scope| {
                let starts = [(); 4].map(|()| {
                    scope.spawn(move || {
                        start.wait();
                        PathLink::plug(path, Duration::ZERO)
                    })
                });
                starts.map(|end| end.join().unwrap())
            });
            let [one, other] = &ends.iter().flatten().collect::<Vec<_>>()[..] else { panic!("not two: {ends:?}") };
            hear_each_other(one, other);
        }
    }

    #[test]
    fn one_descriptor_tells_of_partners_frames_and_room() {
        let (_folder, path) = cable();
        let stays = plug(&path);
        let watch = Watch::of(&stays);
        let quiet = || {
            assert_eq!(received(&stays), []);
            while watch.news() {
                assert_eq!(received(&stays), []);
            }
        };
        quiet();
        let partner = plug(&path);
        assert!(watch.news(), "a partner");
        quiet();
        for byte in 0..3 {
            send(&partner, byte).unwrap();
            assert!(watch.news(), "frame {byte}");
            assert_eq!(received(&stays), [byte]);
            quiet();
        }
        while send(&stays, 1).is_ok() {}
        quiet();
        assert!(!received(&partner).is_empty());
        assert!(watch.news(), "room");
        quiet();
        drop(partner);
        assert!(watch.news(), "the partner's end");
        quiet();
        let _successor = plug(&path);
        assert!(watch.news(), "its successor");
    }

    #[test]
    fn places_that_cannot_be_used_are_named() {
        let folder = tempfile::tempdir().unwrap();
        for (path, words) in
            [(folder.path().join("none/cable"), &["open", "none/cable"][..]), (folder.path().into(), &["open"])]
        {
            let text = PathLink::plug(&path, Duration::ZERO).unwrap_err().to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
        let path = folder.path().join("cable");
        std::fs::create_dir(socket(&path, 0)).unwrap();
        let text = PathLink::plug(&path, Duration::ZERO).unwrap_err().to_string();
        assert!(text.contains("replace") && text.contains("cable.0"), "{text}");
        std::fs::remove_dir(socket(&path, 0)).unwrap();
        hear_each_other(&plug(&path), &plug(&path));
    }
}
