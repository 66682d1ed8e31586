//! The client's decisions (RFC 2131 §4.4): from messages and time to messages and leases.
//!
//! ```text
//!  Selecting --offer--> Requesting --ack--> Bound --T1--> Renewing --T2--> Rebinding --end--> Selecting
//!      ^  \                 | nak             ^  \            | ack            | ack
//!      |   `<---------------'                 `---+-----------+----------------'
//!  carrier: Stopped <-- any;  Stopped --> Rebooting (had an address) or Selecting
//! ```

use super::message::{Message, MessageType, option};
use holdfast_model::contract::network::{ClientState, Lease, Mac, StaticRoute};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// First wait for an answer; doubles up to [`MAX_WAIT`] (RFC 2131 §4.1), each with a random second more or less.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const MAX_WAIT: Duration = Duration::from_secs(64);
/// Requests for one offer before starting over.
const REQUEST_TRIES: u32 = 4;
/// Requests for the former address before looking for a new one.
const REBOOT_TRIES: u32 = 2;
/// Shortest wait between renewals (RFC 2131 §4.4.5).
const MIN_RENEW_WAIT: Duration = Duration::from_secs(60);
/// Shortest lease that is believed, so that a bad server cannot make us spin.
const MIN_LEASE_SECONDS: u32 = 60;

/// What the client wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send to all, from no address.
    Broadcast(Message),
    /// Send from the leased address to the server, at the MAC that its last answer came from.
    Unicast {
        /// The message.
        message: Message,
        /// The server.
        server: Ipv4Addr,
        /// Next hop's MAC.
        mac: Mac,
    },
    /// The state or the lease changed.
    Changed,
}

#[derive(Debug, Clone)]
struct Held {
    lease: Lease,
    /// When the confirmed request was sent: lease times count from there.
    from: Instant,
    renew: Instant,
    rebind: Instant,
    end: Instant,
    /// MAC the confirmation came from.
    mac: Mac,
}

/// A DHCP client of one interface.
#[derive(Debug)]
pub struct Client {
    mac: Mac,
    host_name: String,
    random: u64,
    state: ClientState,
    xid: u32,
    /// Messages of this exchange sent so far.
    tries: u32,
    began: Instant,
    sent: Instant,
    timer: Option<Instant>,
    offer: Option<(Ipv4Addr, Ipv4Addr)>,
    held: Option<Held>,
    /// Address to ask for again after the carrier came back.
    former: Option<Ipv4Addr>,
}

impl Client {
    /// Stopped; [`carrier`](Self::carrier) starts it. `seed` makes transaction ids unpredictable.
    #[must_use]
    pub fn new(mac: Mac, host_name: String, seed: u64, now: Instant) -> Self {
        Self {
            mac,
            host_name,
            random: seed | 1,
            state: ClientState::Stopped,
            xid: 0,
            tries: 0,
            began: now,
            sent: now,
            timer: None,
            offer: None,
            held: None,
            former: None,
        }
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> ClientState {
        self.state
    }

    /// The lease it holds. Without carrier it is kept until its end.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        self.held.as_ref().map(|h| &h.lease)
    }

    /// Announces another host name from the next message on.
    pub fn set_host_name(&mut self, host_name: String) {
        self.host_name = host_name;
    }

