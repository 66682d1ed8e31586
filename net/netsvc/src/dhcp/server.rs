//! The server's decisions (RFC 2131 §4.3): from a message to an answer.

use super::message::{Message, MessageType, option};
use holdfast_model::contract::network::{LeaseEntry, Mac, NetworkService};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long an offered address is kept for the client that was offered it.
const OFFER_HOLD: Duration = Duration::from_secs(60);
/// How long an address that a client found in use is not given out.
const DECLINE_HOLD: Duration = Duration::from_secs(600);
/// Leases of clients without assignment; more get no answer.
const MAX_POOL_LEASES: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    mac: Option<Mac>,
    ends: Instant,
    /// Confirmed, not only offered.
    bound: bool,
    host_name: String,
}

/// An answer and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The message.
    pub message: Message,
    /// Destination address.
    pub to: Ipv4Addr,
    /// The client cannot answer ARP for `to` yet: send to its MAC directly.
    pub by_mac: bool,
    /// A lease given or renewed by this answer.
    pub lease: Option<LeaseEntry>,
}

/// A DHCP server for one subnet.
#[derive(Debug)]
pub struct Server {
    service: NetworkService,
    leases: BTreeMap<Ipv4Addr, Lease>,
}

impl Server {
    /// With nothing leased.
    #[must_use]
    pub fn new(service: NetworkService) -> Self {
        Self { service, leases: BTreeMap::new() }
    }

    /// New tables. Leases that contradict them are forgotten: the next renewal of their client is refused.
    pub fn update(&mut self, service: NetworkService) {
        self.service = service;
        let leases = std::mem::take(&mut self.leases);
        self.leases = leases.into_iter().filter(|(ip, l)| l.mac.is_none_or(|mac| self.may_have(*ip, mac))).collect();
    }

    /// Leases in force.
    #[must_use]
    pub fn entries(&self, now: Instant) -> Vec<LeaseEntry> {
        self.leases
            .iter()
            .filter(|(_, l)| l.bound && l.ends > now)
            .filter_map(|(ip, l)| {
                Some(LeaseEntry {
                    mac: l.mac?,
                    address: *ip,
                    host_name: l.host_name.clone(),
                    remaining_seconds: u32::try_from(l.ends.duration_since(now).as_secs()).unwrap_or(u32::MAX),
                })
            })
            .collect()
    }

    /// What to answer, if anything.
    pub fn handle(&mut self, now: Instant, m: &Message) -> Option<Answer> {
        if m.reply || m.giaddr != Ipv4Addr::UNSPECIFIED {
            return None;
        }
        // Not for us: another server of the segment is meant.
        let server_id = m.address(option::SERVER_ID);
        if server_id.is_some_and(|s| s != self.service.v4.gateway) {
            return None;
        }
        self.leases.retain(|_, l| l.ends > now);
        match m.kind {
            MessageType::Discover => {
                let ip = self.choose(m)?;
                self.hold(now, ip, m, false);
                Some(self.grant(m, MessageType::Offer, ip))
            }
            MessageType::Request => self.request(now, m, server_id.is_some()),
            MessageType::Decline => {
                let ip = m.address(option::REQUESTED_ADDRESS)?;
                // Only the one who was given the address may spoil it.
                if self.leases.get(&ip).is_some_and(|l| l.mac == Some(m.mac)) {
                    let lease = Lease { mac: None, ends: now + DECLINE_HOLD, bound: false, host_name: String::new() };
                    self.leases.insert(ip, lease);
                }
                None
            }
            MessageType::Release => {
                if self.leases.get(&m.ciaddr).is_some_and(|l| l.mac == Some(m.mac)) {
                    self.leases.remove(&m.ciaddr);
                }
                None
            }
            MessageType::Inform => {
                let mut message = m.answer(MessageType::Ack);
                message.ciaddr = m.ciaddr;
                self.fill(&mut message);
                Some(Answer { message, to: m.ciaddr, by_mac: false, lease: None })
            }
            MessageType::Offer | MessageType::Ack | MessageType::Nak => None,
        }
    }

