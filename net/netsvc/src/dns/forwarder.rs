//! Queries under way at upstream servers over UDP. One socket for each: connected afresh for every query, so each has a
//! random port of its own beside its random id, and the kernel drops what comes from elsewhere.

use super::message::{Code, Query, is_reply_to};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Wait for one server.
const TRY: Duration = Duration::from_secs(2);
/// Servers asked (or asked again) for one query.
const TRIES: u32 = 3;

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// To the app that asked.
    Reply {
        /// The app.
        to: SocketAddr,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Over that socket, connected afresh, to a server.
    Ask {
        /// Index of the socket.
        slot: usize,
        /// The server.
        server: SocketAddr,
        /// The message.
        bytes: Vec<u8>,
    },
}

#[derive(Debug)]
struct Pending {
    client: SocketAddr,
    query: Query,
    /// As sent upstream, with our id.
    bytes: Vec<u8>,
    server: usize,
    tries: u32,
    deadline: Instant,
}

/// Table of pending queries.
#[derive(Debug)]
pub struct Forwarder {
    slots: Vec<Option<Pending>>,
    servers: Vec<SocketAddr>,
    /// Server that answered last.
    preferred: usize,
}

impl Forwarder {
    /// With as many queries at a time as there are sockets.
    #[must_use]
    pub fn new(sockets: usize, servers: Vec<SocketAddr>) -> Self {
        Self { slots: (0..sockets).map(|_| None).collect(), servers, preferred: 0 }
    }

    /// New servers; queries under way time out and go on with these.
    pub fn set_servers(&mut self, servers: Vec<SocketAddr>) {
        if servers != self.servers {
            self.servers = servers;
            self.preferred = 0;
        }
    }

    /// Server to ask first.
    #[must_use]
    pub fn preferred(&self) -> Option<SocketAddr> {
        self.servers.get(self.preferred).copied()
    }

    /// True when something is pending on the socket.
    #[must_use]
    pub fn is_busy(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(Option::is_some)
    }

    /// When [`on_timer`](Self::on_timer) must be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.slots.iter().flatten().map(|p| p.deadline).min()
    }

    /// A query that own names do not answer. `id` is a fresh random number. `None`: a repetition of one under way.
    pub fn ask(&mut self, now: Instant, client: SocketAddr, query: Query, raw: &[u8], id: u16) -> Option<Step> {
        let same = |p: &Pending| p.client == client && p.query == query;
        if self.slots.iter().flatten().any(same) {
            return None;
        }
        let free = self.slots.iter().position(Option::is_none);
        let (Some(slot), Some(server)) = (free, self.preferred()) else {
            return Some(Step::Reply { to: client, bytes: query.reply(Code::ServerFailure, &[]) });
        };
        let mut bytes = raw.to_vec();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        self.slots[slot] = Some(Pending {
            client,
            query,
            bytes: bytes.clone(),
            server: self.preferred,
            tries: 1,
            deadline: now + TRY,
        });
        Some(Step::Ask { slot, server, bytes })
    }

    /// A datagram came on that socket. `None`: not the answer.
    pub fn on_answer(&mut self, slot: usize, data: &[u8]) -> Option<Step> {
        let place = self.slots.get_mut(slot)?;
        if !place.as_ref().is_some_and(|p| is_reply_to(data, &p.bytes)) {
            return None;
        }
        let p = place.take()?;
        if p.server < self.servers.len() {
            self.preferred = p.server;
        }
        let mut bytes = data.to_vec();
        bytes[..2].copy_from_slice(&p.query.id.to_be_bytes());
        Some(Step::Reply { to: p.client, bytes })
    }

    /// The server of that socket cannot be reached: do not wait for it.
    pub fn on_error(&mut self, slot: usize, now: Instant) {
        if let Some(Some(p)) = self.slots.get_mut(slot) {
            p.deadline = p.deadline.min(now);
        }
    }

    /// Asks the next server for what got no answer in time, or gives up.
    pub fn on_timer(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        for (slot, place) in self.slots.iter_mut().enumerate() {
            let Some(p) = place.as_mut().filter(|p| p.deadline <= now) else {
                continue;
            };
            if p.tries >= TRIES || self.servers.is_empty() {
                steps.push(Step::Reply { to: p.client, bytes: p.query.reply(Code::ServerFailure, &[]) });
                *place = None;
                continue;
            }
            p.tries += 1;
            p.server = (p.server + 1) % self.servers.len();
            p.deadline = now + TRY;
            steps.push(Step::Ask { slot, server: self.servers[p.server], bytes: p.bytes.clone() });
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::A;
    use crate::dns::message::tests::query;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    fn asked(f: &mut Forwarder, now: Instant, name: &str) -> Option<Step> {
        let raw = query(7, name, A);
        f.ask(now, address("10.1.0.5:4000"), Query::parse(&raw).expect("query"), &raw, 0xbeef)
    }

    fn answer_to(bytes: &[u8]) -> Vec<u8> {
        Query::parse(bytes).expect("query").reply(Code::NoError, &[])
    }

    #[test]
    fn answer_goes_back_under_the_clients_id() {
        let now = Instant::now();
        let mut f = Forwarder::new(2, vec![address("192.0.2.1:53")]);
        let Some(Step::Ask { slot: 0, bytes, .. }) = asked(&mut f, now, "a.example") else { panic!("asks") };
        assert_eq!(&bytes[..2], &[0xbe, 0xef]);
        let mut forged = answer_to(&bytes);
        forged[0] ^= 1;
        assert_eq!(f.on_answer(0, &forged), None);
        let Some(Step::Reply { to, bytes }) = f.on_answer(0, &answer_to(&bytes)) else { panic!("replies") };
        assert_eq!((to, &bytes[..2]), (address("10.1.0.5:4000"), &[0, 7][..]));
        assert_eq!(f.deadline(), None);
    }

    #[test]
    fn silent_servers_are_left_for_the_next_and_the_one_that_answers_is_kept() {
        let mut now = Instant::now();
        let mut f = Forwarder::new(2, vec![address("192.0.2.1:53"), address("192.0.2.2:53")]);
        asked(&mut f, now, "a.example");
        now += TRY;
        let steps = f.on_timer(now);
        let [Step::Ask { server, bytes, .. }] = steps.as_slice() else { panic!("asks again") };
        assert_eq!(*server, address("192.0.2.2:53"));
        f.on_answer(0, &answer_to(bytes)).expect("answer");
        assert_eq!(f.preferred(), Some(address("192.0.2.2:53")));
    }

    #[test]
    fn gives_up_with_server_failure() {
        let mut now = Instant::now();
        let mut f = Forwarder::new(1, vec![address("192.0.2.1:53")]);
        asked(&mut f, now, "a.example");
        for _ in 0..2 {
            now += TRY;
            assert!(matches!(f.on_timer(now)[..], [Step::Ask { .. }]));
        }
        now += TRY;
        let steps = f.on_timer(now);
        let [Step::Reply { bytes, .. }] = steps.as_slice() else { panic!("replies") };
        assert_eq!(bytes[3] & 15, 2);
        assert!(!f.is_busy(0));
    }

    #[test]
    fn full_table_fails_at_once_and_repetitions_take_no_place() {
        let now = Instant::now();
        let mut f = Forwarder::new(1, vec![address("192.0.2.1:53")]);
        assert!(matches!(asked(&mut f, now, "a.example"), Some(Step::Ask { .. })));
        assert_eq!(asked(&mut f, now, "a.example"), None);
        assert!(matches!(asked(&mut f, now, "b.example"), Some(Step::Reply { .. })));
    }
}
