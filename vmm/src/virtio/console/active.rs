//! The activated console.

use std::io::{self, Read};
use std::os::fd::AsRawFd;

use super::Console;
use crate::virtio::chain::{Chain, copy_from, copy_to};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{ActiveDevice, Device, DeviceFault, DeviceStats, Progress, Source};

/// Token of the receive queue's doorbell; equals its queue index.
const RECEIVE: u8 = 0;
/// Token of the transmit queue's doorbell.
const TRANSMIT: u8 = 1;
/// Token of the host's output descriptor.
const OUTPUT: u8 = 2;
/// Token of the host's input descriptor.
const INPUT: u8 = 3;
/// Most bytes read from one transmit buffer at a time, so that a huge buffer costs no huge allocation.
const CHUNK: usize = 4096;
/// Buffers handled before other devices have their turn.
const BUDGET: usize = 64;

pub(super) struct ActiveConsole {
    device: Console,
    receive: VirtQueue,
    transmit: VirtQueue,
    chain: Chain,
    input_ready: bool,
    stats: DeviceStats,
}

impl ActiveConsole {
    pub(super) fn new(device: Console, receive: VirtQueue, transmit: VirtQueue) -> Self {
        Self { device, receive, transmit, chain: Chain::default(), input_ready: true, stats: DeviceStats::default() }
    }

    fn transmit(&mut self) -> Result<Progress, DeviceFault> {
        let fault = DeviceFault::ring(&self.device.name, 1);
        self.transmit.take_kick();
        for _ in 0..BUDGET {
            if !self.transmit.pop(&mut self.chain).map_err(&fault)? {
                if self.transmit.enable_kicks().map_err(&fault)? {
                    continue;
                }
                self.transmit.notify().map_err(&fault)?;
                return Ok(Progress::Drained);
            }
            let mut buf = [0u8; CHUNK];
            for segment in &self.chain.readable {
                for skip in (0..u64::from(segment.len)).step_by(CHUNK) {
                    let part: Vec<_> =
                        crate::virtio::chain::window(std::slice::from_ref(segment), skip, CHUNK as u64).collect();
                    let got = copy_from(self.transmit.ram(), &part, &mut buf);
                    self.device.output.put(&buf[..got]);
                }
            }
            self.stats.out_ops += 1;
            self.stats.out_bytes += self.chain.readable_len();
            self.transmit.push(self.chain.head, 0).map_err(&fault)?;
        }
        self.transmit.notify().map_err(&fault)?;
        Ok(Progress::Again)
    }

    fn receive(&mut self) -> Result<Progress, DeviceFault> {
        self.receive.take_kick();
        while self.input_ready {
            if !self.receive.pop(&mut self.chain).map_err(DeviceFault::ring(&self.device.name, 0))? {
                if self.receive.enable_kicks().map_err(DeviceFault::ring(&self.device.name, 0))? {
                    continue;
                }
                break;
            }
            let room = usize::try_from(self.chain.writable_len()).unwrap_or(CHUNK).min(CHUNK);
            let mut buf = [0u8; CHUNK];
            let got = self.read_input(&mut buf[..room]);
            if got == 0 {
                self.receive.unpop(1);
                break;
            }
            let done = copy_to(self.receive.ram(), &self.chain.writable, &buf[..got]);
            self.receive
                .push(self.chain.head, u32::try_from(done).unwrap_or(0))
                .map_err(DeviceFault::ring(&self.device.name, 0))?;
            self.stats.in_ops += 1;
            self.stats.in_bytes += done as u64;
        }
        self.receive.notify().map_err(DeviceFault::ring(&self.device.name, 0))?;
        Ok(Progress::Drained)
    }

    /// Bytes of input, or 0 when there are none now (or never again).
    fn read_input(&mut self, buf: &mut [u8]) -> usize {
        let Some(file) = &mut self.device.input else {
            self.input_ready = false;
            return 0;
        };
        let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, no waiting. Polling first keeps a shared blocking descriptor from blocking us.
        let ready = unsafe { libc::poll(&mut poll, 1, 0) } == 1;
        let got = if ready && !buf.is_empty() { file.read(buf) } else { Err(io::ErrorKind::WouldBlock.into()) };
        match got {
            Ok(0) => {
                self.device.input = None;
                self.input_ready = false;
                0
            }
            Ok(n) => n,
            Err(_) => {
                self.input_ready = false;
                0
            }
        }
    }
}

impl ActiveDevice for ActiveConsole {
    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![
            Source::input(self.receive.kick_fd(), RECEIVE),
            Source::input(self.transmit.kick_fd(), TRANSMIT),
            Source { fd: self.device.output.fd(), token: OUTPUT, writable: true },
        ];
        if let Some(input) = &self.device.input {
            sources.push(Source::input(input.as_raw_fd(), INPUT));
        }
        sources
    }

    fn ready(&mut self, token: u8) -> Result<Progress, DeviceFault> {
        match token {
            RECEIVE => self.receive(),
            TRANSMIT => self.transmit(),
            OUTPUT => {
                self.device.output.flush_some();
                Ok(Progress::Drained)
            }
            _ => {
                self.input_ready = true;
                self.receive()
            }
        }
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        self.input_ready = true;
        self.receive.ring_self();
        self.transmit.ring_self();
        Ok(())
    }

    fn deactivate(mut self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        // The last words of a guest that powers off count most.
        self.transmit()?;
        Ok(Box::new(self.device))
    }

    fn stats(&self) -> DeviceStats {
        self.stats
    }
}
