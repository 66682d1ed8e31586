//! The DHCP client on its packet socket.

use super::{ServiceError, take};
use crate::control::Server;
use crate::dhcp::client::{Client, Output};
use crate::dhcp::{Message, packet};
use crate::sys::{self, Interest};
use holdfast_model::contract::network::{ClientService, ClientSockets, Reply, Request};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

/// Packets read in one turn, so that a flood does not keep timers and control waiting.
const PACKETS_PER_TURN: usize = 32;

pub(super) struct Port {
    socket: OwnedFd,
    interface_index: u32,
    client: Client,
    control: Server,
    name: String,
}

impl Port {
    pub(super) fn new(s: &ClientSockets, service: ClientService, control: Server) -> Result<Self, ServiceError> {
        Ok(Self {
            socket: take(s.packet, "DHCP packets")?,
            interface_index: s.interface_index,
            client: Client::new(s.mac, service.host_name, sys::random()?, Instant::now()),
            control,
            name: service.interface,
        })
    }

    pub(super) fn run(mut self) -> Result<(), ServiceError> {
        let first = self.client.carrier(Instant::now(), true);
        self.act(first);
        loop {
            let mut interests = self.control.interests();
            interests.push(Interest { fd: self.socket.as_raw_fd(), write: false });
            let now = Instant::now();
            let timeout = self.client.deadline().map(|d| d.saturating_duration_since(now));
            sys::poll(&interests, timeout)?;
            self.packets();
            let out = self.client.on_timer(Instant::now());
            self.act(out);
            self.requests();
        }
    }

    fn packets(&mut self) {
        let mut buffer = [0; 2048];
        for _ in 0..PACKETS_PER_TURN {
            let Ok(info) = sys::receive_packet(&self.socket, &mut buffer) else {
                return;
            };
            let datagram = packet::parse_udp(&buffer[..info.len.min(2048)], 68, !info.checksum_pending);
            if let Some(d) = datagram
                && d.source_port == 67
                && let Ok(m) = Message::parse(d.payload)
            {
                let out = self.client.on_message(Instant::now(), &m, info.from);
                self.act(out);
            }
        }
    }

    fn state(client: &Client) -> Reply {
        Reply::Lease { state: client.state(), lease: client.lease().cloned() }
    }

    fn act(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let result = match output {
                Output::Changed => {
                    let state = Self::state(&self.client);
                    self.control.publish(&state);
                    Ok(())
                }
                Output::Broadcast(m) => {
                    // From the address held, when rebinding (RFC 2131 §4.3.6).
                    let source = m.ciaddr;
                    self.send(&m, source, Ipv4Addr::BROADCAST, [0xff; 6])
                }
                Output::Unicast { message, server, mac } => {
                    let source = message.ciaddr;
                    self.send(&message, source, server, mac)
                }
            };
            if let Err(e) = result {
                // The message is repeated anyway; a port without carrier refuses to send.
                eprintln!("dhcp client {}: send: {e}", self.name);
            }
        }
    }

    fn send(&self, m: &Message, source: Ipv4Addr, to: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
        let bytes = packet::build_udp((source, 68), (to, 67), &m.encode());
        sys::send_packet(&self.socket, self.interface_index, mac, &bytes)
    }

    fn requests(&mut self) {
        let mut outputs = Vec::new();
        let client = std::cell::RefCell::new(&mut self.client);
        self.control.turn(
            |request| match request {
                Request::Query => Self::state(&client.borrow()),
                Request::Carrier { up } => {
                    outputs.extend(client.borrow_mut().carrier(Instant::now(), up));
                    Reply::Ok
                }
                Request::Renew => {
                    outputs.extend(client.borrow_mut().start(Instant::now()));
                    Reply::Ok
                }
                Request::SetHostName { host_name } => {
                    client.borrow_mut().set_host_name(host_name);
                    Reply::Ok
                }
                Request::Update { .. } | Request::Subscribe => {
                    Reply::Error { text: "a DHCP client has no tables".into() }
                }
            },
            || vec![Self::state(&client.borrow())],
        );
        self.act(outputs);
    }
}
