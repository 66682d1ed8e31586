//! What the loop does with units: start, stop, end, output, and the requests of clients about them.

use super::{MAX_UNITS, Platform, READ_BYTES, Supervisor};
use crate::clock;
use crate::supervisor::ends::{self, Around};
use crate::supervisor::lines::{Brake, Splitter};
use crate::supervisor::reap;
use crate::supervisor::shutdown::{Cause, Down, DownKind, MAX_UNIT_DEADLINE_MS};
use crate::supervisor::spawn::spawn;
use crate::supervisor::unit::{Action, Unit};
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_supervise::{Event, Exit, RefusalKind, Refused, Reply, Request, Stream, UnitName, UnitSpec, UnitState};
use holdfast_unit::last_words;
use nix::errno::Errno;
use std::os::fd::OwnedFd;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) unit: Unit,
    fds: Vec<OwnedFd>,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) pipes: Vec<Pipe>,
    /// Where the last words of this run come.
    words: Option<OwnedFd>,
    /// Kills for lack of memory before this run.
    oom_kills: u64,
    brake: Brake,
    /// Remove it when it has ended.
    forget: bool,
}

#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) fd: OwnedFd,
    stream: Stream,
    splitter: Splitter,
}

/// The last words of a unit whose main process has ended. One read is all: what fits into it arrives whole.
fn read_words(pipe: &OwnedFd) -> Option<End> {
    let mut buffer = [0u8; last_words::MAX_BYTES + 1];
    let length = nix::unistd::read(pipe, &mut buffer).ok()?;
    last_words::parse(buffer.get(..length)?)
}

impl<P: Platform> Supervisor<P> {
    /// Starts a unit as a client would.
    pub fn start(&mut self, spec: UnitSpec, fds: Vec<OwnedFd>) -> Result<u32, Refused> {
        spec.validate()?;
        let name = spec.name.clone();
        if self.down.is_some() {
            return Err(Refused::new(RefusalKind::ShuttingDown, format!("unit {name}: the machine is going down")));
        }
        match self.units.get(&name) {
            Some(entry) if entry.unit.is_alive() => {
                let text = format!("unit {name}: expected it ended, found it {:?}", entry.unit.state());
                return Err(Refused::new(RefusalKind::Busy, text));
            }
            None if self.units.len() >= MAX_UNITS => {
                let text = format!("unit {name}: {MAX_UNITS} units exist; remove ended ones first");
                return Err(Refused::new(RefusalKind::Full, text));
            }
            _ => {}
        }
        let unit = Unit::new(spec, self.next_order, clock::now_ms());
        self.next_order += 1;
        let entry = Entry {
            unit,
            fds,
            pidfd: None,
            pipes: Vec::new(),
            words: None,
            oom_kills: 0,
            brake: Brake::new(200, 20),
            forget: false,
        };
        self.units.insert(name.clone(), entry);
        self.act(&name, Action::Spawn);
        match self.units.get(&name).map(|e| e.unit.status(false)) {
            Some(status) => match (status.state.pid(), status.exit) {
                (Some(pid), _) => Ok(pid),
                (None, exit) => {
                    let why = exit.map_or_else(|| "it ended at once".into(), |e| e.to_string());
                    Err(Refused::new(RefusalKind::Failed, format!("unit {name}: {why}")))
                }
            },
            None => Err(Refused::new(RefusalKind::Failed, format!("unit {name}: gone"))),
        }
    }
    pub(super) fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Reply, Refused> {
        let unknown = |name: &UnitName| Refused::new(RefusalKind::Unknown, format!("unit {name}: there is none"));
        match request {
            Request::Start(spec) => Ok(Reply::Started { pid: self.start(*spec, fds)? }),
            Request::Stop { name, deadline_ms } => {
                if !self.units.contains_key(&name) {
                    return Err(unknown(&name));
                }
                self.stop(&name, deadline_ms);
                Ok(Reply::Done)
            }
            Request::Remove { name } => {
                let entry = self.units.get_mut(&name).ok_or_else(|| unknown(&name))?;
                match entry.unit.state() {
                    UnitState::Ended => self.remove(&name),
                    UnitState::Stopping { .. } => entry.forget = true,
                    UnitState::Running { .. } | UnitState::Backoff { .. } => {
                        let text = format!("unit {name}: lives; stop it first");
                        return Err(Refused::new(RefusalKind::Busy, text));
                    }
                }
                Ok(Reply::Done)
            }
            Request::List { after } => Ok(self.list(after.as_ref())),
            Request::Logs { after, unit, max } => Ok(Reply::Logs(self.logs.read(after, unit.as_ref(), max))),
            Request::Heartbeat => {
                self.health.heartbeat(clock::now_ms());
                Ok(Reply::Done)
            }
            Request::Reboot { reason } => {
                self.go_down(Down { kind: DownKind::Reboot, cause: Cause::Order, reason });
                Ok(Reply::Done)
            }
            Request::PowerOff { reason } => {
                self.go_down(Down { kind: DownKind::PowerOff, cause: Cause::Order, reason });
                Ok(Reply::Done)
            }
            Request::KernelLogTail { max_bytes } => {
                Ok(Reply::KernelLog { text: self.platform.kernel_log_tail(max_bytes.min(32 * 1024) as usize) })
            }
            Request::Subscribe => Ok(Reply::Done),
        }
    }

