//! The loop: one `poll` over signals, clients, process ends and output; then what the clock demands. What it does with units is in
//! `units`.

mod units;

use super::cgroup::Cgroups;
use super::health::{Health, PET_INTERVAL_MS, Verdict};
use super::logs::LogStore;
use super::reap::{self, Whose};
use super::server::Server;
use super::shutdown::{Cause, DOWN_DEADLINE_MS, Down, DownKind, next_to_stop};
use super::unit::Action;
use crate::clock;
use holdfast_supervise::{Event, Reply, Request, UnitName};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use units::Entry;

/// Most apps, and the programs that each may have: a VMM and two companions (a TPM, a display).
const APPS: (usize, usize) = (50, 3);
/// Most networks, each with one service.
const NETWORKS: usize = 200;
/// DHCP clients of ports, download jobs, tunnels, sensors, `node` itself; ended units that nobody has removed yet.
const OTHERS: usize = 162;
/// Most units at a time, ended ones included.
pub const MAX_UNITS: usize = APPS.0 * APPS.1 + NETWORKS + OTHERS;
/// `Event::Logs` is sent at most once in this time.
const LOG_EVENT_INTERVAL_MS: u64 = 100;
/// How often the removal of a cgroup with dying processes, and the slot's health, are looked at.
const CARE_INTERVAL_MS: u64 = 1000;
/// Bytes read from one pipe in one turn, so that a chatterer does not hold up the loop.
const READ_BYTES: usize = 16 * 1024;

/// What the loop needs from the machine it runs on; tests give a stand-in.
pub trait Platform {
    /// Keeps the hardware watchdog quiet.
    fn pet_watchdog(&mut self);
    /// A lasting fault that must end this boot now, such as a block of the slot that fails verification.
    fn fault(&mut self) -> Option<String>;
    /// The decision to go down is made: record the reason before anything else can go wrong.
    fn going_down(&mut self, down: &Down);
    /// A line for people; may be dropped when the console is slow.
    fn say(&mut self, text: &str);
    /// The console's descriptor while it has lines to write, and its writer.
    fn console(&self) -> Option<BorrowedFd<'_>>;
    /// The console is writable.
    fn console_ready(&mut self);
    /// Newest part of the kernel log.
    fn kernel_log_tail(&mut self, max_bytes: usize) -> String;
    /// The power button, if there is one, and whether it was pressed.
    fn power_button(&self) -> Option<BorrowedFd<'_>>;
    /// Reads the button: true when it was pressed.
    fn power_pressed(&mut self) -> bool;
}

/// How to run.
#[derive(Debug)]
pub struct Options {
    /// Where to listen.
    pub socket: PathBuf,
    /// Where units get their cgroups; `None`: no limits, and stopping kills the session instead.
    pub cgroups: Option<Cgroups>,
    /// True for the real PID 1: signals are taken and every orphan is reaped.
    pub init: bool,
    /// The unit whose heartbeats are watched and which is stopped last.
    pub watched: Option<UnitName>,
}

/// The supervisor.
#[derive(Debug)]
pub struct Supervisor<P> {
    platform: P,
    options: Options,
    server: Server,
    signals: Option<SignalFd>,
    units: BTreeMap<UnitName, Entry>,
    logs: LogStore,
    health: Health,
    next_order: u64,
    next_pet_ms: u64,
    next_care_ms: u64,
    told_logs: u64,
    next_log_event_ms: u64,
    dying_cgroups: BTreeSet<UnitName>,
    /// The decision, and when it was made.
    down: Option<(Down, u64)>,
}

/// Who became ready.
#[derive(Debug, Clone)]
enum Source {
    Signals,
    Console,
    PowerButton,
    Listener,
    Client(u64),
    Process(UnitName),
    Output(UnitName),
}

