//! DHCPv4 client (RFC 2131, options RFC 2132, classless routes RFC 3442) as a function of time and received bytes.
//!
//! The caller sends what [`Client::poll`] hands out, waits as long as it says, and gives every received datagram to
//! [`Client::receive`]. Nothing here touches a socket or a clock.
//!
//! A client of its own beside the one in `net/netsvc`: that one works without any privilege on raw frames for a port of the host; an init
//! depends on the model alone (`docs/design.md` 2), has the interface to itself and needs no more than a UDP socket.
//!
//! ```text
//!   Selecting --offer--> Requesting --ack--> Bound --T1--> Renewing --T2--> Rebinding --expiry--> Selecting
//!       ^                    |  nak, no answer                |  ack -> Bound        nak ->|
//!       +--------------------+-------------------------------+-----------------------------+
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

/// First wait for an answer; doubled at each try up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest wait for an answer while there is no lease.
const RETRY_MAX: Duration = Duration::from_secs(16);
/// Requests that one offer is worth before discovery starts again.
const REQUEST_TRIES: u32 = 4;
/// Shortest wait between renewals (RFC 2131 4.4.5).
const RENEW_MIN: Duration = Duration::from_secs(60);
/// Shortest lease that is believed; shorter ones are taken as this.
const LEASE_MIN_SECONDS: u32 = 60;
/// Most routes, routers or name servers taken from one lease.
const LIMIT_LIST: usize = 32;

const MAGIC: [u8; 4] = [99, 130, 83, 99];
const FIXED_BYTES: usize = 240;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// What a server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Own address.
    pub address: Ipv4Addr,
    /// Bits of the network part.
    pub prefix_len: u8,
    /// Routes: destination, prefix length, gateway (`0.0.0.0`: on the link). The default route is `0.0.0.0/0`.
    pub routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Domain of the host.
    pub domain: Option<String>,
    /// Link MTU.
    pub mtu: Option<u16>,
    /// Who granted it.
    pub server: Ipv4Addr,
    /// Seconds until it ends; `u32::MAX` never.
    pub lease_seconds: u32,
    /// Seconds until renewal.
    pub renew_seconds: u32,
    /// Seconds until any server is asked.
    pub rebind_seconds: u32,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// UDP payload.
    pub bytes: Vec<u8>,
    /// Server address, or the broadcast address.
    pub to: Ipv4Addr,
}

/// What became of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Use this from now on (also after each renewal).
    Bound(Lease),
    /// The address must no longer be used.
    Lost,
}

enum State {
    Selecting { tries: u32, next: Duration },
    Requesting { address: Ipv4Addr, server: Ipv4Addr, tries: u32, next: Duration },
    Bound { lease: Lease, since: Duration, next: Duration },
}

/// The client of one interface.
pub struct Client {
    mac: [u8; 6],
    hostname: String,
    xid: u32,
    started: Duration,
    state: State,
}

impl Client {
    /// A client that starts discovery at `now`. `xid` should be random.
    pub fn new(mac: [u8; 6], hostname: &str, xid: u32, now: Duration) -> Self {
        let hostname = hostname.chars().filter(char::is_ascii_graphic).take(63).collect();
        Self { mac, hostname, xid, started: now, state: State::Selecting { tries: 0, next: now } }
    }

    /// What to send at `now`, if anything is due, and how long to wait for datagrams after that.
    pub fn poll(&mut self, now: Duration) -> (Option<Send>, Option<Event>, Duration) {
        let mut event = None;
        if let State::Bound { lease, since, .. } = &self.state
            && lease.lease_seconds != u32::MAX
            && now >= *since + Duration::from_secs(lease.lease_seconds.into())
        {
            event = Some(Event::Lost);
            self.restart(now);
        }
        if let State::Requesting { tries, next, .. } = &self.state
            && *tries >= REQUEST_TRIES
            && now >= *next
        {
            self.restart(now);
        }
        let send = self.due(now);
        let next = match &self.state {
            State::Selecting { next, .. } | State::Requesting { next, .. } | State::Bound { next, .. } => *next,
        };
        (send, event, next.saturating_sub(now).max(Duration::from_millis(1)))
    }

    fn restart(&mut self, now: Duration) {
        self.xid = self.xid.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.started = now;
        self.state = State::Selecting { tries: 0, next: now };
    }

