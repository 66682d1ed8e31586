//! The activated console.
#![forbid(unsafe_code)]

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::control::{FromDriver, HEADER, News, parse};
use super::device::{F_MULTIPORT, F_SIZE, PORT_QUEUES};
use super::port::ActivePort;
use super::{Console, Port, space};
use crate::virtio::chain::{Chain, RingFault, copy_from, copy_to};
use crate::virtio::interrupt::Interrupts;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, Progress, Source};
use holdfast_model::contract::vm::DeviceStats;

/// Queue of control messages to the driver.
const CONTROL_RECEIVE: u8 = 2;
/// Queue of control messages from the driver.
const CONTROL_TRANSMIT: u8 = 3;
/// Tokens below it are queue numbers; from it on they are the ports' bells.
const BELLS: u8 = 0x80;
/// Control messages handled before other devices have their turn.
const BUDGET: usize = 64;

pub(super) struct ActiveConsole {
    device: Console,
    ports: Vec<ActivePort>,
    control: Option<Control>,
    chain: Chain,
    /// The driver understands sizes.
    sized: bool,
    interrupts: Arc<Interrupts>,
    stats: DeviceStats,
}

/// The control queues.
struct Control {
    receive: VirtQueue,
    transmit: VirtQueue,
}

impl ActiveConsole {
    pub(super) fn new(device: Console, activation: Activation) -> Result<Self, DeviceFault> {
        let multiport = activation.features & F_MULTIPORT != 0;
        let expected = if multiport { PORT_QUEUES * (device.ports.len() + 1) } else { PORT_QUEUES };
        // A driver without ports may have set up later queues all the same; nobody looks at them.
        let queues: Vec<_> = activation.queues.into_iter().filter(|q| usize::from(q.index) < expected).collect();
        if queues.len() != expected {
            let reason = format!("driver enabled {} of {expected} queues", queues.len());
            return Err(DeviceFault::Guest { device: device.name, reason });
        }
        let (mut ports, mut control) = (Vec::new(), None);
        let mut queues = queues.into_iter();
        while let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) {
            if receive.index == u16::from(CONTROL_RECEIVE) {
                control = Some(Control { receive, transmit });
            } else {
                ports.push(ActivePort::new(receive, transmit, !multiport));
            }
        }
        let sized = activation.features & F_SIZE != 0;
        device.ports[0].terminal.set_follows_size(sized);
        let (chain, stats) = (Chain::default(), DeviceStats::default());
        Ok(Self { device, ports, control, chain, sized, interrupts: activation.interrupts, stats })
    }

    fn transmit(&mut self, n: usize) -> Result<Progress, DeviceFault> {
        let done = self.ports[n].transmit(&self.device.ports[n].terminal, &mut self.stats);
        done.map_err(DeviceFault::ring(&self.device.name, self.ports[n].transmit.index))
    }

    fn receive(&mut self, n: usize) -> Result<Progress, DeviceFault> {
        let done = self.ports[n].receive(&self.device.ports[n].terminal, &mut self.stats);
        done.map_err(DeviceFault::ring(&self.device.name, self.ports[n].receive.index))
    }

    /// Reads what the driver says, and tells it what follows from that.
    fn listen(&mut self) -> Result<Progress, DeviceFault> {
        for _ in 0..BUDGET {
            let Some((bytes, len)) =
                self.next_message().map_err(DeviceFault::ring(&self.device.name, CONTROL_TRANSMIT.into()))?
            else {
                self.tell()?;
                return Ok(Progress::Drained);
            };
            let message = parse(bytes, len, self.ports.len());
            match message.map_err(|reason| DeviceFault::Guest { device: self.device.name.clone(), reason })? {
                FromDriver::DeviceReady(true) => self.ports.iter_mut().for_each(|port| port.untold.add(News::Add)),
                FromDriver::PortReady(n, ready) => self.port_ready(n, ready),
                FromDriver::PortOpen(n, open) => {
                    self.ports[n].open = open;
                    // Input may have waited for it.
                    self.ports[n].receive.ring_self();
                }
                // The driver gave up; it resets the device if it tries again.
                FromDriver::DeviceReady(false) => {}
            }
        }
        self.tell()?;
        Ok(Progress::Again)
    }

    /// The beginning of the next control message, and its length.
    fn next_message(&mut self) -> Result<Option<([u8; HEADER], u64)>, RingFault> {
        let Some(Control { transmit, .. }) = &mut self.control else {
            return Ok(None);
        };
        transmit.take_kick();
        while !transmit.pop(&mut self.chain)? {
            if !transmit.enable_kicks() {
                transmit.notify();
                return Ok(None);
            }
        }
        if !self.chain.writable.is_empty() {
            return Err(self.chain.shape_fault("control messages are for the device to read"));
        }
        let mut bytes = [0; HEADER];
        copy_from(transmit.ram(), &self.chain.readable, &mut bytes);
        transmit.push(self.chain.head, 0);
        Ok(Some((bytes, self.chain.readable_len())))
    }

    fn port_ready(&mut self, n: usize, ready: bool) {
        let port = &mut self.ports[n];
        port.ready = ready;
        if !ready {
            return;
        }
        if n == 0 {
            port.untold.add(News::Console);
            if self.sized {
                port.untold.add(News::Resize);
            }
        }
        if self.device.ports[n].name.is_some() {
            port.untold.add(News::Name);
        }
        port.untold.add(News::Open);
    }

    /// Tells the driver the news, as far as it has buffers for them.
    fn tell(&mut self) -> Result<(), DeviceFault> {
        let told = self.tell_some();
        told.map_err(DeviceFault::ring(&self.device.name, CONTROL_RECEIVE.into()))
    }

    fn tell_some(&mut self) -> Result<(), RingFault> {
        let Some(Control { receive, .. }) = &mut self.control else {
            return Ok(());
        };
        receive.take_kick();
        'news: for (n, port) in self.ports.iter_mut().enumerate() {
            while let Some(news) = port.untold.first() {
                while !receive.pop(&mut self.chain)? {
                    if !receive.enable_kicks() {
                        break 'news;
                    }
                }
                let Port { name, terminal, .. } = &self.device.ports[n];
                let message = news.message(n, name.as_deref(), terminal.size());
                if !self.chain.readable.is_empty() || self.chain.writable_len() < message.len() as u64 {
                    return Err(self.chain.shape_fault("control message does not fit"));
                }
                let done = copy_to(receive.ram(), &self.chain.writable, &message);
                receive.push(self.chain.head, u32::try_from(done).unwrap_or(0));
                port.untold.told(news);
            }
        }
        receive.notify();
        Ok(())
    }

    /// The host's side of a port has input, or another size.
    fn bell(&mut self, n: usize) -> Result<Progress, DeviceFault> {
        let _ = self.device.ports[n].bell.read();
        if n == 0 && self.sized && space::update_size(&self.device.space, self.device.ports[0].terminal.size()) {
            // §5.3.5: a change of the configuration space, and with ports a message too.
            self.interrupts.config();
            if self.ports[0].ready {
                self.ports[0].untold.add(News::Resize);
                self.tell()?;
            }
        }
        self.receive(n)
    }
}

