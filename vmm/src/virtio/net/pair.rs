//! One queue pair whose rings this process works.

use std::time::Instant;

use holdfast_links::Link;

use super::active::{LINK, Limiters, Pair, RECEIVE, TRANSMIT};
use super::device::Lane;
use super::receive::Receiver;
use super::transmit::Transmitter;
use super::turn::Direction;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{DeviceFault, Progress, Source};
use holdfast_model::contract::vm::DeviceStats;

pub(super) struct UserPair {
    link: Box<dyn Link>,
    receiver: Receiver,
    transmitter: Transmitter,
    running: bool,
    first_token: u8,
}

impl UserPair {
    /// Stands still until it is started.
    pub(super) fn new(
        link: Box<dyn Link>,
        device: &str,
        [receive, transmit]: [VirtQueue; 2],
        accepted: u64,
        first_token: u8,
    ) -> Self {
        Self {
            link,
            receiver: Receiver::new(device, receive, accepted),
            transmitter: Transmitter::new(device, transmit),
            running: false,
            first_token,
        }
    }
}

impl Pair for UserPair {
    fn link(&mut self) -> &mut dyn Link {
        &mut *self.link
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::input(self.receiver.kick_fd(), self.first_token + RECEIVE),
            Source::input(self.transmitter.kick_fd(), self.first_token + TRANSMIT),
            Source { fd: self.link.fd(), token: self.first_token + LINK, writable: true },
        ]
    }

    /// Doorbells are not read: each ring wakes an edge-triggered epoll, whatever the eventfd counts.
    fn ready(&mut self, token: u8, limiters: &mut Limiters) -> Result<Progress, DeviceFault> {
        if !self.running {
            return Ok(Progress::Drained);
        }
        match token - self.first_token {
            RECEIVE => self.receiver.run(&*self.link, &mut limiters.receive),
            TRANSMIT => self.transmitter.run(&*self.link, &mut limiters.transmit),
            _ => {
                if std::mem::take(&mut self.transmitter.blocked) {
                    self.transmitter.run_beside(&*self.link, &mut limiters.transmit)?;
                }
                self.receiver.run(&*self.link, &mut limiters.receive)
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let times = [self.receiver.wake_at, self.transmitter.wake_at];
        times.into_iter().flatten().min().filter(|_| self.running)
    }

    fn expired(&mut self, limiters: &mut Limiters) -> Result<(), DeviceFault> {
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.receiver.wake_at) {
            self.receiver.run_beside(&*self.link, &mut limiters.receive)?;
        }
        if due(self.transmitter.wake_at) {
            self.transmitter.run_beside(&*self.link, &mut limiters.transmit)?;
        }
        Ok(())
    }

    fn start(&mut self) -> Result<(), DeviceFault> {
        self.running = true;
        self.receiver.queue().ring_self();
        self.transmitter.queue().ring_self();
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DeviceFault> {
        self.running = false;
        self.receiver.put_back();
        self.transmitter.rest();
        Ok(())
    }

    fn finish(self: Box<Self>) -> Lane {
        Lane::User(self.link)
    }

    fn stats(&self) -> DeviceStats {
        DeviceStats {
            out_bytes: self.transmitter.bytes,
            in_bytes: self.receiver.bytes,
            out_ops: self.transmitter.frames,
            in_ops: self.receiver.frames,
            errors: self.transmitter.lost + self.receiver.lost,
        }
    }
}