    fn due(&mut self, now: Duration) -> Option<Send> {
        let broadcast = Ipv4Addr::BROADCAST;
        let none = Ipv4Addr::UNSPECIFIED;
        match &mut self.state {
            State::Selecting { tries, next } if now >= *next => {
                *next = now + backoff(*tries);
                *tries += 1;
                Some(Send { bytes: self.message(DISCOVER, now, none, None), to: broadcast })
            }
            State::Requesting { address, server, tries, next } if now >= *next => {
                *next = now + backoff(*tries);
                *tries += 1;
                let asked = (*address, *server);
                Some(Send { bytes: self.message(REQUEST, now, none, Some(asked)), to: broadcast })
            }
            State::Bound { lease, since, next } if now >= *next => {
                let held = now.saturating_sub(*since);
                let seconds = |s: u32| Duration::from_secs(s.into());
                let rebinding = held >= seconds(lease.rebind_seconds);
                let until = if rebinding { seconds(lease.lease_seconds) } else { seconds(lease.rebind_seconds) };
                // Half of what is left, not less than a minute (RFC 2131 4.4.5), and never past the end of the phase.
                let left = until.saturating_sub(held);
                *next = now + (left / 2).max(RENEW_MIN).min(left.max(Duration::from_millis(1)));
                let (address, to) = (lease.address, if rebinding { broadcast } else { lease.server });
                Some(Send { bytes: self.message(REQUEST, now, address, None), to })
            }
            _ => None,
        }
    }

    /// Takes a received datagram; what is not an answer to us is passed over.
    pub fn receive(&mut self, now: Duration, bytes: &[u8]) -> Option<Event> {
        let answer = Answer::parse(bytes)?;
        if answer.xid != self.xid || answer.mac != self.mac {
            return None;
        }
        match (&self.state, answer.kind) {
            (State::Selecting { .. }, OFFER) => {
                let (address, server) = (answer.usable_address()?, answer.server?);
                self.state = State::Requesting { address, server, tries: 0, next: now };
                None
            }
            (State::Requesting { server, .. }, ACK) if answer.server.is_none_or(|s| s == *server) => {
                let lease = answer.lease(*server)?;
                self.bind(lease, now)
            }
            (State::Bound { lease, since, .. }, ACK)
                if now >= *since + Duration::from_secs(lease.renew_seconds.into()) =>
            {
                let lease = answer.lease(lease.server)?;
                self.bind(lease, now)
            }
            (State::Requesting { .. }, NAK) => {
                self.restart(now);
                None
            }
            (State::Bound { lease, since, .. }, NAK)
                if now >= *since + Duration::from_secs(lease.renew_seconds.into()) =>
            {
                self.restart(now);
                Some(Event::Lost)
            }
            _ => None,
        }
    }

    fn bind(&mut self, lease: Lease, now: Duration) -> Option<Event> {
        let next = if lease.lease_seconds == u32::MAX {
            Duration::MAX
        } else {
            now + Duration::from_secs(lease.renew_seconds.into())
        };
        self.started = next.min(now + Duration::from_secs(u32::MAX.into()));
        self.state = State::Bound { lease: lease.clone(), since: now, next };
        Some(Event::Bound(lease))
    }

    /// A message of RFC 2131 table 1, with the broadcast flag: an interface without an address cannot take unicast.
    fn message(&self, kind: u8, now: Duration, own: Ipv4Addr, asked: Option<(Ipv4Addr, Ipv4Addr)>) -> Vec<u8> {
        let seconds = u16::try_from(now.saturating_sub(self.started).as_secs()).unwrap_or(u16::MAX);
        let flags: u16 = if own.is_unspecified() { 0x8000 } else { 0 };
        let mut m = vec![1, 1, 6, 0];
        m.extend(self.xid.to_be_bytes());
        m.extend(seconds.to_be_bytes());
        m.extend(flags.to_be_bytes());
        m.extend(own.octets());
        m.resize(28, 0);
        m.extend(self.mac);
        m.resize(FIXED_BYTES - 4, 0);
        m.extend(MAGIC);
        m.extend([53, 1, kind]);
        if let Some((address, server)) = asked {
            m.extend([50, 4]);
            m.extend(address.octets());
            m.extend([54, 4]);
            m.extend(server.octets());
        }
        // Parameters: mask, routers, name servers, domain, MTU, routes.
        m.extend([55, 6, 121, 1, 3, 6, 15, 26]);
        if let Ok(length @ 1..) = u8::try_from(self.hostname.len()) {
            m.extend([12, length]);
            m.extend(self.hostname.bytes());
        }
        m.push(255);
        // Relay agents and old servers expect at least a BOOTP frame (RFC 1542 2.1).
        m.resize(m.len().max(300), 0);
        m
    }
}

