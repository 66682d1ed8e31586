//! The control socket: the messages of `contract::network` on one channel for each parent.
//!
//! The service keeps the listening end; its parent may come and go. An update may be as large as the document that the
//! service was started with.

use crate::sys::Interest;
use holdfast_model::contract::network::{Reply, Request};
use holdfast_unit::packet;
use holdfast_unit::{Channel, ChannelError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Parents that a service serves at the same time.
const MAX_PEERS: usize = 4;

#[derive(Debug)]
struct Peer {
    channel: Channel,
    subscribed: bool,
}

/// The service's end.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    peers: Vec<Peer>,
}

impl Server {
    /// Over an inherited listening socket.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        packet::set_nonblocking(listener.as_fd())?;
        Ok(Self { listener, peers: Vec::new() })
    }

    /// Descriptors to wait for. A parent to which an answer is on its way is not listened to before it has all of it.
    #[must_use]
    pub fn interests(&self) -> Vec<Interest> {
        let peers =
            self.peers.iter().map(|p| Interest { fd: p.channel.as_fd().as_raw_fd(), write: p.channel.wants_write() });
        let listener = (self.peers.len() < MAX_PEERS).then(|| Interest { fd: self.listener.as_raw_fd(), write: false });
        peers.chain(listener).collect()
    }

    /// Accepts connections and answers all requests that are here. `events` are told to a new subscriber at once.
    pub fn turn(&mut self, mut answer: impl FnMut(Request) -> Reply, mut events: impl FnMut() -> Vec<Reply>) {
        while self.peers.len() < MAX_PEERS {
            match packet::accept(self.listener.as_fd()) {
                Ok(Some(fd)) => match Channel::new(fd) {
                    Ok(channel) => self.peers.push(Peer { channel, subscribed: false }),
                    Err(_) => break,
                },
                Ok(None) | Err(_) => break,
            }
        }
        self.peers.retain_mut(|peer| serve(peer, &mut answer, &mut events).is_ok());
    }

    /// Tells all subscribers. One that does not read is dropped: it will connect again and ask for the state.
    pub fn publish(&mut self, event: &Reply) {
        self.peers.retain_mut(|p| !p.subscribed || matches!(p.channel.send(event, &[]), Ok(true)));
    }
}

/// Answers what one parent has asked. An error ends its connection.
fn serve(
    peer: &mut Peer,
    answer: &mut impl FnMut(Request) -> Reply,
    events: &mut impl FnMut() -> Vec<Reply>,
) -> Result<(), ChannelError> {
    while peer.channel.flush()? {
        let Some(message) = peer.channel.try_receive()? else {
            return Ok(());
        };
        match message.parse::<Request>() {
            Ok(Request::Subscribe) => {
                peer.subscribed = true;
                peer.channel.send(&Reply::Ok, &[])?;
                for event in events() {
                    peer.channel.send(&event, &[])?;
                }
            }
            Ok(request) => {
                peer.channel.send(&answer(request), &[])?;
            }
            Err(e) => {
                peer.channel.send(&Reply::Error { text: format!("request: {e}") }, &[])?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::network::{Counters, LeaseEntry, NetworkService, NetworkV4};
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(5);

    fn service(names: u32) -> NetworkService {
        NetworkService {
            v4: NetworkV4 {
                gateway: Ipv4Addr::new(10, 1, 0, 1),
                prefix_length: 16,
                router: None,
                pool: None,
                routes: vec![],
            },
            assignments: vec![],
            domain: String::new(),
            mtu: None,
            lease_seconds: 3600,
            names: (0..names)
                .map(|n| (format!("host-{n:05}.example.internal"), vec![IpAddr::V4(Ipv4Addr::from(0x0a01_0000 + n))]))
                .collect(),
            upstreams: vec![],
        }
    }

    /// A service that answers until `stop` is true, and a parent's channel to it.
    fn serve_in_background(mut answer: impl FnMut(Request) -> Reply + Send + 'static) -> Channel {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ctl");
        let mut server = Server::new(packet::listen(&path, 4).unwrap()).unwrap();
        let channel = Channel::connect(&path).unwrap();
        std::thread::spawn(move || {
            let _directory = directory;
            for _ in 0..10_000 {
                crate::sys::poll(&server.interests(), Some(Duration::from_millis(5))).unwrap();
                server.turn(&mut answer, Vec::new);
            }
        });
        channel
    }

    #[test]
    fn a_network_with_five_thousand_names_is_updated() {
        let (sender, updates) = std::sync::mpsc::channel();
        let mut parent = serve_in_background(move |request| match request {
            Request::Update { service } => {
                sender.send(service).unwrap();
                Reply::Ok
            }
            _ => Reply::Error { text: "unexpected".into() },
        });
        let update = Request::Update { service: service(5000) };
        assert!(serde_json::to_vec(&update).unwrap().len() > 2 * packet::MAX_PACKET, "more than one packet takes");
        assert_eq!(parent.ask::<Reply>(&update, SOON).unwrap(), Reply::Ok);
        assert_eq!(updates.recv_timeout(SOON).unwrap(), service(5000));
    }

    #[test]
    fn an_answer_longer_than_the_socket_holds_arrives() {
        let lease = |n: u32| LeaseEntry {
            mac: [2, 0, 0, 0, 0, 1],
            address: Ipv4Addr::from(0x0a01_0000 + n),
            host_name: "x".repeat(63),
            remaining_seconds: 3600,
        };
        let reply = Reply::Network { leases: (0..5000).map(lease).collect(), counters: Counters::default() };
        let expected = reply.clone();
        let mut parent = serve_in_background(move |_| reply.clone());
        assert_eq!(parent.ask::<Reply>(&Request::Query, SOON).unwrap(), expected);
    }

    #[test]
    fn a_request_that_is_not_understood_is_answered_and_the_connection_stays() {
        let mut parent = serve_in_background(|_| Reply::Ok);
        let Reply::Error { text } = parent.ask::<Reply>(&"dance", SOON).unwrap() else { panic!("accepted") };
        assert!(text.contains("not understood"), "{text}");
        assert_eq!(parent.ask::<Reply>(&Request::Renew, SOON).unwrap(), Reply::Ok);
    }
}