    /// When [`on_timer`](Self::on_timer) must be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.timer
    }

    /// Carrier came or went.
    pub fn carrier(&mut self, now: Instant, up: bool) -> Vec<Output> {
        match (up, self.state) {
            (true, ClientState::Stopped) => self.start(now),
            (false, s) if s != ClientState::Stopped => {
                self.state = ClientState::Stopped;
                self.timer = self.held.as_ref().map(|h| h.end);
                vec![Output::Changed]
            }
            _ => Vec::new(),
        }
    }

    /// Starts over, first with the former address when there is one.
    pub fn start(&mut self, now: Instant) -> Vec<Output> {
        self.begin(now);
        self.state = if self.former.is_some() { ClientState::Rebooting } else { ClientState::Selecting };
        let mut out = vec![Output::Changed];
        out.extend(self.transmit(now));
        out
    }

    /// The [`deadline`](Self::deadline) has come.
    pub fn on_timer(&mut self, now: Instant) -> Vec<Output> {
        if self.timer.is_none_or(|t| t > now) {
            return Vec::new();
        }
        if self.held.as_ref().is_some_and(|h| h.end <= now) {
            self.held = None;
            if self.state == ClientState::Stopped {
                self.timer = None;
                return vec![Output::Changed];
            }
            return self.restart(now);
        }
        match self.state {
            ClientState::Stopped => {
                self.timer = None;
                Vec::new()
            }
            ClientState::Bound => {
                self.begin(now);
                self.state = ClientState::Renewing;
                let mut out = vec![Output::Changed];
                out.extend(self.transmit(now));
                out
            }
            ClientState::Renewing if self.held.as_ref().is_some_and(|h| h.rebind <= now) => {
                self.state = ClientState::Rebinding;
                let mut out = vec![Output::Changed];
                out.extend(self.transmit(now));
                out
            }
            ClientState::Requesting if self.tries >= REQUEST_TRIES => self.restart(now),
            ClientState::Rebooting if self.tries >= REBOOT_TRIES => {
                self.former = None;
                self.restart(now)
            }
            _ => self.transmit(now),
        }
    }

    /// A message came, from that source MAC.
    pub fn on_message(&mut self, now: Instant, m: &Message, from: Mac) -> Vec<Output> {
        if !m.reply || m.xid != self.xid || m.mac != self.mac {
            return Vec::new();
        }
        let Some(server) = m.address(option::SERVER_ID) else {
            return Vec::new();
        };
        use ClientState as S;
        match (self.state, m.kind) {
            (S::Selecting, MessageType::Offer) if is_host(m.yiaddr) => {
                self.offer = Some((m.yiaddr, server));
                self.state = S::Requesting;
                self.tries = 0;
                let mut out = vec![Output::Changed];
                out.extend(self.transmit(now));
                out
            }
            (S::Requesting | S::Rebooting | S::Renewing | S::Rebinding, MessageType::Ack) => {
                if self.state == S::Requesting && self.offer.is_some_and(|(_, s)| s != server) {
                    return Vec::new();
                }
                let Some(lease) = read_lease(m, server) else {
                    return Vec::new();
                };
                self.bind(now, lease, m, from);
                vec![Output::Changed]
            }
            (S::Requesting | S::Rebooting | S::Renewing | S::Rebinding, MessageType::Nak) => {
                // Only the server we asked may take the address away.
                let asked = match self.state {
                    S::Requesting => self.offer.map(|(_, s)| s),
                    S::Renewing => self.held.as_ref().map(|h| h.lease.server),
                    _ => None,
                };
                if asked.is_some_and(|a| a != server) {
                    return Vec::new();
                }
                self.held = None;
                self.former = None;
                self.restart(now)
            }
            _ => Vec::new(),
        }
    }

    fn begin(&mut self, now: Instant) {
        self.xid = (self.next_random() >> 32) as u32;
        self.tries = 0;
        self.began = now;
        self.offer = None;
    }

    fn restart(&mut self, now: Instant) -> Vec<Output> {
        let former = self.former.take();
        let out = self.start(now);
        self.former = former;
        out
    }

    fn bind(&mut self, now: Instant, lease: Lease, m: &Message, from: Mac) {
        let seconds = lease.lease_seconds;
        let at = |s: u32| self.sent + Duration::from_secs(u64::from(s));
        let t1 = m.number(option::RENEWAL_TIME).filter(|t| *t < seconds);
        let t1 = t1.unwrap_or(seconds / 2);
        let t2 = m.number(option::REBINDING_TIME).filter(|t| (t1..seconds).contains(t));
        let t2 = t2.unwrap_or((seconds - seconds / 8).max(t1));
        let held = Held {
            from: self.sent,
            renew: at(t1.max(MIN_LEASE_SECONDS / 2)).max(now),
            rebind: at(t2).max(now),
            end: at(seconds),
            mac: from,
            lease,
        };
        self.former = Some(held.lease.address);
        self.timer = Some(held.renew);
        self.held = Some(held);
        self.state = ClientState::Bound;
    }

    /// Sends the message of the present state (again) and sets the timer.
    fn transmit(&mut self, now: Instant) -> Vec<Output> {
        self.tries += 1;
        self.sent = now;
        let kind = if self.state == ClientState::Selecting { MessageType::Discover } else { MessageType::Request };
        let mut m = Message::request(kind, self.xid, self.mac);
        m.secs = u16::try_from(now.duration_since(self.began).as_secs()).unwrap_or(u16::MAX);
        let mut id = vec![1];
        id.extend_from_slice(&self.mac);
        m.set(option::CLIENT_ID, id);
        m.set(option::MAX_SIZE, 1400_u16.to_be_bytes());
        m.set(
            option::PARAMETERS,
            [
                option::SUBNET_MASK,
                option::ROUTER,
                option::DNS,
                option::DOMAIN,
                option::MTU,
                option::NTP,
                option::LEASE_TIME,
                option::RENEWAL_TIME,
                option::REBINDING_TIME,
                option::ROUTES,
            ],
        );
        if !self.host_name.is_empty() {
            m.set(option::HOST_NAME, self.host_name.as_bytes());
        }
        let doubled = FIRST_WAIT.saturating_mul(1 << (self.tries - 1).min(6)).min(MAX_WAIT);
        let jitter = Duration::from_millis(self.next_random() >> 54); // 0..1024 ms
        self.timer = Some(now + doubled + jitter);
        match (self.state, &self.held) {
            (ClientState::Requesting, _) => {
                if let Some((address, server)) = self.offer {
                    m.set_addresses(option::REQUESTED_ADDRESS, &[address]);
                    m.set_addresses(option::SERVER_ID, &[server]);
                }
                vec![Output::Broadcast(m)]
            }
            (ClientState::Rebooting, _) => {
                if let Some(address) = self.former {
                    m.set_addresses(option::REQUESTED_ADDRESS, &[address]);
                }
                vec![Output::Broadcast(m)]
            }
            (ClientState::Renewing, Some(h)) => {
                m.ciaddr = h.lease.address;
                self.timer = Some(now + half(now, h.rebind));
                vec![Output::Unicast { message: m, server: h.lease.server, mac: h.mac }]
            }
            (ClientState::Rebinding, Some(h)) => {
                m.ciaddr = h.lease.address;
                self.timer = Some(now + half(now, h.end));
                vec![Output::Broadcast(m)]
            }
            _ => vec![Output::Broadcast(m)],
        }
    }

    /// xorshift64*: unpredictable enough against guessing from outside when well seeded.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// When the lease began, for reports.
    #[must_use]
    pub fn leased_since(&self) -> Option<Instant> {
        self.held.as_ref().map(|h| h.from)
    }
}