fn backoff(tries: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << tries.min(8)).min(RETRY_MAX)
}

struct Answer<'a> {
    xid: u32,
    mac: [u8; 6],
    kind: u8,
    yours: Ipv4Addr,
    server: Option<Ipv4Addr>,
    options: &'a [u8],
}

impl<'a> Answer<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, options) = bytes.split_at_checked(FIXED_BYTES)?;
        if fixed[..3] != [2, 1, 6] || fixed[236..] != MAGIC {
            return None;
        }
        let mut answer = Self {
            xid: u32::from_be_bytes(fixed[4..8].try_into().ok()?),
            mac: fixed[28..34].try_into().ok()?,
            kind: 0,
            yours: address(&fixed[16..20])?,
            server: None,
            options,
        };
        answer.kind = match answer.option(53)? {
            [kind] => *kind,
            _ => return None,
        };
        answer.server = answer.option(54).and_then(address);
        Some(answer)
    }

    fn option(&self, code: u8) -> Option<&'a [u8]> {
        let mut rest = self.options;
        loop {
            match rest {
                [0, tail @ ..] => rest = tail,
                [255, ..] | [] | [_] => return None,
                [found, length, tail @ ..] => {
                    let (value, tail) = tail.split_at_checked(usize::from(*length))?;
                    if *found == code {
                        return Some(value);
                    }
                    rest = tail;
                }
            }
        }
    }

    fn usable_address(&self) -> Option<Ipv4Addr> {
        let a = self.yours;
        (!a.is_unspecified() && !a.is_broadcast() && !a.is_multicast() && !a.is_loopback()).then_some(a)
    }

    fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        self.option(code).unwrap_or_default().chunks_exact(4).filter_map(address).take(LIMIT_LIST).collect()
    }

    fn seconds(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.option(code)?.try_into().ok()?))
    }

    fn lease(&self, server: Ipv4Addr) -> Option<Lease> {
        let mask = self.option(1).and_then(address).map_or(u32::MAX, u32::from);
        let prefix_len = u8::try_from(mask.leading_ones()).ok()?;
        let routes = match self.option(121) {
            // RFC 3442: with classless routes the router option must be ignored.
            Some(bytes) => routes(bytes)?,
            None => self.addresses(3).first().map(|r| (Ipv4Addr::UNSPECIFIED, 0, *r)).into_iter().collect(),
        };
        let lease_seconds = self.seconds(51)?.max(LEASE_MIN_SECONDS);
        let rebind_seconds =
            self.seconds(59).filter(|s| *s < lease_seconds).unwrap_or_else(|| part(lease_seconds, 7, 8));
        let renew_seconds = self
            .seconds(58)
            .filter(|s| *s < rebind_seconds)
            .unwrap_or_else(|| part(lease_seconds, 1, 2).min(rebind_seconds));
        let domain = self.option(15).map(|d| String::from_utf8_lossy(d).trim_end_matches('\0').to_owned());
        Some(Lease {
            address: self.usable_address()?,
            prefix_len,
            routes,
            dns: self.addresses(6),
            domain: domain
                .filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))),
            mtu: self.option(26).and_then(|m| Some(u16::from_be_bytes(m.try_into().ok()?))).filter(|m| *m >= 576),
            server: self.server.unwrap_or(server),
            lease_seconds,
            renew_seconds,
            rebind_seconds,
        })
    }
}

fn part(seconds: u32, numerator: u64, denominator: u64) -> u32 {
    u32::try_from(u64::from(seconds) * numerator / denominator).unwrap_or(u32::MAX)
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?))
}

/// Option 121: prefix length, the significant octets of the destination, the router; `None` when cut short.
fn routes(mut bytes: &[u8]) -> Option<Vec<(Ipv4Addr, u8, Ipv4Addr)>> {
    let mut routes = Vec::new();
    while let [length, rest @ ..] = bytes {
        if *length > 32 || routes.len() == LIMIT_LIST {
            return None;
        }
        let (significant, rest) = rest.split_at_checked(usize::from(length.div_ceil(8)))?;
        let (gateway, rest) = rest.split_at_checked(4)?;
        let mut destination = [0; 4];
        destination[..significant.len()].copy_from_slice(significant);
        routes.push((Ipv4Addr::from(destination), *length, address(gateway)?));
        bytes = rest;
    }
    Some(routes)
}

