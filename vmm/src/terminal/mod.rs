//! The host's side of one console: where the guest's output goes, where its input comes from.
//!
//! ```text
//!                    +--> main output: file, pipe, socket
//!  guest --> history +--> each attached client
//!
//!  guest <--+-- main input
//!           +-- each attached client
//! ```
//!
//! 1. **The guest never waits.** Output is put into the [`history`] and each reader follows at its own pace; one that is
//!    more than [`KEPT`] bytes behind loses the oldest, and is told so in its place.
//! 2. **Late is not too late.** A client that attaches may ask for the history first, then for what follows.
//! 3. **Input is read only when the guest has room for it**, so it waits in the sender's own buffer.
//! 4. **Bounded.** [`KEPT`] bytes and [`MAX_ATTACHED`] clients for each console, whatever anybody does.

mod history;
mod peer;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_model::contract::vm::{ConsoleStats, WindowSize};
use vmm_sys_util::eventfd::EventFd;

use self::history::History;
pub use self::history::KEPT;
use self::peer::{Peer, socket_pair};

/// Clients attached to one console at once.
pub const MAX_ATTACHED: usize = 4;
/// Place of the main output.
const OUTPUT: usize = 0;
/// Place of the main input.
const INPUT: usize = 1;
/// Place of the first client.
const CLIENTS: usize = 2;

/// The guest's end of a console, on whatever thread it lives.
pub trait GuestEnd: Send + Sync {
    /// Input may be waiting in the terminal, or its window has another size.
    fn host_changed(&self);
}

/// A virtio port watches its eventfd on the device thread.
impl GuestEnd for EventFd {
    fn host_changed(&self) {
        let _ = self.write(1);
    }
}

/// A client's end of an attachment, and what the event loop must watch for it.
#[derive(Debug)]
pub struct Attachment {
    /// Goes to the client.
    pub client: OwnedFd,
    /// Bytes of history it will see first.
    pub replayed: u64,
    /// Watched, edge-triggered, for input and room for output.
    pub watch: (RawFd, usize),
}

/// The host's side of one console. Shared by the guest's end and the device thread; the lock is held for a copy and a few
/// system calls that never block.
#[derive(Debug)]
pub struct Terminal {
    name: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    history: History,
    /// Main output, main input, clients; an empty place is `None`.
    peers: [Option<Peer>; CLIENTS + MAX_ATTACHED],
    /// The place that gave input last: the others come first.
    last: usize,
    in_bytes: u64,
    size: WindowSize,
    follows_size: bool,
}

impl Terminal {
    /// A console called `name` with its main ends; what is both is given twice, once duplicated.
    pub fn new(name: impl Into<String>, output: Option<OwnedFd>, input: Option<OwnedFd>) -> Arc<Self> {
        Self::with_size(name, output, input, WindowSize::default())
    }

    /// The same with a window of another size.
    pub fn with_size(
        name: impl Into<String>,
        output: Option<OwnedFd>,
        input: Option<OwnedFd>,
        size: WindowSize,
    ) -> Arc<Self> {
        let mut inner = Inner { size, ..Inner::default() };
        inner.peers[OUTPUT] = output.map(|fd| Peer::output(fd, 0));
        inner.peers[INPUT] = input.map(Peer::input);
        Arc::new(Self { name: name.into(), inner: Mutex::new(inner) })
    }

    /// Name for those who attach.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest wrote `data`.
    pub fn put(&self, data: &[u8]) {
        let mut inner = self.lock();
        inner.history.push(data);
        inner.flush();
    }

    /// The output that is kept, oldest byte first.
    pub fn kept(&self) -> Vec<u8> {
        let inner = self.lock();
        let (mut at, mut kept) = (inner.history.start(), Vec::new());
        while at < inner.history.end() {
            let part = inner.history.from(at);
            kept.extend_from_slice(part);
            at += part.len() as u64;
        }
        kept
    }