impl<P: Platform> Supervisor<P> {
    /// Listens; as PID 1 also takes over the signals.
    pub fn new(platform: P, options: Options) -> io::Result<Supervisor<P>> {
        let now = clock::now_ms();
        let server = Server::bind(&options.socket)?;
        let signals = if options.init {
            let mut set = SigSet::empty();
            for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR] {
                set.add(signal);
            }
            set.thread_block()?;
            Some(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
        } else {
            None
        };
        Ok(Supervisor {
            platform,
            options,
            server,
            signals,
            units: BTreeMap::new(),
            logs: LogStore::default(),
            health: Health::new(now),
            next_order: 0,
            next_pet_ms: now,
            next_care_ms: now + CARE_INTERVAL_MS,
            told_logs: 0,
            next_log_event_ms: 0,
            dying_cgroups: BTreeSet::new(),
            down: None,
        })
    }

    /// The platform, for the way down after [`Supervisor::run`].
    pub fn into_platform(self) -> P {
        self.platform
    }

    /// Begins the way down; a second call changes nothing but may be louder.
    pub fn go_down(&mut self, down: Down) {
        if self.down.is_some() {
            return;
        }
        self.platform.say(&format!("pid1: going down ({:?}): {}", down.kind, down.reason));
        self.platform.going_down(&down);
        self.server.publish(&Event::Shutdown { reason: down.reason.clone() });
        self.down = Some((down, clock::now_ms()));
    }

    /// Runs until the machine is to go down and every unit has ended.
    pub fn run(&mut self) -> Down {
        loop {
            let now = clock::now_ms();
            self.keep_time(now);
            if let Some((down, since_ms)) = &self.down {
                let late = now >= since_ms + DOWN_DEADLINE_MS;
                if late || !self.units.values().any(|e| e.unit.is_alive()) {
                    return down.clone();
                }
            }
            for source in self.wait() {
                self.serve(source);
            }
        }
    }

    /// Sleeps until something is ready or the next deadline.
    fn wait(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        let mut polled = Vec::new();
        let mut add = |source, fd, flags| {
            sources.push(source);
            polled.push(PollFd::new(fd, flags));
        };
        if let Some(signals) = &self.signals {
            add(Source::Signals, signals.as_fd(), PollFlags::POLLIN);
        }
        if let Some(console) = self.platform.console() {
            add(Source::Console, console, PollFlags::POLLOUT);
        }
        if let Some(button) = self.platform.power_button() {
            add(Source::PowerButton, button, PollFlags::POLLIN);
        }
        add(Source::Listener, self.server.listener(), PollFlags::POLLIN);
        for (id, fd) in self.server.connections() {
            add(Source::Client(id), fd, PollFlags::POLLIN);
        }
        for (name, entry) in &self.units {
            // Output first: what a process wrote before its end is kept before the end is told.
            for pipe in &entry.pipes {
                add(Source::Output(name.clone()), pipe.fd.as_fd(), PollFlags::POLLIN);
            }
            if let Some(pidfd) = &entry.pidfd {
                add(Source::Process(name.clone()), pidfd.as_fd(), PollFlags::POLLIN);
            }
        }
        let left = self.next_ms().saturating_sub(clock::now_ms());
        let timeout = PollTimeout::try_from(left.min(60_000)).unwrap_or(PollTimeout::ZERO);
        match poll(&mut polled, timeout) {
            Ok(_) => {
                let ready = polled.iter().map(|p| p.any().unwrap_or(true));
                sources.into_iter().zip(ready).filter_map(|(source, ready)| ready.then_some(source)).collect()
            }
            // EINTR, or no memory for a moment: the next turn tries again.
            Err(_) => Vec::new(),
        }
    }

    fn next_ms(&self) -> u64 {
        let units = self.units.values().filter_map(|e| e.unit.next_ms());
        let logs = (self.logs.newest() != self.told_logs).then_some(self.next_log_event_ms);
        [self.next_pet_ms, self.next_care_ms, self.health.next_ms()]
            .into_iter()
            .chain(units)
            .chain(logs)
            .min()
            .unwrap_or(0)
    }