/// Fuzzing entry: any datagram in any state.
#[doc(hidden)]
pub fn fuzz_dhcp(data: &[u8]) {
    let Some((selector, datagram)) = data.split_first() else {
        return;
    };
    let mut client = Client::new([2, 0, 0, 0, 0, 1], "fuzz", 0x0102_0304, Duration::ZERO);
    let _ = client.poll(Duration::ZERO);
    if selector & 1 == 1 {
        client.state = State::Requesting {
            address: Ipv4Addr::new(10, 0, 0, 2),
            server: Ipv4Addr::new(10, 0, 0, 1),
            tries: 0,
            next: Duration::ZERO,
        };
    }
    let _ = client.receive(Duration::from_secs(1), datagram);
    let _ = client.poll(Duration::from_secs(u64::from(*selector)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
    const OWN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 7);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A server's answer to `request` with further options.
    fn answer(request: &[u8], kind: u8, more: &[u8]) -> Vec<u8> {
        let mut m = vec![2, 1, 6, 0];
        m.extend(&request[4..8]);
        m.resize(16, 0);
        m.extend(OWN.octets());
        m.resize(28, 0);
        m.extend(&request[28..34]);
        m.resize(236, 0);
        m.extend(MAGIC);
        m.extend([53, 1, kind, 54, 4]);
        m.extend(SERVER.octets());
        m.extend(more);
        m.push(255);
        m
    }

    const ORDINARY: &[u8] = &[
        1, 4, 255, 255, 255, 0, 3, 4, 10, 1, 0, 1, 6, 8, 10, 1, 0, 1, 9, 9, 9, 9, 51, 4, 0, 0, 14, 16, 15, 4, b'l',
        b'a', b'n', 0, 26, 2, 5, 120,
    ];

    fn bound(more: &[u8]) -> (Client, Lease) {
        let mut client = Client::new(MAC, "web", 7, at(0));
        let discover = client.poll(at(0)).0.unwrap();
        assert_eq!(client.receive(at(0), &answer(&discover.bytes, OFFER, more)), None);
        let request = client.poll(at(0)).0.unwrap();
        let Some(Event::Bound(lease)) = client.receive(at(0), &answer(&request.bytes, ACK, more)) else {
            panic!("not bound")
        };
        (client, lease)
    }

    #[test]
    fn an_ordinary_exchange_gives_a_lease() {
        let (_, lease) = bound(ORDINARY);
        assert_eq!((lease.address, lease.prefix_len, lease.mtu), (OWN, 24, Some(1400)));
        assert_eq!(lease.routes, [(Ipv4Addr::UNSPECIFIED, 0, SERVER)]);
        assert_eq!(lease.dns, [SERVER, Ipv4Addr::new(9, 9, 9, 9)]);
        assert_eq!(lease.domain.as_deref(), Some("lan"));
        assert_eq!((lease.lease_seconds, lease.renew_seconds, lease.rebind_seconds), (3600, 1800, 3150));
    }

    #[test]
    fn the_request_names_the_offered_address_and_server() {
        let mut client = Client::new(MAC, "web", 7, at(0));
        let discover = client.poll(at(0)).0.unwrap();
        assert_eq!((discover.to, discover.bytes[10]), (Ipv4Addr::BROADCAST, 0x80));
        client.receive(at(0), &answer(&discover.bytes, OFFER, ORDINARY));
        let request = client.poll(at(0)).0.unwrap().bytes;
        let tail = &request[FIXED_BYTES..];
        assert_eq!(tail[..15], [53, 1, 3, 50, 4, 10, 1, 0, 7, 54, 4, 10, 1, 0, 1]);
    }

    #[test]
    fn classless_routes_replace_the_router() {
        let more = [ORDINARY, &[121, 14, 0, 10, 1, 0, 254, 16, 172, 16, 10, 1, 0, 253, 32, 1][..]].concat();
        assert!(Answer::parse(&answer(&[0; 240], ACK, &more)).unwrap().lease(SERVER).is_none(), "cut short");
        let more = [ORDINARY, &[121, 12, 0, 10, 1, 0, 254, 16, 172, 16, 10, 1, 0, 253][..]].concat();
        let (_, lease) = bound(&more);
        let expected = [
            (Ipv4Addr::UNSPECIFIED, 0, Ipv4Addr::new(10, 1, 0, 254)),
            (Ipv4Addr::new(172, 16, 0, 0), 16, Ipv4Addr::new(10, 1, 0, 253)),
        ];
        assert_eq!(lease.routes, expected);
    }

    #[test]
    fn discovery_backs_off_and_never_stops() {
        let mut client = Client::new(MAC, "web", 7, at(0));
        let (mut now, mut waits) = (at(0), Vec::new());
        for _ in 0..7 {
            let (send, _, wait) = client.poll(now);
            assert!(send.is_some());
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 16, 16]);
    }

    #[test]
    fn an_offer_whose_server_falls_silent_is_given_up() {
        let mut client = Client::new(MAC, "web", 7, at(0));
        let discover = client.poll(at(0)).0.unwrap();
        client.receive(at(0), &answer(&discover.bytes, OFFER, ORDINARY));
        let mut now = at(0);
        for _ in 0..REQUEST_TRIES {
            let (send, _, wait) = client.poll(now);
            assert_eq!(send.unwrap().bytes[242], REQUEST);
            now += wait;
        }
        assert_eq!(client.poll(now).0.unwrap().bytes[242], DISCOVER);
    }

    #[test]
    fn a_lease_is_renewed_then_rebound_then_lost() {
        let (mut client, lease) = bound(ORDINARY);
        let (send, _, wait) = client.poll(at(10));
        assert_eq!((send, wait), (None, at(1790)));
        let renew = client.poll(at(1800)).0.unwrap();
        assert_eq!((renew.to, &renew.bytes[12..16], renew.bytes[10]), (SERVER, &OWN.octets()[..], 0));
        assert_eq!(client.poll(at(3150)).0.unwrap().to, Ipv4Addr::BROADCAST);
        let (send, event, _) = client.poll(at(3600));
        assert_eq!((send.unwrap().bytes[242], event), (DISCOVER, Some(Event::Lost)));

        let (mut client, _) = bound(ORDINARY);
        let renew = client.poll(at(1800)).0.unwrap();
        assert_eq!(client.receive(at(1801), &answer(&renew.bytes, ACK, ORDINARY)), Some(Event::Bound(lease)));
        assert_eq!(client.poll(at(1801)).2, at(1800));
    }

    #[test]
    fn a_refusal_ends_the_lease_only_when_one_was_asked_for() {
        let (mut client, _) = bound(ORDINARY);
        let forged = answer(&client.message(REQUEST, at(0), OWN, None), NAK, &[]);
        assert_eq!(client.receive(at(5), &forged), None);
        let renew = client.poll(at(1800)).0.unwrap();
        assert_eq!(client.receive(at(1801), &answer(&renew.bytes, NAK, &[])), Some(Event::Lost));
    }

    #[test]
    fn answers_to_others_are_passed_over() {
        let mut client = Client::new(MAC, "web", 7, at(0));
        let good = answer(&client.poll(at(0)).0.unwrap().bytes, OFFER, ORDINARY);
        for (offset, value) in [(0, 1), (4, 0xff), (28, 0xff), (236, 0), (16, 127)] {
            let mut bad = good.clone();
            bad[offset] = value;
            client.receive(at(0), &bad);
            assert!(matches!(client.state, State::Selecting { .. }), "offset {offset}");
        }
        client.receive(at(0), &good);
        assert!(matches!(client.state, State::Requesting { .. }));
    }

    #[test]
    fn an_endless_lease_is_never_renewed() {
        let (mut client, lease) = bound(&[51, 4, 255, 255, 255, 255]);
        assert_eq!((lease.lease_seconds, lease.prefix_len), (u32::MAX, 32));
        let (send, event, wait) = client.poll(at(u64::from(u32::MAX) * 2));
        assert_eq!((send, event), (None, None));
        assert!(wait > at(1 << 33));
    }

    proptest! {
        #[test]
        fn no_datagram_panics(flag in any::<u8>(), options in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut data = vec![flag];
            let mut datagram = answer(&[0; 240], ACK, &options);
            datagram[4..8].copy_from_slice(&0x0102_0304_u32.to_be_bytes());
            datagram[28..34].copy_from_slice(&MAC);
            data.extend(datagram);
            fuzz_dhcp(&data);
            fuzz_dhcp(&data[..data.len() / 2]);
        }
    }
}
