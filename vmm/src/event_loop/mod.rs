//! The device thread: owns every device, watches descriptors, serves the control socket, ends the VM.
//!
//! vCPU threads reach it by commands (activate, reset) whose answer they wait for; everything else reaches it through
//! descriptors in one epoll set, edge-triggered. [`handle`] is what other threads hold of it, [`obey`] does what the control
//! socket's clients ask.

mod handle;
mod obey;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use self::handle::Command;
pub use self::handle::{EndSlot, LoopHandle};
use crate::control::ControlServer;
use crate::platform::power::Power;
use crate::terminal::{GuestEnd, Terminal};
use crate::vcpu::VcpuSet;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, Progress, Source};
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::vm::DeviceStats;

/// How long vCPUs have to leave the guest.
const PARK_DEADLINE: Duration = Duration::from_secs(5);
/// Events taken from epoll at once.
const BATCH: usize = 32;

/// Epoll data: device sources are `slot << 8 | token`, these are beyond any slot. Of a console: `number << 8 | place`.
const WAKE: u64 = 1 << 40;
const ENDED: u64 = 2 << 40;
const LISTEN: u64 = 3 << 40;
const TERMINATE: u64 = 5 << 40;
const CONSOLE: u64 = 6 << 40;
/// Plus the connection number.
const CONNECTION: u64 = 7 << 40;

/// A device's state. `Gone` only while it changes, and after a fault.
enum State {
    Inactive(Box<dyn Device>),
    Active(Box<dyn ActiveDevice>),
    Gone,
}

struct Slot {
    name: String,
    state: State,
    /// Counters of activations that are over.
    past: DeviceStats,
    /// What the active device last answered to [`ActiveDevice::deadline`].
    deadline: Option<Instant>,
}

impl Slot {
    /// Asks the device anew when it wants to be called.
    fn renew_deadline(&mut self) {
        self.deadline = match &self.state {
            State::Active(device) => device.deadline(),
            _ => None,
        };
    }

    fn stats(&self) -> DeviceStats {
        match &self.state {
            State::Active(device) => self.past + device.stats(),
            State::Inactive(_) | State::Gone => self.past,
        }
    }
}

/// A console: the host's side, which this thread serves, and the guest's end.
struct ConsoleEnds {
    terminal: Arc<Terminal>,
    guest: Arc<dyn GuestEnd>,
}

/// The device thread's state.
pub struct EventLoop {
    epoll: Epoll,
    handle: Arc<LoopHandle>,
    end: Arc<EndSlot>,
    slots: Vec<Slot>,
    consoles: Vec<ConsoleEnds>,
    /// Sources that said [`Progress::Again`].
    again: BTreeSet<u64>,
    paused: bool,
    control: Option<ControlServer>,
    power: Arc<Power>,
    terminate: Arc<EventFd>,
    stop_at: Option<Instant>,
    started: Instant,
}

impl EventLoop {
    /// Watches the handle, the end, the control socket and `terminate` (which presses the power button); no device yet.
    ///
    /// # Errors
    /// When epoll refuses.
    pub fn new(
        handle: Arc<LoopHandle>,
        end: Arc<EndSlot>,
        power: Arc<Power>,
        terminate: Arc<EventFd>,
        control: Option<ControlServer>,
    ) -> io::Result<Self> {
        let this = Self {
            epoll: Epoll::new()?,
            handle,
            end,
            slots: Vec::new(),
            consoles: Vec::new(),
            again: BTreeSet::new(),
            paused: false,
            control,
            power,
            terminate,
            stop_at: None,
            started: Instant::now(),
        };
        this.watch(this.handle.wake.as_raw_fd(), EventSet::IN, WAKE)?;
        this.watch(this.end.eventfd.as_raw_fd(), EventSet::IN, ENDED)?;
        this.watch(this.terminate.as_raw_fd(), EventSet::IN, TERMINATE)?;
        if let Some(control) = &this.control {
            // Level-triggered: a connection that finds all places taken waits in the backlog.
            this.watch(control.listener_fd(), EventSet::IN, LISTEN)?;
        }
        Ok(this)
    }

