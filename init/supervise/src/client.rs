//! The blocking client, and the subscription to events.
//!
//! PID 1 answers from memory in well under a millisecond, so `node` may call from its own thread; the
//! deadline is there for the case that PID 1 is being stopped in a debugger or the machine is thrashing.

use crate::message::{Event, Logs, Refused, Reply, Request, UnitStatus};
use crate::wire::{self, WireError};
use crate::{UnitName, UnitSpec};
use holdfast_unit::packet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait for one answer.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Why a call gave no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// PID 1 could not be reached.
    #[error("supervisor socket {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke or carried nonsense. The client is unusable afterwards: connect again.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// No answer in time. The client is unusable afterwards: connect again.
    #[error("supervisor: no answer within {} ms", after.as_millis())]
    Deadline {
        /// The deadline that passed.
        after: Duration,
    },
    /// PID 1 said no; the connection stays good.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// An answer that does not belong to the request.
    #[error("supervisor: expected {expected}, found another reply")]
    Unexpected {
        /// The kind that was expected.
        expected: &'static str,
    },
}

/// A connection to PID 1 for requests, one at a time.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// Set after a broken or late answer: the next packet could be the late answer to an older request.
    spoiled: bool,
}

impl Client {
    /// Connects to [`crate::SOCKET_PATH`] or another path.
    pub fn connect(path: impl AsRef<Path>) -> Result<Client, CallError> {
        Ok(Client::from_socket(connect_to(path.as_ref())?))
    }

    /// Uses a socket that is connected already (non-blocking or not).
    pub fn from_socket(socket: OwnedFd) -> Client {
        Client { socket, spoiled: false }
    }