    /// As many units as fit: a spec is at most 24 KiB, so two always do.
    fn list(&self, after: Option<&UnitName>) -> Reply {
        let mut rest = self.units.iter().filter(|(name, _)| after.is_none_or(|a| *name > a)).peekable();
        let mut units = Vec::new();
        let mut size = 0;
        while let Some((_, entry)) = rest.peek() {
            let status = entry.unit.status(true);
            size += serde_json::to_vec(&status).map_or(0, |v| v.len() + 1);
            if size > 60 * 1024 {
                break;
            }
            units.push(status);
            rest.next();
        }
        Reply::Units { units, more: rest.peek().is_some() }
    }

    pub(super) fn stop(&mut self, name: &UnitName, deadline_ms: Option<u64>) {
        let Some(entry) = self.units.get_mut(name) else {
            return;
        };
        let own = deadline_ms.unwrap_or(entry.unit.spec.stop.deadline_ms);
        let deadline_ms = if self.down.is_some() { own.min(MAX_UNIT_DEADLINE_MS) } else { own };
        let before = entry.unit.state();
        let action = entry.unit.stop(clock::now_ms(), Some(deadline_ms));
        let changed = entry.unit.state() != before;
        if self.options.watched.as_ref() == Some(name) {
            self.health.node_ended();
        }
        if let Some(action) = action {
            self.act(name, action);
        }
        if changed {
            self.tell(name);
        }
    }

    pub(super) fn act(&mut self, name: &UnitName, action: Action) {
        let Some(entry) = self.units.get_mut(name) else {
            return;
        };
        match action {
            Action::Spawn => self.spawn(name),
            Action::Signal { pid, signal } => {
                // SAFETY: a plain system call; the pid is our unreaped child, so it is nobody else's.
                unsafe { libc::kill(pid as libc::pid_t, signal) };
            }
            Action::KillAll => {
                if let Some(pid) = entry.unit.state().pid() {
                    // The session's process group reaches what is left when there are no cgroups.
                    for target in [-(pid as libc::pid_t), pid as libc::pid_t] {
                        // SAFETY: as above; the group was made by the child itself with setsid.
                        unsafe { libc::kill(target, libc::SIGKILL) };
                    }
                }
                if let Some(cgroups) = &self.options.cgroups {
                    cgroups.kill(name);
                }
            }
            Action::Release => {
                entry.fds.clear();
                if let Some(cgroups) = &self.options.cgroups
                    && !cgroups.remove(name)
                {
                    self.dying_cgroups.insert(name.clone());
                }
            }
        }
    }

    fn spawn(&mut self, name: &UnitName) {
        self.dying_cgroups.remove(name);
        let Some(entry) = self.units.get_mut(name) else {
            return;
        };
        let spec = &entry.unit.spec;
        let cgroup = self.options.cgroups.as_ref().map(|c| c.enter(name, &spec.limits)).transpose();
        let oom_kills = self.options.cgroups.as_ref().map_or(0, |c| c.out_of_memory_kills(name));
        let result = cgroup
            .map_err(|e| e.to_string())
            .and_then(|cgroup| spawn(spec, &entry.fds, cgroup.as_ref()).map_err(|e| e.to_string()));
        let now = clock::now_ms();
        match result {
            Ok(spawned) => {
                let pipe = |fd, stream| Pipe { fd, stream, splitter: Splitter::default() };
                entry.pipes = vec![pipe(spawned.out, Stream::Out), pipe(spawned.err, Stream::Err)];
                entry.pidfd = Some(spawned.pidfd);
                entry.words = Some(spawned.words);
                entry.oom_kills = oom_kills;
                entry.unit.started(now, spawned.pid);
                if self.options.watched.as_ref() == Some(name) {
                    self.health.node_started(now);
                }
                self.note(name, &format!("started, pid {}", spawned.pid));
            }
            Err(why) => {
                let action = entry.unit.not_started(now, format!("{}: {why}", entry.unit.spec.program));
                self.note(name, &format!("not started: {why}"));
                if let Some(action) = action {
                    self.act(name, action);
                }
            }
        }
        self.tell(name);
    }

