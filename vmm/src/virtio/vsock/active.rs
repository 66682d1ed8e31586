//! The activated socket device.

use std::sync::Arc;

use super::Vsock;
use crate::virtio::chain::{Chain, copy_to};
use crate::virtio::interrupt::Interrupts;
use crate::virtio::queue::VirtQueue;
use crate::virtio::vhost::rings::Rings;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, Order, Progress, Source};
use holdfast_model::contract::vm::DeviceStats;

/// Number of the event queue.
const EVENTS: u16 = 2;
/// Token of its doorbell, behind those of the kernel's rings.
const EVENT_TOKEN: u8 = 3;
/// §5.10.6.7: `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, le32.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

pub(super) struct ActiveVsock {
    device: Vsock,
    rings: Rings,
    /// A driver that never changes address may do without.
    events: Option<VirtQueue>,
    interrupts: Arc<Interrupts>,
    chain: Chain,
    /// The driver is to hear of a transport reset as soon as it has a buffer for it.
    reset_due: bool,
    stats: DeviceStats,
}

impl ActiveVsock {
    pub(super) fn start(device: Vsock, activation: Activation) -> Result<Self, DeviceFault> {
        let Activation { ram, features, queues, interrupts } = activation;
        let (mut events, data): (Vec<_>, Vec<_>) = queues.into_iter().partition(|queue| queue.index == EVENTS);
        let data = Activation::all_queues::<2>(data, &device.name)?;
        let offer = (&*ram, features);
        let rings = Rings::set_up(&*device.kernel, &device.name, data.into(), offer, interrupts.clone(), 0)?;
        let (chain, stats) = (Chain::default(), DeviceStats::default());
        let active = Self { device, rings, events: events.pop(), interrupts, chain, reset_due: false, stats };
        active.set_running(true)?;
        Ok(active)
    }

    fn set_running(&self, running: bool) -> Result<(), DeviceFault> {
        let what = if running { "start vhost-vsock" } else { "stop vhost-vsock" };
        self.device.kernel.set_running(running).map_err(DeviceFault::host(&self.device.name, what))
    }

    /// Tells the driver what it has not heard yet.
    fn send_event(&mut self) -> Result<Progress, DeviceFault> {
        let fault = DeviceFault::ring(&self.device.name, EVENTS);
        let Some(events) = &mut self.events else {
            return Ok(Progress::Drained);
        };
        events.take_kick();
        while self.reset_due {
            if !events.pop(&mut self.chain).map_err(&fault)? {
                if events.enable_kicks() {
                    continue;
                }
                break;
            }
            if !self.chain.readable.is_empty() || self.chain.writable_len() < TRANSPORT_RESET.len() as u64 {
                return Err(fault(self.chain.shape_fault("events are 4 writable bytes")));
            }
            let done = copy_to(events.ram(), &self.chain.writable, &TRANSPORT_RESET);
            events.push(self.chain.head, u32::try_from(done).unwrap_or(0));
            self.reset_due = false;
            self.stats.in_ops += 1;
            self.stats.in_bytes += done as u64;
        }
        events.notify();
        Ok(Progress::Drained)
    }
}

impl ActiveDevice for ActiveVsock {
    fn sources(&self) -> Vec<Source> {
        let mut sources = self.rings.sources();
        sources.extend(self.events.as_ref().map(|queue| Source::input(queue.kick_fd(), EVENT_TOKEN)));
        sources
    }

    fn ready(&mut self, token: u8) -> Result<Progress, DeviceFault> {
        if token == EVENT_TOKEN { self.send_event() } else { self.rings.ready(token) }
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        self.set_running(false)?;
        self.rings.suspend(&*self.device.kernel)
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        self.rings.go_on(&*self.device.kernel)?;
        self.set_running(true)?;
        self.rings.ring_all();
        self.events.iter().for_each(VirtQueue::ring_self);
        Ok(())
    }

    fn deactivate(self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        self.set_running(false)?;
        Ok(Box::new(self.device))
    }

    /// The kernel does not count.
    fn stats(&self) -> DeviceStats {
        self.stats
    }

    fn order(&mut self, order: Order) -> Option<Result<(), String>> {
        let Order::VsockCid { cid } = order else {
            return None;
        };
        Some(self.device.change_cid(cid).map(|changed| {
            if changed {
                self.interrupts.config();
                self.reset_due = true;
                // The event is sent from `ready`: that has a way to report a broken queue, and is not called while paused.
                self.events.iter().for_each(VirtQueue::ring_self);
            }
        }))
    }
}