    /// Starts a unit; `fds` become 3, 4, ... in it. Returns its process id.
    pub fn start(&mut self, spec: &UnitSpec, fds: &[BorrowedFd<'_>]) -> Result<u32, CallError> {
        match self.call(&Request::Start(Box::new(spec.clone())), fds)? {
            Reply::Started { pid } => Ok(pid),
            _ => Err(CallError::Unexpected { expected: "started" }),
        }
    }

    /// Begins to stop a unit; the end is told by an [`Event::Unit`].
    pub fn stop(&mut self, name: &UnitName, deadline: Option<Duration>) -> Result<(), CallError> {
        let deadline_ms = deadline.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        self.done(&Request::Stop { name: name.clone(), deadline_ms })
    }

    /// Forgets an ended unit and its log lines; one that is being stopped is forgotten when it has ended.
    pub fn remove(&mut self, name: &UnitName) -> Result<(), CallError> {
        self.done(&Request::Remove { name: name.clone() })
    }

    /// All units in order of name, with their specs.
    pub fn list(&mut self) -> Result<Vec<UnitStatus>, CallError> {
        let mut all: Vec<UnitStatus> = Vec::new();
        loop {
            let after = all.last().map(|unit| unit.name.clone());
            match self.call(&Request::List { after }, &[])? {
                Reply::Units { units, more } => {
                    // An empty page cannot be followed by another, whatever the peer says.
                    let more = more && !units.is_empty();
                    all.extend(units);
                    if !more {
                        return Ok(all);
                    }
                }
                _ => return Err(CallError::Unexpected { expected: "units" }),
            }
        }
    }

    /// Log lines after cursor `after`, of one unit or all; at most `max`, fewer when a packet is full.
    pub fn logs(&mut self, after: u64, unit: Option<&UnitName>, max: u32) -> Result<Logs, CallError> {
        match self.call(&Request::Logs { after, unit: unit.cloned(), max }, &[])? {
            Reply::Logs(logs) => Ok(logs),
            _ => Err(CallError::Unexpected { expected: "logs" }),
        }
    }

    /// Tells PID 1 that `node` is well.
    pub fn heartbeat(&mut self) -> Result<(), CallError> {
        self.done(&Request::Heartbeat)
    }

    /// Begins an orderly stop and restart of the machine.
    pub fn reboot(&mut self, reason: impl Into<String>) -> Result<(), CallError> {
        self.done(&Request::Reboot { reason: reason.into() })
    }

    /// Begins an orderly stop of the machine.
    pub fn power_off(&mut self, reason: impl Into<String>) -> Result<(), CallError> {
        self.done(&Request::PowerOff { reason: reason.into() })
    }

    /// The newest part of this boot's kernel log.
    pub fn kernel_log_tail(&mut self, max_bytes: u32) -> Result<String, CallError> {
        match self.call(&Request::KernelLogTail { max_bytes }, &[])? {
            Reply::KernelLog { text } => Ok(text),
            _ => Err(CallError::Unexpected { expected: "kernel-log" }),
        }
    }

    /// One request, one reply, within [`CALL_DEADLINE`]; a refusal is an error.
    pub fn call(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, CallError> {
        if self.spoiled {
            return Err(WireError::Closed.into());
        }
        let deadline = Instant::now() + CALL_DEADLINE;
        let answer = self.exchange(request, fds, deadline);
        // A request that never left (too long, too many descriptors) spoils nothing.
        self.spoiled = match &answer {
            Ok(_) => false,
            Err(CallError::Wire(WireError::TooLong { .. } | WireError::TooManyFds { .. })) => false,
            Err(_) => true,
        };
        match answer? {
            Reply::Refused(refused) => Err(refused.into()),
            reply => Ok(reply),
        }
    }

    fn exchange(&mut self, request: &Request, fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<Reply, CallError> {
        if !wire::wait_writable(&self.socket, deadline)? {
            return Err(CallError::Deadline { after: CALL_DEADLINE });
        }
        wire::send_request(self.socket.as_fd(), request, fds)?;
        if !wire::wait_readable(&self.socket, deadline)? {
            return Err(CallError::Deadline { after: CALL_DEADLINE });
        }
        Ok(wire::receive_reply(self.socket.as_fd())?)
    }

    fn done(&mut self, request: &Request) -> Result<(), CallError> {
        match self.call(request, &[])? {
            Reply::Done => Ok(()),
            _ => Err(CallError::Unexpected { expected: "done" }),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A stream of events. The socket is non-blocking, so it fits `tokio::io::unix::AsyncFd`: wait for
/// readable, then call [`Subscription::try_next`] until it gives `None`.
///
/// Subscribe first, then [`Client::list`]: so nothing that happens in between is missed.
#[derive(Debug)]
pub struct Subscription {
    socket: OwnedFd,
}

impl Subscription {
    /// Connects and subscribes.
    pub fn connect(path: impl AsRef<Path>) -> Result<Subscription, CallError> {
        let mut client = Client::connect(path)?;
        client.done(&Request::Subscribe)?;
        Ok(Subscription { socket: client.socket })
    }

    /// The next event if one is there; [`WireError::Closed`] when PID 1 has dropped a subscriber that was too slow.
    pub fn try_next(&mut self) -> Result<Option<Event>, WireError> {
        match wire::receive_event(self.socket.as_fd()) {
            Ok(event) => Ok(Some(event)),
            Err(WireError::WouldBlock) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for the next event at most this long.
    pub fn next_within(&mut self, timeout: Duration) -> Result<Option<Event>, WireError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(Some(event));
            }
            if !wire::wait_readable(&self.socket, deadline)? {
                return Ok(None);
            }
        }
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Subscription {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn connect_to(path: &Path) -> Result<OwnedFd, CallError> {
    packet::connect(path).map_err(|source| CallError::Connect { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RefusalKind, UnitState};

    /// A PID 1 that gives these replies in order and returns what it was asked.
    fn serve(replies: Vec<Reply>) -> (Client, std::thread::JoinHandle<Vec<Request>>) {
        let (ours, theirs) = packet::pair().unwrap();
        let server = std::thread::spawn(move || {
            replies
                .iter()
                .map(|reply| {
                    let (request, _) = wire::receive_request(theirs.as_fd()).unwrap();
                    wire::send_reply(theirs.as_fd(), reply).unwrap();
                    request
                })
                .collect()
        });
        (Client::from_socket(ours), server)
    }

    fn status(name: &str) -> UnitStatus {
        UnitStatus {
            name: UnitName::new(name).unwrap(),
            state: UnitState::Ended,
            since_ms: 0,
            restarts: 0,
            exit: None,
            end: None,
            spec: None,
        }
    }

    #[test]
    fn list_asks_for_the_pages_after_the_last_name() {
        let (mut client, server) = serve(vec![
            Reply::Units { units: vec![status("a"), status("b")], more: true },
            Reply::Units { units: vec![status("c")], more: false },
        ]);
        let names: Vec<String> = client.list().unwrap().into_iter().map(|u| u.name.into()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let asked = server.join().unwrap();
        assert_eq!(asked[1], Request::List { after: Some(UnitName::new("b").unwrap()) });
    }

    #[test]
    fn refusal_is_an_error_and_leaves_the_connection_usable() {
        let refusal = Refused::new(RefusalKind::Unknown, "unit x: not there");
        let (mut client, server) = serve(vec![Reply::Refused(refusal.clone()), Reply::Done]);
        let error = client.stop(&UnitName::new("x").unwrap(), None).unwrap_err();
        assert!(matches!(error, CallError::Refused(found) if found == refusal));
        client.heartbeat().unwrap();
        server.join().unwrap();
    }

    #[test]
    fn client_with_a_broken_answer_stays_unusable() {
        let (mut client, server) = serve(vec![]);
        server.join().unwrap();
        assert!(client.heartbeat().is_err());
        assert!(matches!(client.heartbeat(), Err(CallError::Wire(WireError::Closed))));
    }
}
