//! DHCP server and DNS forwarder of one network.

use super::tcp::Tcp;
use super::{ServiceError, take};
use crate::control::Server as Control;
use crate::dhcp::server::{Answer, Server};
use crate::dhcp::{Message, packet};
use crate::dns::forwarder::{Forwarder, Step};
use crate::dns::message::Query;
use crate::dns::names::Names;
use crate::sys::{self, Interest};
use holdfast_model::contract::network::{Counters, NetworkService, NetworkSockets, Reply, Request};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Packets read from one socket in one turn.
const PACKETS_PER_TURN: usize = 32;
/// Largest DNS datagram; more than any EDNS size in use.
const MAX_DNS: usize = 8 << 10;

pub(super) struct Network {
    dhcp_socket: UdpSocket,
    dhcp_packet: OwnedFd,
    interface_index: u32,
    dns_socket: UdpSocket,
    upstream: Vec<OwnedFd>,
    tcp: Tcp,
    control: Control,
    service: NetworkService,
    dhcp: Server,
    names: Names,
    forwarder: Forwarder,
    counters: Counters,
}

impl Network {
    pub(super) fn new(s: &NetworkSockets, service: NetworkService, control: Control) -> Result<Self, ServiceError> {
        let all = |fds: &[i32], what| fds.iter().map(|fd| take(*fd, what)).collect::<Result<Vec<_>, _>>();
        let upstream = all(&s.upstream_udp, "upstream UDP")?;
        Ok(Self {
            dhcp_socket: take(s.dhcp, "DHCP")?.into(),
            dhcp_packet: take(s.dhcp_packet, "DHCP packets")?,
            interface_index: s.interface_index,
            dns_socket: take(s.dns_udp, "DNS")?.into(),
            tcp: Tcp::new(take(s.dns_tcp, "DNS over TCP")?.into(), all(&s.upstream_tcp, "upstream TCP")?),
            forwarder: Forwarder::new(upstream.len(), service.upstreams.clone()),
            upstream,
            control,
            dhcp: Server::new(service.clone()),
            names: Names::new(&service),
            service,
            counters: Counters::default(),
        })
    }

    pub(super) fn run(mut self) -> Result<(), ServiceError> {
        loop {
            let mut interests = self.control.interests();
            let read = |fd: i32| Interest { fd, write: false };
            interests.push(read(self.dhcp_socket.as_raw_fd()));
            interests.push(read(self.dns_socket.as_raw_fd()));
            for (slot, fd) in self.upstream.iter().enumerate() {
                if self.forwarder.is_busy(slot) {
                    interests.push(read(fd.as_raw_fd()));
                }
            }
            interests.extend(self.tcp.interests());
            let now = Instant::now();
            let next = [self.forwarder.deadline(), self.tcp.deadline()];
            let timeout = next.into_iter().flatten().min();
            let timeout = timeout.map(|d| d.saturating_duration_since(now).max(Duration::from_millis(1)));
            sys::poll(&interests, timeout)?;
            self.dhcp_packets();
            self.dns_queries()?;
            self.dns_answers();
            for step in self.forwarder.on_timer(Instant::now()) {
                self.step(step);
            }
            let server = self.forwarder.preferred();
            self.tcp.turn(&self.names, server, &mut self.counters);
            self.requests();
        }
    }

    fn dhcp_packets(&mut self) {
        let mut buffer = [0; 2048];
        for _ in 0..PACKETS_PER_TURN {
            let Ok((n, _)) = self.dhcp_socket.recv_from(&mut buffer) else {
                return;
            };
            let answer = match Message::parse(&buffer[..n]) {
                Ok(m) => self.dhcp.handle(Instant::now(), &m).map(|a| (a, m.mac)),
                Err(_) => None,
            };
            let Some((answer, mac)) = answer else {
                self.counters.dhcp_refused += 1;
                continue;
            };
            self.counters.dhcp_answered += 1;
            if let Err(e) = self.send_dhcp(&answer, mac) {
                eprintln!("dhcp server {}: send to {}: {e}", self.service.v4.gateway, answer.to);
            }
            if let Some(lease) = answer.lease {
                self.control.publish(&Reply::Client { lease });
            }
        }
    }

    fn send_dhcp(&self, answer: &Answer, mac: [u8; 6]) -> io::Result<()> {
        let payload = answer.message.encode();
        if answer.by_mac {
            // Even what goes to "everybody" goes to the client alone: other apps have no business with it.
            let bytes = packet::build_udp((self.service.v4.gateway, 67), (answer.to, 68), &payload);
            return sys::send_packet(&self.dhcp_packet, self.interface_index, mac, &bytes);
        }
        self.dhcp_socket.send_to(&payload, (answer.to, 68)).map(drop)
    }

    fn dns_queries(&mut self) -> io::Result<()> {
        let mut buffer = [0; MAX_DNS];
        for _ in 0..PACKETS_PER_TURN {
            let Ok((n, from)) = self.dns_socket.recv_from(&mut buffer) else {
                return Ok(());
            };
            let raw = &buffer[..n];
            let Ok(query) = Query::parse(raw) else {
                self.counters.dns_malformed += 1;
                continue;
            };
            if let Some(bytes) = self.names.answer(&query) {
                self.counters.dns_local += 1;
                self.step(Step::Reply { to: from, bytes });
                continue;
            }
            let id = sys::random()? as u16;
            if let Some(step) = self.forwarder.ask(Instant::now(), from, query, raw, id) {
                if matches!(step, Step::Reply { .. }) {
                    self.counters.dns_failed += 1;
                }
                self.step(step);
            }
        }
        Ok(())
    }

    fn dns_answers(&mut self) {
        let mut buffer = [0; MAX_DNS];
        for slot in 0..self.upstream.len() {
            while self.forwarder.is_busy(slot) {
                match sys::receive(&self.upstream[slot], &mut buffer) {
                    Ok(n) if n <= MAX_DNS => {
                        if let Some(step) = self.forwarder.on_answer(slot, &buffer[..n]) {
                            self.counters.dns_forwarded += 1;
                            self.step(step);
                        }
                    }
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    // For example "port unreachable".
                    Err(_) => {
                        self.forwarder.on_error(slot, Instant::now());
                        break;
                    }
                }
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Reply { to, bytes } => {
                // An app that does not take its answer loses it.
                let _ = self.dns_socket.send_to(&bytes, to);
            }
            Step::Ask { slot, server, bytes } => {
                let fd = &self.upstream[slot];
                if sys::reconnect(fd, server).and_then(|()| sys::send(fd, &bytes)).is_err() {
                    self.forwarder.on_error(slot, Instant::now());
                }
            }
        }
    }

    fn requests(&mut self) {
        let mut update = None;
        let (dhcp, counters) = (&self.dhcp, self.counters);
        let leases = || dhcp.entries(Instant::now());
        self.control.turn(
            |request| match request {
                Request::Query => Reply::Network { leases: leases(), counters },
                Request::Update { service } => {
                    update = Some(service);
                    Reply::Ok
                }
                Request::Carrier { .. } | Request::Renew | Request::SetHostName { .. } | Request::Subscribe => {
                    Reply::Error { text: "not for a network service".into() }
                }
            },
            || leases().into_iter().map(|lease| Reply::Client { lease }).collect(),
        );
        if let Some(service) = update {
            self.names = Names::new(&service);
            self.forwarder.set_servers(service.upstreams.clone());
            self.dhcp.update(service.clone());
            self.service = service;
        }
    }
}