    fn keep_time(&mut self, now: u64) {
        if now >= self.next_pet_ms {
            self.platform.pet_watchdog();
            self.next_pet_ms = now + PET_INTERVAL_MS;
        }
        if now >= self.next_care_ms {
            self.next_care_ms = now + CARE_INTERVAL_MS;
            self.care();
        }
        let due: Vec<(UnitName, Action)> =
            self.units.iter_mut().filter_map(|(name, entry)| Some((name.clone(), entry.unit.due(now)?))).collect();
        for (name, action) in due {
            self.act(&name, action);
        }
        if let (Some(watched), None) = (self.options.watched.clone(), &self.down) {
            match self.health.check(now) {
                Verdict::Well => {}
                Verdict::RestartNode => {
                    self.note(&watched, "no heartbeat in time: killed, to be started again");
                    self.act(&watched, Action::KillAll);
                }
                Verdict::Reboot => {
                    let reason =
                        format!("watchdog: no heartbeat of {watched} for {} s", super::health::REBOOT_AFTER_MS / 1000);
                    self.go_down(Down { kind: DownKind::Reboot, cause: Cause::NoHeartbeat, reason });
                }
            }
        }
        if self.down.is_some() {
            let units = self.units.values().map(|e| &e.unit);
            for name in next_to_stop(units, self.options.watched.as_ref()) {
                self.stop(&name, None);
            }
        }
        if self.logs.newest() != self.told_logs && now >= self.next_log_event_ms {
            self.told_logs = self.logs.newest();
            self.next_log_event_ms = now + LOG_EVENT_INTERVAL_MS;
            self.server.publish(&Event::Logs { newest: self.told_logs });
        }
    }

    /// Slow upkeep.
    fn care(&mut self) {
        if let Some(cgroups) = &self.options.cgroups {
            self.dying_cgroups.retain(|name| !cgroups.remove(name));
        }
        if self.down.is_none()
            && let Some(reason) = self.platform.fault()
        {
            self.go_down(Down { kind: DownKind::Reboot, cause: Cause::Fault, reason });
        }
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Signals => self.take_signals(),
            Source::Console => self.platform.console_ready(),
            Source::PowerButton => {
                if self.platform.power_pressed() {
                    self.go_down(Down { kind: DownKind::PowerOff, cause: Cause::Order, reason: "power button".into() });
                }
            }
            Source::Listener => self.server.accept(),
            Source::Client(id) => {
                if let Some((request, fds)) = self.server.receive(id) {
                    let subscribe = request == Request::Subscribe;
                    let reply = self.answer(request, fds).unwrap_or_else(Reply::Refused);
                    self.server.reply(id, &reply);
                    if subscribe {
                        self.server.subscribe(id);
                    }
                }
            }
            Source::Output(name) => self.read_output(&name, false),
            Source::Process(name) => {
                let Some(pidfd) = self.units.get(&name).and_then(|e| e.pidfd.as_ref()) else {
                    return;
                };
                if let Some((pid, exit)) = reap::peek(Whose::Pidfd(pidfd.as_fd())) {
                    self.ended(&name, pid, exit);
                }
            }
        }
    }

    fn take_signals(&mut self) {
        while let Some(Ok(Some(info))) = self.signals.as_mut().map(|s| s.read_signal()) {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGINT) => {
                    self.go_down(Down {
                        kind: DownKind::Reboot,
                        cause: Cause::Order,
                        reason: "ctrl-alt-del or SIGINT".into(),
                    });
                }
                Ok(Signal::SIGTERM) => {
                    self.go_down(Down { kind: DownKind::Reboot, cause: Cause::Order, reason: "SIGTERM".into() })
                }
                Ok(Signal::SIGPWR) => {
                    self.go_down(Down { kind: DownKind::PowerOff, cause: Cause::Order, reason: "SIGPWR".into() })
                }
                _ => {}
            }
        }
        self.reap();
    }

    /// Reaps every ended child; those that are units' main processes are told to their units.
    fn reap(&mut self) {
        while let Some((pid, exit)) = reap::peek(Whose::Any) {
            let owner = self.units.iter().find(|(_, e)| e.unit.state().pid() == Some(pid)).map(|(n, _)| n.clone());
            match owner {
                Some(name) => self.ended(&name, pid, exit),
                None => reap::reap(pid),
            }
        }
    }
}