    /// Takes a device; its slot number.
    pub fn add(&mut self, device: Box<dyn Device>) -> usize {
        self.slots.push(Slot {
            name: device.name().to_string(),
            state: State::Inactive(device),
            past: DeviceStats::default(),
            deadline: None,
        });
        self.slots.len() - 1
    }

    /// Takes a console: serves its terminal and tells `guest` of input. The first is the one meant when none is named.
    ///
    /// # Errors
    /// When epoll refuses a descriptor.
    pub fn add_console(&mut self, terminal: Arc<Terminal>, guest: Arc<dyn GuestEnd>) -> io::Result<()> {
        let number = self.consoles.len();
        for (fd, place) in terminal.sources() {
            self.watch_console(number, fd, place)?;
        }
        self.consoles.push(ConsoleEnds { terminal, guest });
        Ok(())
    }

    fn watch_console(&self, number: usize, fd: RawFd, place: usize) -> io::Result<()> {
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.watch(fd, events, CONSOLE + ((number as u64) << 8 | place as u64))
    }

    /// Runs until the VM ends, then stops vCPUs and finishes the devices' work.
    pub fn run(mut self, vcpus: &VcpuSet) -> End {
        let end = match self.serve(vcpus) {
            Ok(end) => end,
            Err(e) => End::host_fault(format!("device thread: {e}")),
        };
        self.end.finish(end.clone());
        vcpus.stop();
        // A vCPU that waits for us would never see the stop.
        let deadline = Instant::now() + PARK_DEADLINE;
        while !vcpus.all_stopped(Duration::from_millis(1)) && Instant::now() < deadline {
            while let Some(Command::Activate { reply, .. } | Command::Reset { reply, .. }) = self.handle.next() {
                let _ = reply.send(Err(end.clone()));
            }
        }
        for slot in &mut self.slots {
            if let State::Active(device) = std::mem::replace(&mut slot.state, State::Gone)
                && let Err(fault) = device.deactivate()
                && end.class != ExitClass::GuestFault
            {
                eprintln!("vmm: while stopping: {fault}");
            }
        }
        end
    }