    fn request(&mut self, now: Instant, m: &Message, selecting: bool) -> Option<Answer> {
        let renewing = m.ciaddr != Ipv4Addr::UNSPECIFIED;
        let wanted = if renewing { m.ciaddr } else { m.address(option::REQUESTED_ADDRESS)? };
        let free_or_own = self.leases.get(&wanted).is_none_or(|l| l.mac == Some(m.mac));
        if self.may_have(wanted, m.mac) && free_or_own {
            // A client that we forgot over a restart keeps its address: we are the only server of the segment.
            self.hold(now, wanted, m, true);
            return Some(self.grant(m, MessageType::Ack, wanted));
        }
        // Somebody we would give nothing to, and who did not choose us: silence (RFC 2131 §4.3.2).
        if !selecting && !renewing && self.choose(m).is_none() {
            return None;
        }
        let mut message = m.answer(MessageType::Nak);
        message.set_addresses(option::SERVER_ID, &[self.service.v4.gateway]);
        message.set(option::MESSAGE_TEXT, *b"address not available");
        Some(Answer { message, to: Ipv4Addr::BROADCAST, by_mac: true, lease: None })
    }

    fn assigned(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.service.assignments.iter().find(|a| a.mac == mac)?.addresses.v4
    }

    /// The client may use the address, as far as the tables say.
    fn may_have(&self, ip: Ipv4Addr, mac: Mac) -> bool {
        if let Some(own) = self.assigned(mac) {
            return own == ip;
        }
        let in_pool = self.service.v4.pool.is_some_and(|(first, last)| (first..=last).contains(&ip));
        in_pool && self.is_common(ip)
    }

    /// Neither the gateway's nor assigned to anybody.
    fn is_common(&self, ip: Ipv4Addr) -> bool {
        ip != self.service.v4.gateway && self.service.assignments.iter().all(|a| a.addresses.v4 != Some(ip))
    }

    fn choose(&self, m: &Message) -> Option<Ipv4Addr> {
        if let Some(own) = self.assigned(m.mac) {
            return Some(own);
        }
        let (first, last) = self.service.v4.pool?;
        let free = |ip: &Ipv4Addr| self.is_common(*ip) && self.leases.get(ip).is_none_or(|l| l.mac == Some(m.mac));
        let had = self.leases.iter().find(|(_, l)| l.mac == Some(m.mac));
        if let Some((ip, _)) = had {
            return Some(*ip);
        }
        if self.leases.len() >= MAX_POOL_LEASES {
            return None;
        }
        let asked = m.address(option::REQUESTED_ADDRESS);
        asked
            .filter(|ip| (first..=last).contains(ip) && free(ip))
            .or_else(|| (u32::from(first)..=u32::from(last)).map(Ipv4Addr::from).take(65_536).find(free))
    }

    fn hold(&mut self, now: Instant, ip: Ipv4Addr, m: &Message, bound: bool) {
        let was_bound = self.leases.get(&ip).is_some_and(|l| l.bound && l.mac == Some(m.mac));
        if was_bound && !bound {
            return;
        }
        self.leases.retain(|other, l| *other == ip || l.mac != Some(m.mac));
        let length = if bound {
            // A little longer than the client was told, so that it never outlives ours.
            Duration::from_secs(u64::from(self.service.lease_seconds) + 5)
        } else {
            OFFER_HOLD
        };
        let mut host_name = m.text(option::HOST_NAME);
        host_name.truncate(63);
        let lease = Lease { mac: Some(m.mac), ends: now + length, bound, host_name };
        self.leases.insert(ip, lease);
    }