/// Half of what remains, at least [`MIN_RENEW_WAIT`], at most all of it.
fn half(now: Instant, until: Instant) -> Duration {
    let left = until.saturating_duration_since(now);
    (left / 2).max(MIN_RENEW_WAIT).min(left.max(Duration::from_secs(1)))
}

fn is_host(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip.is_loopback())
}

fn read_lease(m: &Message, server: Ipv4Addr) -> Option<Lease> {
    if !is_host(m.yiaddr) {
        return None;
    }
    let mask = m.address(option::SUBNET_MASK).map_or(0xffff_ff00, u32::from);
    // A mask with holes is nonsense; a whole-world or host-only one too.
    let prefix_length = mask.leading_ones() as u8;
    if mask.checked_shl(u32::from(prefix_length)).unwrap_or(0) != 0 || prefix_length == 0 {
        return None;
    }
    let hosts = |v: Vec<Ipv4Addr>| v.into_iter().filter(|ip| is_host(*ip)).collect::<Vec<_>>();
    let mut routers = hosts(m.addresses(option::ROUTER));
    let all = m.routes();
    let (default, routes): (Vec<StaticRoute>, Vec<StaticRoute>) = all.into_iter().partition(|r| r.prefix_length == 0);
    if !default.is_empty() || !routes.is_empty() {
        routers = hosts(default.iter().map(|r| r.router).collect());
    }
    let mtu = match m.options.get(&option::MTU).map(Vec::as_slice) {
        Some([a, b]) => Some(u16::from_be_bytes([*a, *b])).filter(|n| *n >= 576),
        _ => None,
    };
    Some(Lease {
        address: m.yiaddr,
        prefix_length,
        routers,
        dns: hosts(m.addresses(option::DNS)),
        domain: m.text(option::DOMAIN),
        ntp: hosts(m.addresses(option::NTP)),
        mtu,
        routes,
        server,
        lease_seconds: m.number(option::LEASE_TIME).unwrap_or(3600).max(MIN_LEASE_SECONDS),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::server::Server;
    use holdfast_model::contract::network::{Assignment, NetworkService, NetworkV4};
    use proptest::prelude::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const GW: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
    const IP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);

    fn server() -> Server {
        Server::new(NetworkService {
            v4: NetworkV4 { gateway: GW, prefix_length: 20, router: Some(GW), pool: None, routes: Vec::new() },
            assignments: vec![Assignment { mac: MAC, addresses: IP.into(), host_name: String::new() }],
            domain: "local".into(),
            mtu: Some(1400),
            lease_seconds: 1000,
            names: Vec::new(),
            upstreams: Vec::new(),
        })
    }

    /// Lets both talk until the client is silent; answers with what was sent.
    fn talk(c: &mut Client, s: &mut Server, now: Instant, mut out: Vec<Output>) -> Vec<MessageType> {
        let mut kinds = Vec::new();
        while let Some(o) = (!out.is_empty()).then(|| out.remove(0)) {
            if let Output::Broadcast(m) | Output::Unicast { message: m, .. } = o {
                kinds.push(m.kind);
                let wire = Message::parse(&m.encode()).expect("own message");
                if let Some(a) = s.handle(now, &wire) {
                    out.extend(c.on_message(now, &a.message, [9; 6]));
                }
            }
        }
        kinds
    }

    fn bound(now: Instant) -> (Client, Server) {
        let (mut c, mut s) = (Client::new(MAC, "me".into(), 42, now), server());
        let out = c.carrier(now, true);
        talk(&mut c, &mut s, now, out);
        assert_eq!(c.state(), ClientState::Bound);
        (c, s)
    }

    #[test]
    fn four_messages_lead_to_a_lease() {
        let now = Instant::now();
        let (mut c, mut s) = (Client::new(MAC, "me".into(), 42, now), server());
        let out = c.carrier(now, true);
        assert_eq!(talk(&mut c, &mut s, now, out), [MessageType::Discover, MessageType::Request]);
        let lease = c.lease().expect("lease");
        assert_eq!((lease.address, lease.prefix_length, lease.mtu), (IP, 20, Some(1400)));
        assert_eq!((lease.routers.as_slice(), lease.dns.as_slice()), (&[GW][..], &[GW][..]));
        assert_eq!(c.deadline(), Some(now + Duration::from_secs(500)));
    }

    #[test]
    fn discover_is_repeated_with_growing_pauses() {
        let mut now = Instant::now();
        let mut c = Client::new(MAC, String::new(), 42, now);
        c.carrier(now, true);
        let mut last = Duration::ZERO;
        for _ in 0..6 {
            let next = c.deadline().expect("timer");
            let pause = next - now;
            assert!(pause > last, "{pause:?} after {last:?}");
            (last, now) = (pause, next);
            assert_eq!(c.on_timer(now).len(), 1);
        }
        assert!(last <= MAX_WAIT + Duration::from_secs(2));
    }

    #[test]
    fn lease_is_renewed_in_time_by_unicast() {
        let now = Instant::now();
        let (mut c, mut s) = bound(now);
        let t1 = c.deadline().expect("timer");
        let out = c.on_timer(t1);
        assert!(matches!(&out[1], Output::Unicast { server, mac: [9, 9, 9, 9, 9, 9], .. } if *server == GW));
        talk(&mut c, &mut s, t1, out);
        assert_eq!(c.state(), ClientState::Bound);
        assert_eq!(c.deadline(), Some(t1 + Duration::from_secs(500)));
    }

    #[test]
    fn lost_server_leads_over_rebinding_to_the_loss_of_the_lease() {
        let now = Instant::now();
        let (mut c, _) = bound(now);
        let mut states = vec![c.state()];
        let mut at = now;
        while c.lease().is_some() {
            at = c.deadline().expect("timer");
            c.on_timer(at);
            if states.last() != Some(&c.state()) {
                states.push(c.state());
            }
        }
        assert_eq!(at, now + Duration::from_secs(1000));
        assert_eq!(states, [ClientState::Bound, ClientState::Renewing, ClientState::Rebinding, ClientState::Selecting]);
    }

    #[test]
    fn nak_makes_it_start_over() {
        let now = Instant::now();
        let (mut c, mut s) = bound(now);
        let other = Ipv4Addr::new(10, 1, 0, 9);
        let mut tables = NetworkService {
            assignments: vec![Assignment { mac: MAC, addresses: other.into(), host_name: String::new() }],
            ..service_of()
        };
        tables.lease_seconds = 1000;
        s.update(tables);
        let t1 = c.deadline().expect("timer");
        let out = c.on_timer(t1);
        talk(&mut c, &mut s, t1, out);
        assert_eq!(c.lease().map(|l| l.address), Some(other));
    }

    fn service_of() -> NetworkService {
        NetworkService {
            v4: NetworkV4 { gateway: GW, prefix_length: 20, router: Some(GW), pool: None, routes: Vec::new() },
            assignments: Vec::new(),
            domain: String::new(),
            mtu: None,
            lease_seconds: 1000,
            names: Vec::new(),
            upstreams: Vec::new(),
        }
    }

    #[test]
    fn carrier_loss_keeps_the_lease_and_asks_for_it_again() {
        let now = Instant::now();
        let (mut c, mut s) = bound(now);
        c.carrier(now, false);
        assert_eq!(c.state(), ClientState::Stopped);
        assert!(c.lease().is_some());
        let out = c.carrier(now, true);
        assert_eq!(c.state(), ClientState::Rebooting);
        assert_eq!(talk(&mut c, &mut s, now, out), [MessageType::Request]);
        assert_eq!(c.state(), ClientState::Bound);
    }

    #[test]
    fn answers_to_other_transactions_or_with_nonsense_are_ignored() {
        let now = Instant::now();
        let mut c = Client::new(MAC, String::new(), 42, now);
        let out = c.carrier(now, true);
        let Output::Broadcast(m) = &out[1] else { panic!("discover") };
        let mut offer = m.answer(MessageType::Offer);
        offer.yiaddr = IP;
        offer.set_addresses(option::SERVER_ID, &[GW]);
        let mut wrong = offer.clone();
        wrong.xid ^= 1;
        assert!(c.on_message(now, &wrong, MAC).is_empty());
        let mut wrong = offer.clone();
        wrong.yiaddr = Ipv4Addr::BROADCAST;
        assert!(c.on_message(now, &wrong, MAC).is_empty());
        assert!(!c.on_message(now, &offer, MAC).is_empty());
        let mut ack = offer.answer(MessageType::Ack);
        ack.yiaddr = IP;
        ack.set_addresses(option::SERVER_ID, &[GW]);
        ack.set_addresses(option::SUBNET_MASK, &[Ipv4Addr::new(255, 0, 255, 0)]);
        assert!(c.on_message(now, &ack, MAC).is_empty());
    }

    proptest! {
        #[test]
        fn any_server_behaviour_keeps_a_timer_and_no_panic(
            steps in proptest::collection::vec((0..5_u8, any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>()), 0..40),
        ) {
            let mut now = Instant::now();
            let mut c = Client::new(MAC, String::new(), 42, now);
            c.carrier(now, true);
            for (what, a, b, t1, t2) in steps {
                let kind = [MessageType::Offer, MessageType::Ack, MessageType::Nak][usize::from(what % 3)];
                if what == 4 {
                    now = c.deadline().expect("running client has a timer").max(now);
                    c.on_timer(now);
                } else {
                    let mut m = Message::request(MessageType::Discover, c.xid, MAC).answer(kind);
                    m.yiaddr = a.into();
                    m.set_addresses(option::SERVER_ID, &[b.into()]);
                    m.set(option::LEASE_TIME, a.to_be_bytes());
                    m.set(option::RENEWAL_TIME, t1.to_be_bytes());
                    m.set(option::REBINDING_TIME, t2.to_be_bytes());
                    c.on_message(now, &m, [3; 6]);
                }
                prop_assert!(c.deadline().is_some());
            }
        }
    }
}