    /// The guest has room for input: fills `buf` from whoever has some. 0 when nobody has: then
    /// [`GuestEnd::host_changed`] tells when that changes.
    pub fn take(&self, buf: &mut [u8]) -> usize {
        let mut inner = self.lock();
        let (places, last) = (inner.peers.len(), inner.last);
        for place in (1..=places).map(|n| (last + n) % places) {
            let Some(peer) = &mut inner.peers[place] else {
                continue;
            };
            let got = peer.read(buf);
            inner.drop_if_over(place);
            if got > 0 {
                inner.last = place;
                inner.in_bytes += got as u64;
                return got;
            }
        }
        0
    }

    /// What the event loop watches from the start: descriptors and their places, edge-triggered.
    pub fn sources(&self) -> Vec<(RawFd, usize)> {
        let inner = self.lock();
        inner.peers.iter().enumerate().filter_map(|(place, peer)| Some((peer.as_ref()?.fd(), place))).collect()
    }

    /// The descriptor of `place` became ready. Says whether the guest should be told.
    pub fn ready(&self, place: usize) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(Some(peer)) = inner.peers.get_mut(place) else {
            return false;
        };
        if place >= CLIENTS {
            peer.notice_hang_up();
        }
        peer.flush(&inner.history);
        let input = peer.notice_input();
        inner.drop_if_over(place);
        input
    }

    /// A new client, with or without the history. One that has hung up makes room.
    ///
    /// # Errors
    /// In words for the client: all places are taken, or the host is out of descriptors.
    pub fn attach(&self, replay: bool) -> Result<Attachment, String> {
        let mut inner = self.lock();
        let free = |peer: &Option<Peer>| peer.as_ref().is_none_or(Peer::hung_up);
        let Some(place) = inner.peers[CLIENTS..].iter().position(free).map(|n| CLIENTS + n) else {
            return Err(format!("console {}: {MAX_ATTACHED} clients are attached already; detach one", self.name));
        };
        let (ours, client) = socket_pair().map_err(|e| format!("console {}: cannot make a socket: {e}", self.name))?;
        let end = inner.history.end();
        let at = if replay { inner.history.start() } else { end };
        let watch = (ours.as_raw_fd(), place);
        let mut peer = Peer::both(ours, at);
        peer.flush(&inner.history);
        inner.peers[place] = Some(peer);
        Ok(Attachment { client, replayed: end - at, watch })
    }

    /// Changes the window's size. `false` when the guest's end cannot be told.
    pub fn resize(&self, size: WindowSize) -> bool {
        let mut inner = self.lock();
        if inner.follows_size {
            inner.size = size;
        }
        inner.follows_size
    }

    /// The window's size.
    pub fn size(&self) -> WindowSize {
        self.lock().size
    }

    /// The guest's end says whether it can be told of another size.
    pub fn set_follows_size(&self, follows: bool) {
        self.lock().follows_size = follows;
    }

    /// Counters.
    pub fn stats(&self) -> ConsoleStats {
        let inner = self.lock();
        let attached = inner.peers[CLIENTS..].iter().flatten().filter(|peer| !peer.hung_up()).count();
        ConsoleStats {
            out_bytes: inner.history.end(),
            in_bytes: inner.in_bytes,
            lost_bytes: inner.peers[OUTPUT].as_ref().map_or(0, Peer::lost),
            attached: u32::try_from(attached).unwrap_or(u32::MAX),
        }
    }
}

impl Inner {
    fn flush(&mut self) {
        for place in 0..self.peers.len() {
            if let Some(peer) = &mut self.peers[place] {
                peer.flush(&self.history);
            }
            self.drop_if_over(place);
        }
    }

    /// A client that is done leaves its place. Its socket is nobody else's, so closing it ends the watch too; the main
    /// ends are shared descriptions and stay.
    fn drop_if_over(&mut self, place: usize) {
        if place >= CLIENTS && self.peers[place].as_ref().is_some_and(Peer::over) {
            self.peers[place] = None;
        }
    }
}

/// A writer into a terminal, for devices that want one.
#[derive(Debug)]
pub struct Writer(pub Arc<Terminal>);

impl Write for Writer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.put(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