    fn grant(&self, m: &Message, kind: MessageType, ip: Ipv4Addr) -> Answer {
        let mut message = m.answer(kind);
        message.yiaddr = ip;
        message.ciaddr = m.ciaddr;
        let time = self.service.lease_seconds;
        message.set(option::LEASE_TIME, time.to_be_bytes());
        message.set(option::RENEWAL_TIME, (time / 2).to_be_bytes());
        let rebinding = time - time / 8;
        message.set(option::REBINDING_TIME, rebinding.to_be_bytes());
        self.fill(&mut message);
        let renewing = m.ciaddr != Ipv4Addr::UNSPECIFIED;
        let (to, by_mac) = match (renewing, m.broadcast) {
            (true, _) => (m.ciaddr, false),
            (false, true) => (Ipv4Addr::BROADCAST, true),
            (false, false) => (ip, true),
        };
        let lease = (kind == MessageType::Ack).then(|| LeaseEntry {
            mac: m.mac,
            address: ip,
            host_name: m.text(option::HOST_NAME).chars().take(63).collect(),
            remaining_seconds: time,
        });
        Answer { message, to, by_mac, lease }
    }

    fn fill(&self, message: &mut Message) {
        let s = &self.service;
        let mask = u32::MAX.checked_shl(32 - u32::from(s.v4.prefix_length.min(32))).unwrap_or(0);
        message.set_addresses(option::SERVER_ID, &[s.v4.gateway]);
        message.set_addresses(option::SUBNET_MASK, &[mask.into()]);
        message.set_addresses(option::BROADCAST, &[(u32::from(s.v4.gateway) | !mask).into()]);
        message.set_addresses(option::DNS, &[s.v4.gateway]);
        if let Some(router) = s.v4.router {
            message.set_addresses(option::ROUTER, &[router]);
        }
        if !s.domain.is_empty() {
            message.set(option::DOMAIN, s.domain.as_bytes());
        }
        if let Some(mtu) = s.mtu {
            message.set(option::MTU, mtu.to_be_bytes());
        }
        if !s.v4.routes.is_empty() {
            // A client that reads these ignores the router option (RFC 3442): repeat the default route.
            let mut routes = s.v4.routes.clone();
            routes.extend(s.v4.router.map(|router| holdfast_model::contract::network::StaticRoute {
                destination: Ipv4Addr::UNSPECIFIED,
                prefix_length: 0,
                router,
            }));
            message.set_routes(&routes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::network::{Assignment, NetworkV4};

    const ME: Mac = [2, 0, 0, 0, 0, 1];
    const STRANGER: Mac = [2, 0, 0, 0, 0, 2];
    const MINE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);

    fn service() -> NetworkService {
        NetworkService {
            v4: NetworkV4 {
                gateway: Ipv4Addr::new(10, 1, 0, 1),
                prefix_length: 24,
                router: Some(Ipv4Addr::new(10, 1, 0, 1)),
                pool: Some((Ipv4Addr::new(10, 1, 0, 4), Ipv4Addr::new(10, 1, 0, 6))),
                routes: Vec::new(),
            },
            assignments: vec![Assignment { mac: ME, addresses: MINE.into(), host_name: "me".into() }],
            domain: "local".into(),
            mtu: Some(1400),
            lease_seconds: 3600,
            names: Vec::new(),
            upstreams: Vec::new(),
        }
    }

    fn message(kind: MessageType, mac: Mac) -> Message {
        Message::request(kind, 7, mac)
    }

    fn selecting(mac: Mac, ip: Ipv4Addr) -> Message {
        let mut m = message(MessageType::Request, mac);
        m.set_addresses(option::REQUESTED_ADDRESS, &[ip]);
        m.set_addresses(option::SERVER_ID, &[Ipv4Addr::new(10, 1, 0, 1)]);
        m
    }

    #[test]
    fn assigned_client_gets_its_address_with_all_options() {
        let (mut s, now) = (Server::new(service()), Instant::now());
        let offer = s.handle(now, &message(MessageType::Discover, ME)).expect("offer");
        assert_eq!((offer.message.kind, offer.message.yiaddr), (MessageType::Offer, MINE));
        assert_eq!((offer.to, offer.by_mac), (MINE, true));
        assert!(s.entries(now).is_empty());
        let ack = s.handle(now, &selecting(ME, MINE)).expect("ack");
        assert_eq!(ack.message.kind, MessageType::Ack);
        assert_eq!(ack.message.address(option::SUBNET_MASK), Some(Ipv4Addr::new(255, 255, 255, 0)));
        assert_eq!(ack.message.address(option::ROUTER), Some(Ipv4Addr::new(10, 1, 0, 1)));
        assert_eq!(ack.message.options.get(&option::MTU), Some(&vec![5, 120]));
        assert_eq!(ack.lease.as_ref().map(|l| l.address), Some(MINE));
        assert_eq!(s.entries(now).len(), 1);
    }

    #[test]
    fn nobody_gets_an_address_assigned_to_another() {
        let (mut s, now) = (Server::new(service()), Instant::now());
        let nak = s.handle(now, &selecting(STRANGER, MINE)).expect("nak");
        assert_eq!(nak.message.kind, MessageType::Nak);
        let nak = s.handle(now, &selecting(ME, Ipv4Addr::new(10, 1, 0, 4))).expect("nak");
        assert_eq!(nak.message.kind, MessageType::Nak);
    }

    #[test]
    fn pool_is_shared_without_collision_and_ends() {
        let (mut s, now) = (Server::new(service()), Instant::now());
        let mut seen = Vec::new();
        for n in 10..14 {
            let mac = [2, 0, 0, 0, 0, n];
            if let Some(o) = s.handle(now, &message(MessageType::Discover, mac)) {
                seen.push(o.message.yiaddr);
                s.handle(now, &selecting(mac, o.message.yiaddr)).expect("ack");
            }
        }
        assert_eq!(seen, [Ipv4Addr::new(10, 1, 0, 4), Ipv4Addr::new(10, 1, 0, 6)]);
        let later = now + Duration::from_secs(4000);
        assert!(s.handle(later, &message(MessageType::Discover, STRANGER)).is_some());
    }

    #[test]
    fn without_pool_strangers_get_silence() {
        let mut tables = service();
        tables.v4.pool = None;
        let (mut s, now) = (Server::new(tables), Instant::now());
        assert_eq!(s.handle(now, &message(MessageType::Discover, STRANGER)), None);
        let mut reboot = selecting(STRANGER, Ipv4Addr::new(10, 1, 0, 4));
        reboot.options.remove(&option::SERVER_ID);
        assert_eq!(s.handle(now, &reboot), None);
    }

    #[test]
    fn messages_for_other_servers_and_from_relays_are_ignored() {
        let (mut s, now) = (Server::new(service()), Instant::now());
        let mut m = selecting(ME, MINE);
        m.set_addresses(option::SERVER_ID, &[Ipv4Addr::new(10, 1, 0, 9)]);
        assert_eq!(s.handle(now, &m), None);
        let mut m = message(MessageType::Discover, ME);
        m.giaddr = Ipv4Addr::new(1, 2, 3, 4);
        assert_eq!(s.handle(now, &m), None);
    }

    #[test]
    fn declined_address_is_not_given_again_soon() {
        let (mut s, now) = (Server::new(service()), Instant::now());
        let o = s.handle(now, &message(MessageType::Discover, STRANGER)).expect("offer");
        let mut d = message(MessageType::Decline, STRANGER);
        d.set_addresses(option::REQUESTED_ADDRESS, &[o.message.yiaddr]);
        s.handle(now, &d);
        let again = s.handle(now, &message(MessageType::Discover, STRANGER)).expect("offer");
        assert_ne!(again.message.yiaddr, o.message.yiaddr);
    }

    #[test]
    fn renewal_after_a_change_of_assignment_is_refused() {
        let (mut s, now) = (Server::new(service()), Instant::now());
        s.handle(now, &selecting(ME, MINE)).expect("ack");
        let mut tables = service();
        tables.assignments[0].addresses.v4 = Some(Ipv4Addr::new(10, 1, 0, 6));
        s.update(tables);
        assert!(s.entries(now).is_empty());
        let mut renew = message(MessageType::Request, ME);
        renew.ciaddr = MINE;
        assert_eq!(s.handle(now, &renew).expect("nak").message.kind, MessageType::Nak);
    }
}
