//! virtio-net: frames echoed, sent and counted (virtio 1.3 §5.1).

use crate::ring::{Buffer, Ring};
use crate::transport::{Device, NET};
use crate::{cpu, memory, output};

const F_MAC: u64 = 1 << 5;
/// `virtio_net_hdr` with `num_buffers`.
const HEADER: u64 = 12;
/// A receive buffer: header and the largest frame without offloads.
const BUFFER: u64 = 2048;
const SLOTS: u64 = 128;
/// EtherType of our own frames (IEEE 802: local experiments).
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
const SHORTEST: usize = 60;

/// The first network card.
pub struct Net {
    receive: Ring,
    transmit: Ring,
    /// Address of the buffer at each head.
    posted: [u64; crate::ring::MAX_SIZE as usize],
    outgoing: u64,
    mac: [u8; 6],
}

impl Net {
    pub fn open(plain: bool) -> Self {
        let device = Device::open(NET, 0, F_MAC, plain).expect("no network card");
        let (receive, _) = device.queue(0, false);
        let (transmit, _) = device.queue(1, false);
        device.start();
        let mac = core::array::from_fn(|n| cpu::read8(device.config + n as u64));
        let incoming = memory::allocate(BUFFER * SLOTS);
        let mut net = Self { receive, transmit, posted: [0; _], outgoing: memory::allocate(BUFFER * SLOTS), mac };
        for n in 0..SLOTS.min(net.receive.room() as u64) {
            net.post(incoming + n * BUFFER);
        }
        net.receive.kick();
        output::line(format_args!(
            "net_ready\t{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}\tmac",
            mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]
        ));
        net
    }

    fn post(&mut self, address: u64) {
        let head = self.receive.put(&[Buffer { address, len: BUFFER as u32, writable: true }]);
        self.posted[usize::from(head)] = address;
    }

    /// A received buffer and its bytes, header included.
    fn received(&mut self) -> Option<(u64, usize)> {
        let (head, len) = self.receive.take()?;
        Some((self.posted[usize::from(head)], len as usize))
    }

    /// Sends back `count` frames of our type to whoever sent them.
    pub fn echo(&mut self, count: u64) {
        let (mut frames, mut bytes) = (0, 0);
        while frames < count {
            let Some((buffer, len)) = self.received() else {
                core::hint::spin_loop();
                continue;
            };
            let frame = memory::slice(buffer + HEADER, len - HEADER as usize);
            if frame[12..14] == ETHER_TYPE && frame[..6] == self.mac {
                let (to, from) = frame[..12].split_at_mut(6);
                to.copy_from_slice(from);
                from.copy_from_slice(&self.mac);
                cpu::write64(buffer, 0);
                cpu::write32(buffer + 8, 0);
                self.transmit.put(&[Buffer { address: buffer, len: len as u32, writable: false }]);
                self.transmit.kick();
                self.transmit.wait();
                frames += 1;
                bytes += len as u64 - HEADER;
            }
            self.post(buffer);
            self.receive.kick();
        }
        output::result("net_echo.frames", frames, "frames");
        output::result("net_echo.bytes", bytes, "bytes");
    }

    /// Broadcasts frames of `bytes` for `ms`.
    pub fn send(&mut self, bytes: usize, ms: u64, ticks_per_ms: u64) {
        let bytes = bytes.clamp(SHORTEST, 1514);
        for n in 0..SLOTS {
            let frame = memory::slice(self.outgoing + n * BUFFER + HEADER, bytes);
            frame.fill(0x5a);
            frame[..6].fill(0xff);
            frame[6..12].copy_from_slice(&self.mac);
            frame[12..14].copy_from_slice(&ETHER_TYPE);
        }
        output::result("net_send.begin", bytes as u64, "bytes");
        let began = cpu::now();
        let end = began + ms * ticks_per_ms;
        let (mut next, mut in_flight, mut frames) = (0, 0u64, 0u64);
        while in_flight > 0 || cpu::now() < end {
            let more = cpu::now() < end;
            while more && in_flight < SLOTS && self.transmit.room() > 0 {
                // The device gives frames back in order, so slots free up in order.
                let address = self.outgoing + next % SLOTS * BUFFER;
                self.transmit.put(&[Buffer { address, len: HEADER as u32 + bytes as u32, writable: false }]);
                next += 1;
                in_flight += 1;
            }
            self.transmit.kick();
            while self.transmit.take().is_some() {
                in_flight -= 1;
                frames += 1;
            }
        }
        let us = (cpu::now() - began) * 1000 / ticks_per_ms;
        output::result("net_send.us", us, "us");
        output::result("net_send.frames", frames, "frames");
    }

    /// Counts frames for `ms` from the first one on.
    pub fn count(&mut self, ms: u64, ticks_per_ms: u64) {
        output::result("net_count.begin", ms, "ms");
        let (mut frames, mut bytes, mut began) = (0u64, 0u64, 0);
        let mut end = u64::MAX;
        while cpu::now() < end {
            let mut taken = false;
            while let Some((buffer, len)) = self.received() {
                if frames == 0 {
                    began = cpu::now();
                    end = began + ms * ticks_per_ms;
                }
                frames += 1;
                bytes += len as u64 - HEADER;
                taken = true;
                self.post(buffer);
            }
            if taken {
                self.receive.kick();
            }
        }
        output::result("net_count.us", (cpu::now() - began) * 1000 / ticks_per_ms, "us");
        output::result("net_count.frames", frames, "frames");
        output::result("net_count.bytes", bytes, "bytes");
    }
}
