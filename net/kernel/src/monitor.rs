//! Tells of changes of interfaces and addresses as they happen.
//!
//! On a socket of its own, whose buffer in the kernel is the bound of what may wait: the connection of rtnetlink would
//! take all there is into a queue without end.

use crate::address;
use crate::link::Link;
use crate::netlink::{Answer, messages};
use crate::sys;
use rtnetlink::packet_core::{NetlinkDeserializable, NetlinkHeader};
use rtnetlink::packet_route::RouteNetlinkMessage;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An interface came or changed.
    Link(Link),
    /// An interface is gone.
    LinkGone(Link),
    /// An address came.
    Address(address::Found),
    /// An address is gone.
    AddressGone(address::Found),
    /// Changes were lost because they came too fast, or not understood: look at everything anew.
    Overrun,
}

/// A subscription to changes, in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Monitor {
    fd: AsyncFd<OwnedFd>,
    ready: VecDeque<Event>,
}

const GROUP_LINK: u32 = 1;
const GROUP_IPV4_ADDRESS: u32 = 0x10;

impl Monitor {
    /// Subscribes. Must be called inside a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let fd = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_NONBLOCK, libc::NETLINK_ROUTE)?;
        sys::bind_netlink(&fd, GROUP_LINK | GROUP_IPV4_ADDRESS)?;
        Ok(Self { fd: sys::register(fd)?, ready: VecDeque::new() })
    }

    /// The next change. May be dropped and called again without loss.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let mut guard = self.fd.readable().await?;
            let mut buffer = vec![0; 64 << 10];
            let read = guard.try_io(|fd| sys::receive(fd.get_ref(), &mut buffer, false));
            match read {
                Err(_would_block) => {}
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Event::Overrun),
                Ok(Err(e)) => return Err(e),
                Ok(Ok(n)) => self.ready.extend(messages(buffer.get(..n).unwrap_or(&buffer)).filter_map(|a| event(&a))),
            }
        }
    }
}

fn event(message: &Answer) -> Option<Event> {
    // A bridge tells of its ports with the same messages, of its own family: "gone" there means "left the bridge".
    let of_links = matches!(message.kind, libc::RTM_NEWLINK | libc::RTM_DELLINK);
    if of_links && message.body.first() != Some(&(libc::AF_UNSPEC as u8)) {
        return None;
    }
    let mut header = NetlinkHeader::default();
    header.message_type = message.kind;
    match RouteNetlinkMessage::deserialize(&header, &message.body) {
        Ok(RouteNetlinkMessage::NewLink(m)) => Some(Event::Link(m.into())),
        Ok(RouteNetlinkMessage::DelLink(m)) => Some(Event::LinkGone(m.into())),
        Ok(RouteNetlinkMessage::NewAddress(m)) => address::Found::read(&m).map(Event::Address),
        Ok(RouteNetlinkMessage::DelAddress(m)) => address::Found::read(&m).map(Event::AddressGone),
        Ok(_) => None,
        Err(_) => Some(Event::Overrun),
    }
}