    /// The main process of a unit has ended and is reaped here.
    pub(super) fn ended(&mut self, name: &UnitName, pid: u32, exit: Exit) {
        // What it left behind dies with it; only then its last words are complete.
        self.act(name, Action::KillAll);
        reap::reap(pid);
        self.read_output(name, true);
        if self.options.watched.as_ref() == Some(name) {
            self.health.node_ended();
        }
        let Some(entry) = self.units.get_mut(name) else {
            return;
        };
        entry.pidfd = None;
        entry.pipes.clear();
        let text = exit.to_string();
        let words = entry.words.take().and_then(|pipe| read_words(&pipe));
        let oom_kills = self.options.cgroups.as_ref().map_or(0, |c| c.out_of_memory_kills(name));
        let around = Around {
            out_of_memory: oom_kills > entry.oom_kills,
            stopping: matches!(entry.unit.state(), UnitState::Stopping { .. }),
        };
        let end = ends::of(&entry.unit.spec, &exit, words, around);
        let action = entry.unit.exited(clock::now_ms(), exit, end.clone());
        let next = match entry.unit.state() {
            UnitState::Backoff { until_ms } => {
                format!(", starts again in {} ms", until_ms.saturating_sub(clock::now_ms()))
            }
            _ => String::new(),
        };
        let said = match end.class {
            // Nothing that the exit does not say.
            ExitClass::Exited { .. } | ExitClass::Crashed { .. } | ExitClass::Killed { .. } => String::new(),
            _ => format!(": {end}"),
        };
        self.note(name, &format!("{text}{next}{said}"));
        if let Some(action) = action {
            self.act(name, action);
        }
        self.tell(name);
        if self.units.get(name).is_some_and(|e| e.forget && !e.unit.is_alive()) {
            self.remove(name);
        }
    }

    fn remove(&mut self, name: &UnitName) {
        self.units.remove(name);
        self.logs.remove(name);
        self.server.publish(&Event::Removed { name: name.clone() });
    }

    /// Reads what is there; `last` reads to the end and closes.
    pub(super) fn read_output(&mut self, name: &UnitName, last: bool) {
        let Some(entry) = self.units.get_mut(name) else {
            return;
        };
        let now = clock::now_ms();
        let (logs, platform, brake) = (&mut self.logs, &mut self.platform, &mut entry.brake);
        entry.pipes.retain_mut(|pipe| {
            let stream = pipe.stream;
            let mut keep = |line: &str| {
                logs.push(name, stream, now, line);
                match brake.pass(now) {
                    Some(0) => platform.say(&format!("{name}: {line}")),
                    Some(held) => platform.say(&format!("{name}: [{held} lines only in the log] {line}")),
                    None => {}
                }
            };
            let mut buffer = [0u8; READ_BYTES];
            // The last read is bounded too: a pipe holds at most 64 KiB once its writers are dead.
            for _ in 0..if last { 8 } else { 1 } {
                match nix::unistd::read(&pipe.fd, &mut buffer) {
                    Ok(0) => {
                        pipe.splitter.finish(keep);
                        return false;
                    }
                    Ok(n) => pipe.splitter.feed(&buffer[..n], &mut keep),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => break,
                    Err(_) => return false,
                }
            }
            if last {
                pipe.splitter.finish(keep);
            }
            true
        });
    }

    /// A line of ours about a unit.
    pub(super) fn note(&mut self, name: &UnitName, text: &str) {
        self.logs.push(name, Stream::Supervisor, clock::now_ms(), text);
        self.platform.say(&format!("unit {name}: {text}"));
    }

    fn tell(&mut self, name: &UnitName) {
        if let Some(entry) = self.units.get(name) {
            self.server.publish(&Event::Unit(Box::new(entry.unit.status(false))));
        }
    }
}
