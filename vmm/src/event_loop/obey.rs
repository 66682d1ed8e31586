//! What the control socket's clients ask of the device thread.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::{CONNECTION, EventLoop, PARK_DEADLINE, State};
use crate::vcpu::VcpuSet;
use crate::virtio::Order;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::vm::WindowSize;
use holdfast_model::contract::vm::{Reply, Request, RunState, Stats};

impl EventLoop {
    pub(super) fn accept(&mut self) -> io::Result<()> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        if let Some((number, fd)) = control.accept()? {
            self.watch(fd, EventSet::IN, CONNECTION + number as u64)?;
        }
        Ok(())
    }

    pub(super) fn converse(&mut self, connection: usize, vcpus: &VcpuSet) {
        let Some(control) = &mut self.control else {
            return;
        };
        let Some(request) = control.receive(connection) else {
            return;
        };
        let answer = request.and_then(|request| self.obey(request, vcpus));
        let (reply, fd) = answer.unwrap_or_else(|reason| (Reply::Refused { reason }, None));
        if let Some(control) = &mut self.control {
            control.send(connection, &reply, fd);
        }
    }

    fn console_number(&self, name: Option<&str>) -> Result<usize, String> {
        let found = self.consoles.iter().position(|c| name.is_none_or(|name| c.terminal.name() == name));
        found.ok_or_else(|| {
            let names: Vec<&str> = self.consoles.iter().map(|c| c.terminal.name()).collect();
            match (name, names.as_slice()) {
                (_, []) => "this VM has no console; give it \"console\" or \"serial\" in its configuration".into(),
                (name, names) => format!("no console {:?}; there is {}", name.unwrap_or(""), names.join(", ")),
            }
        })
    }

    fn attach(&mut self, name: Option<&str>, replay: bool) -> Result<(Reply, OwnedFd), String> {
        let number = self.console_number(name)?;
        let terminal = &self.consoles[number].terminal;
        let attachment = terminal.attach(replay)?;
        let (fd, place) = attachment.watch;
        let reply = Reply::Attached { console: terminal.name().to_string(), replayed: attachment.replayed };
        self.watch_console(number, fd, place).map_err(|e| format!("cannot watch the stream: {e}"))?;
        Ok((reply, attachment.client))
    }

    fn resize_console(&self, name: Option<&str>, size: WindowSize) -> Result<(), String> {
        let console = &self.consoles[self.console_number(name)?];
        if !console.terminal.resize(size) {
            return Err(format!("console {}: its driver cannot be told of a size now", console.terminal.name()));
        }
        if !self.paused {
            console.guest.host_changed();
        }
        Ok(())
    }

    /// The reply, and for a client that attaches its stream; or why not.
    fn obey(&mut self, request: Request, vcpus: &VcpuSet) -> Result<(Reply, Option<OwnedFd>), String> {
        let reply = match request {
            Request::Ping => Reply::Pong { version: env!("CARGO_PKG_VERSION").to_string(), state: self.run_state() },
            Request::Pause => self.pause(vcpus),
            Request::Resume => self.resume(vcpus),
            Request::PowerButton => {
                self.power.press_button();
                Reply::Done
            }
            Request::Stop { deadline_ms } => {
                if self.paused {
                    self.end.finish(End::new(ExitClass::Stopped, "stopped while paused"));
                    return Ok((Reply::Done, None));
                }
                let at = Instant::now() + Duration::from_millis(deadline_ms);
                self.stop_at = Some(self.stop_at.map_or(at, |earlier| earlier.min(at)));
                self.power.press_button();
                Reply::Done
            }
            Request::Balloon { target_mib } => self.order(Order::BalloonTarget { mib: target_mib }, "balloon"),
            Request::VsockCid { cid } => self.order(Order::VsockCid { cid }, "vsock"),
            Request::Stats => Reply::Stats(Box::new(Stats {
                state: self.run_state(),
                uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
                setup_cpu_us: u64::try_from(vcpus.setup_cpu().as_micros()).unwrap_or(u64::MAX),
                vcpus: vcpus.stats(),
                memory: self.slots.iter_mut().find_map(|slot| match &mut slot.state {
                    State::Active(device) => device.memory(),
                    _ => None,
                }),
                devices: self.slots.iter().map(|slot| (slot.name.clone(), slot.stats())).collect(),
                consoles: self.consoles.iter().map(|c| (c.terminal.name().to_string(), c.terminal.stats())).collect(),
            })),
            Request::AttachConsole { console, replay } => {
                let (reply, client) = self.attach(console.as_deref(), replay)?;
                return Ok((reply, Some(client)));
            }
            Request::ResizeConsole { console, size } => {
                self.resize_console(console.as_deref(), size)?;
                Reply::Done
            }
        };
        Ok((reply, None))
    }

    /// Hands `order` to the device it is for.
    fn order(&mut self, order: Order, kind: &str) -> Reply {
        let done = self.slots.iter_mut().find_map(|slot| match &mut slot.state {
            State::Inactive(device) => device.order(order),
            State::Active(device) => device.order(order),
            State::Gone => None,
        });
        match done {
            Some(Ok(())) => Reply::Done,
            Some(Err(reason)) => Reply::Refused { reason },
            None => Reply::Refused { reason: format!("this VM has no {kind} device") },
        }
    }

    fn run_state(&self) -> RunState {
        match (self.paused, self.stop_at) {
            (true, _) => RunState::Paused,
            (false, Some(_)) => RunState::Stopping,
            (false, None) => RunState::Running,
        }
    }

    fn pause(&mut self, vcpus: &VcpuSet) -> Reply {
        if self.paused {
            return Reply::Done;
        }
        vcpus.pause();
        let deadline = Instant::now() + PARK_DEADLINE;
        // A vCPU may be waiting for an activation: keep answering.
        while !vcpus.all_parked(Duration::from_millis(1)) {
            self.run_commands();
            if Instant::now() >= deadline {
                vcpus.resume();
                return Reply::Refused { reason: "pause: a vCPU did not leave the guest within 5 s".into() };
            }
        }
        self.paused = true;
        for slot in 0..self.slots.len() {
            let State::Active(device) = &mut self.slots[slot].state else {
                continue;
            };
            let sources = device.sources();
            let paused = device.pause();
            self.forget_sources(slot, &sources);
            if let Err(fault) = paused {
                self.fault(slot, &fault);
            }
        }
        Reply::Done
    }

    fn resume(&mut self, vcpus: &VcpuSet) -> Reply {
        if !self.paused {
            return Reply::Done;
        }
        self.paused = false;
        for slot in 0..self.slots.len() {
            let State::Active(device) = &mut self.slots[slot].state else {
                continue;
            };
            let resumed = device.resume();
            let sources = device.sources();
            if let Err(fault) = resumed {
                self.fault(slot, &fault);
            } else if let Err(e) = self.watch_sources(slot, &sources) {
                self.end.finish(End::host_fault(format!("epoll: {e}")));
            }
            self.slots[slot].renew_deadline();
        }
        for console in &self.consoles {
            console.guest.host_changed();
        }
        vcpus.resume();
        Reply::Done
    }
}