/// The port of a data queue: 0 and 1 are port 0's, 4 and 5 port 1's.
fn port_of(queue: u8) -> usize {
    usize::from(queue / 2).saturating_sub(1)
}

impl ActiveDevice for ActiveConsole {
    fn sources(&self) -> Vec<Source> {
        let control = self.control.iter().flat_map(|c| [&c.receive, &c.transmit]);
        let queues = self.ports.iter().flat_map(|port| [&port.receive, &port.transmit]).chain(control);
        let bells = (BELLS..).zip(&self.device.ports).take(self.ports.len());
        queues
            .map(|queue| Source::input(queue.kick_fd(), queue.index as u8))
            .chain(bells.map(|(token, port)| Source::input(port.bell.as_raw_fd(), token)))
            .collect()
    }

    fn ready(&mut self, token: u8) -> Result<Progress, DeviceFault> {
        match token {
            BELLS.. => self.bell(usize::from(token - BELLS)),
            CONTROL_RECEIVE => self.tell().map(|()| Progress::Drained),
            CONTROL_TRANSMIT => self.listen(),
            queue if queue % 2 == 0 => self.receive(port_of(queue)),
            queue => self.transmit(port_of(queue)),
        }
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        for port in &self.ports {
            port.receive.ring_self();
            port.transmit.ring_self();
        }
        if let Some(control) = &self.control {
            control.receive.ring_self();
            control.transmit.ring_self();
        }
        Ok(())
    }

    fn deactivate(mut self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        // The last words of a guest that powers off count most.
        for n in 0..self.ports.len() {
            self.transmit(n)?;
        }
        self.device.ports[0].terminal.set_follows_size(false);
        Ok(Box::new(self.device))
    }

    fn stats(&self) -> DeviceStats {
        self.stats
    }
}
