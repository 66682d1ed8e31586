//! The card against a mock driver and cables made of sockets.

mod control;
mod frames;
mod hostile;
mod limits;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use holdfast_links::{Buffer, HEADER, Link, Offloads};

use super::features::MRG_RXBUF;
use super::*;
use crate::memory::GuestRam;
use crate::virtio::testing::{Driver, activation};
use crate::virtio::{ActiveDevice, DeviceFault, F_VERSION_1};
use holdfast_model::contract::vm::MacAddress;

const RECEIVE: u8 = active::RECEIVE;
const TRANSMIT: u8 = active::TRANSMIT;
const LINK: u8 = active::LINK;

/// A cable that carries the header as a tap does, and remembers what was asked of it.
#[derive(Debug)]
struct Wire {
    socket: UnixDatagram,
    asked: Arc<Mutex<Asked>>,
}

#[derive(Debug, Default)]
struct Asked {
    enabled: bool,
    offloads: Offloads,
}

/// The far end of a [`Wire`].
struct Peer {
    socket: UnixDatagram,
    asked: Arc<Mutex<Asked>>,
}

fn wire() -> (Box<dyn Link>, Peer) {
    let (here, there) = UnixDatagram::pair().unwrap();
    for socket in [&here, &there] {
        socket.set_nonblocking(true).unwrap();
    }
    let asked = Arc::new(Mutex::new(Asked { enabled: true, offloads: Offloads::NONE }));
    (Box::new(Wire { socket: here, asked: asked.clone() }), Peer { socket: there, asked })
}

impl Link for Wire {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true }
    }

    fn set_offloads(&self, accepted: Offloads) -> io::Result<()> {
        self.asked.lock().unwrap().offloads = accepted;
        Ok(())
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.asked.lock().unwrap().enabled = enabled;
        Ok(())
    }

    fn receive(&self, buffers: &mut [Buffer]) -> io::Result<usize> {
        // SAFETY: a `Buffer` is an iovec of memory that is there while it is used.
        let got = unsafe { libc::readv(self.fd(), buffers.as_ptr().cast(), buffers.len() as libc::c_int) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    fn transmit(&self, buffers: &mut [Buffer]) -> io::Result<usize> {
        // SAFETY: as above.
        let sent = unsafe { libc::writev(self.fd(), buffers.as_ptr().cast(), buffers.len() as libc::c_int) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

impl Peer {
    fn send(&self, frame: &[u8]) {
        assert_eq!(self.socket.send(frame).unwrap(), frame.len());
    }

    /// The next frame, if there is one.
    fn take(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 100_000];
        let len = self.socket.recv(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    fn count(&self) -> usize {
        std::iter::from_fn(|| self.take()).count()
    }

    fn enabled(&self) -> bool {
        self.asked.lock().unwrap().enabled
    }
}

/// A frame of `len` bytes behind an empty header.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend((0..len).map(|n| n as u8));
    frame
}

fn options() -> NetOptions {
    NetOptions { mtu: Some(1400), ..NetOptions::new("net0", MacAddress([2, 0, 0, 0, 0, 1])) }
}

/// A card whose pairs are on these cables.
fn net(links: Vec<Box<dyn Link>>, options: NetOptions) -> Box<Net> {
    Box::new(Net::new(links.into_iter().map(Lane::User).collect(), options))
}

/// Activates `net` with these drivers' queues, numbered in their order.
fn activate(net: Box<Net>, drivers: &[&Driver<'_>], features: u64) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
    let (mut activation, _) = activation(drivers[0].ram, drivers);
    activation.features = F_VERSION_1 | features;
    crate::virtio::Device::activate(net, activation)
}

/// A card with one pair, its driver and the far end of its cable.
struct Card<'a> {
    receive: Driver<'a>,
    transmit: Driver<'a>,
    peer: Peer,
    active: Box<dyn ActiveDevice>,
}

impl<'a> Card<'a> {
    /// With mergeable buffers and queues of 16 entries.
    fn new(ram: &'a Arc<GuestRam>) -> Self {
        Self::with(ram, MRG_RXBUF, [16, 16], options())
    }

    /// With these features and sizes of the queues.
    fn with(ram: &'a Arc<GuestRam>, features: u64, sizes: [u16; 2], options: NetOptions) -> Self {
        let (receive, transmit) = (Driver::new(ram, 0, sizes[0]), Driver::new(ram, 1, sizes[1]));
        let (link, peer) = wire();
        let active = activate(net(vec![link], options), &[&receive, &transmit], features).unwrap();
        Self { receive, transmit, peer, active }
    }
}