    fn watch(&self, fd: RawFd, events: EventSet, data: u64) -> io::Result<()> {
        match self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data)) {
            // Regular files are always ready and cannot be watched.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(()),
            other => other,
        }
    }

    fn watch_sources(&self, slot: usize, sources: &[Source]) -> io::Result<()> {
        for source in sources {
            let mut events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            if source.writable {
                events |= EventSet::OUT;
            }
            self.watch(source.fd, events, (slot as u64) << 8 | u64::from(source.token))?;
        }
        Ok(())
    }

    fn forget_sources(&mut self, slot: usize, sources: &[Source]) {
        for source in sources {
            let _ = self.epoll.ctl(ControlOperation::Delete, source.fd, EpollEvent::default());
        }
        self.again.retain(|data| data >> 8 != slot as u64);
    }

    fn serve(&mut self, vcpus: &VcpuSet) -> io::Result<End> {
        let mut events = [EpollEvent::default(); BATCH];
        loop {
            let count = match self.epoll.wait(self.timeout(), &mut events) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                Err(e) => return Err(e),
            };
            let ready: BTreeSet<u64> = events[..count].iter().map(EpollEvent::data).collect();
            let again = if self.paused { BTreeSet::new() } else { std::mem::take(&mut self.again) };
            for data in ready.union(&again) {
                match *data {
                    WAKE => {
                        let _ = self.handle.wake.read();
                    }
                    ENDED => {}
                    TERMINATE => {
                        let _ = self.terminate.read();
                        self.power.press_button();
                    }
                    LISTEN => self.accept()?,
                    data if data >= CONNECTION => self.converse((data - CONNECTION) as usize, vcpus),
                    data if data >= CONSOLE => self.console_ready(data - CONSOLE),
                    data => self.device_ready(data),
                }
            }
            self.call_expired();
            self.run_commands();
            if let Some(end) = self.end.take() {
                return Ok(end);
            }
            if self.stop_at.is_some_and(|at| Instant::now() >= at) {
                return Ok(End::new(ExitClass::Stopped, "stopped: the guest did not power off by the deadline"));
            }
        }
    }

    /// Milliseconds for epoll; -1 for ever.
    fn timeout(&self) -> i32 {
        if !self.again.is_empty() && !self.paused {
            return 0;
        }
        let devices: &[Slot] = if self.paused { &[] } else { &self.slots[..] };
        match devices.iter().filter_map(|slot| slot.deadline).chain(self.stop_at).min() {
            None => -1,
            // Rounded up, so that nobody is called early.
            Some(at) => i32::try_from(at.saturating_duration_since(Instant::now()).as_millis() + 1).unwrap_or(i32::MAX),
        }
    }

    fn device_ready(&mut self, data: u64) {
        let slot = (data >> 8) as usize;
        let Some(State::Active(device)) = self.slots.get_mut(slot).map(|s| &mut s.state) else {
            return;
        };
        match device.ready(data as u8) {
            Ok(Progress::Drained) => {}
            Ok(Progress::Again) => {
                self.again.insert(data);
            }
            Err(fault) => return self.fault(slot, &fault),
        }
        self.slots[slot].renew_deadline();
    }

    /// Calls the devices whose deadline has passed.
    fn call_expired(&mut self) {
        if self.paused || self.slots.iter().all(|slot| slot.deadline.is_none()) {
            return;
        }
        let now = Instant::now();
        for slot in 0..self.slots.len() {
            if self.slots[slot].deadline.is_none_or(|at| at > now) {
                continue;
            }
            if let State::Active(device) = &mut self.slots[slot].state
                && let Err(fault) = device.expired()
            {
                self.fault(slot, &fault);
            }
            self.slots[slot].renew_deadline();
        }
    }

    fn console_ready(&mut self, data: u64) {
        let (number, place) = ((data >> 8) as usize, (data & 0xff) as usize);
        if let Some(console) = self.consoles.get(number)
            && console.terminal.ready(place)
            && !self.paused
        {
            console.guest.host_changed();
        }
    }

    fn fault(&mut self, slot: usize, fault: &DeviceFault) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.state = State::Gone;
            slot.deadline = None;
        }
        self.end.finish(end_of(fault));
    }

    fn run_commands(&mut self) {
        while let Some(command) = self.handle.next() {
            let (result, reply) = match command {
                Command::Activate { slot, activation, reply } => (self.activate(slot, activation), reply),
                Command::Reset { slot, reply } => (self.reset(slot), reply),
            };
            let _ = reply.send(result);
        }
    }

    fn activate(&mut self, slot: usize, activation: Activation) -> Result<(), End> {
        let state = std::mem::replace(&mut self.slots[slot].state, State::Gone);
        let State::Inactive(device) = state else {
            return Err(End::host_fault(format!("{}: activated twice", self.slots[slot].name)));
        };
        let mut active = device.activate(activation).map_err(|fault| end_of(&fault))?;
        if self.paused {
            active.pause().map_err(|fault| end_of(&fault))?;
        } else {
            self.watch_sources(slot, &active.sources()).map_err(|e| End::host_fault(format!("epoll: {e}")))?;
        }
        self.slots[slot].state = State::Active(active);
        self.slots[slot].renew_deadline();
        Ok(())
    }

    fn reset(&mut self, slot: usize) -> Result<(), End> {
        self.slots[slot].deadline = None;
        match std::mem::replace(&mut self.slots[slot].state, State::Gone) {
            State::Active(active) => {
                self.forget_sources(slot, &active.sources());
                let past = &mut self.slots[slot].past;
                *past = *past + active.stats();
                self.slots[slot].state = State::Inactive(active.deactivate().map_err(|fault| end_of(&fault))?);
            }
            other => self.slots[slot].state = other,
        }
        Ok(())
    }
}

pub(crate) fn end_of(fault: &DeviceFault) -> End {
    match fault {
        DeviceFault::Ring { .. } | DeviceFault::Guest { .. } => End::guest_fault(fault.to_string()),
        DeviceFault::Host { .. } => End::host_fault(fault.to_string()),
    }
}
