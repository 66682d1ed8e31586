//! The client under tokio: calls that hold up nobody, and events as a stream.
//!
//! [`AsyncClient`] connects at its first call and again after a connection broke, so its owner never deals with
//! connections. A call is not repeated after it was sent: whether a start that got no answer has started is found out by
//! [`AsyncClient::list`].
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_unit::channel::ChannelError;
use holdfast_unit::{AsyncChannel, Channel};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::client::{CALL_DEADLINE, CallError};
use crate::message::{Event, Logs, Reply, Request, UnitStatus};
use crate::wire::{self, WireError};
use crate::{UnitName, UnitSpec};

/// PID 1 for many callers of one thread: all methods take `&self`; calls are made one after the other, in order.
#[derive(Debug)]
pub struct AsyncClient {
    path: PathBuf,
    /// `None` before the first call and after a broken or late answer, which could be mistaken for the next one's.
    channel: Mutex<Option<AsyncChannel>>,
    deadline: Duration,
}

impl AsyncClient {
    /// For the socket at `path` ([`crate::SOCKET_PATH`]). Connects at the first call.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), channel: Mutex::new(None), deadline: CALL_DEADLINE }
    }

    /// The same with another deadline for each call, waiting for earlier calls not counted.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Starts a unit; `fds` become 3, 4, ... in it. Returns its process id.
    ///
    /// # Errors
    /// [`CallError`]; PID 1's reasons are [`CallError::Refused`].
    pub async fn start(&self, spec: &UnitSpec, fds: &[BorrowedFd<'_>]) -> Result<u32, CallError> {
        match self.call(&Request::Start(Box::new(spec.clone())), fds).await? {
            Reply::Started { pid } => Ok(pid),
            _ => Err(CallError::Unexpected { expected: "started" }),
        }
    }

    /// Begins to stop a unit; the end comes as an [`Event::Unit`].
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn stop(&self, name: &UnitName, deadline: Option<Duration>) -> Result<(), CallError> {
        let deadline_ms = deadline.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        self.done(&Request::Stop { name: name.clone(), deadline_ms }).await
    }

    /// Forgets an ended unit and its log lines; one that is being stopped is forgotten when it has ended.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn remove(&self, name: &UnitName) -> Result<(), CallError> {
        self.done(&Request::Remove { name: name.clone() }).await
    }

    /// All units in order of name, with their specs.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list(&self) -> Result<Vec<UnitStatus>, CallError> {
        let mut all: Vec<UnitStatus> = Vec::new();
        loop {
            let after = all.last().map(|unit| unit.name.clone());
            match self.call(&Request::List { after }, &[]).await? {
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
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn logs(&self, after: u64, unit: Option<&UnitName>, max: u32) -> Result<Logs, CallError> {
        match self.call(&Request::Logs { after, unit: unit.cloned(), max }, &[]).await? {
            Reply::Logs(logs) => Ok(logs),
            _ => Err(CallError::Unexpected { expected: "logs" }),
        }
    }

    /// Tells PID 1 that `node` is well.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn heartbeat(&self) -> Result<(), CallError> {
        self.done(&Request::Heartbeat).await
    }

    /// Begins an orderly stop and restart of the machine.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn reboot(&self, reason: impl Into<String>) -> Result<(), CallError> {
        self.done(&Request::Reboot { reason: reason.into() }).await
    }

    /// Begins an orderly stop of the machine.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn power_off(&self, reason: impl Into<String>) -> Result<(), CallError> {
        self.done(&Request::PowerOff { reason: reason.into() }).await
    }

    /// The newest part of this boot's kernel log.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn kernel_log_tail(&self, max_bytes: u32) -> Result<String, CallError> {
        match self.call(&Request::KernelLogTail { max_bytes }, &[]).await? {
            Reply::KernelLog { text } => Ok(text),
            _ => Err(CallError::Unexpected { expected: "kernel-log" }),
        }
    }

    /// One request, one reply, within the deadline; a refusal is an error and leaves the connection good.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, CallError> {
        let text = wire::encode(request)?;
        let mut slot = self.channel.lock().await;
        // Out of its place while the answer is open: a caller that gives up half way takes the connection with it, and
        // the late answer cannot be mistaken for that of the next call.
        let mut channel = match slot.take() {
            Some(channel) => channel,
            None => connect(&self.path)?,
        };
        let exchange = async {
            channel.send_text(&text, fds).await?;
            channel.receive().await
        };
        let answer = match timeout(self.deadline, exchange).await {
            Err(_) => return Err(CallError::Deadline { after: self.deadline }),
            Ok(Err(error)) => return Err(WireError::from(error).into()),
            Ok(Ok(message)) => wire::parse::<Reply>(&message.text)?,
        };
        *slot = Some(channel);
        match answer {
            Reply::Refused(refused) => Err(refused.into()),
            reply => Ok(reply),
        }
    }

    async fn done(&self, request: &Request) -> Result<(), CallError> {
        match self.call(request, &[]).await? {
            Reply::Done => Ok(()),
            _ => Err(CallError::Unexpected { expected: "done" }),
        }
    }
}

/// PID 1's events. Subscribe first, then [`AsyncClient::list`]: so nothing that happens in between is missed.
#[derive(Debug)]
pub struct AsyncSubscription {
    channel: AsyncChannel,
}

impl AsyncSubscription {
    /// Connects and subscribes, within [`CALL_DEADLINE`].
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn connect(path: &Path) -> Result<Self, CallError> {
        let mut channel = connect(path)?;
        let exchange = async {
            channel.send_text(&wire::encode(&Request::Subscribe)?, &[]).await?;
            Ok::<_, WireError>(channel.receive().await?)
        };
        let message =
            timeout(CALL_DEADLINE, exchange).await.map_err(|_| CallError::Deadline { after: CALL_DEADLINE })??;
        match wire::parse::<Reply>(&message.text)? {
            Reply::Done => Ok(Self { channel }),
            Reply::Refused(refused) => Err(refused.into()),
            _ => Err(CallError::Unexpected { expected: "done" }),
        }
    }

    /// The next event. Dropped half way, none is lost.
    ///
    /// # Errors
    /// [`WireError::Closed`] when PID 1 has dropped a subscriber that was too slow: subscribe again and list the units.
    pub async fn next(&mut self) -> Result<Event, WireError> {
        wire::parse(&self.channel.receive().await?.text)
    }
}

fn connect(path: &Path) -> Result<AsyncChannel, CallError> {
    Channel::connect(path).and_then(AsyncChannel::new).map_err(|source| CallError::Connect {
        path: path.to_owned(),
        source: match source {
            ChannelError::Socket(error) => error,
            other => std::io::Error::other(other),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RefusalKind, Refused};
    use holdfast_unit::packet;
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::time::Instant;

    /// A PID 1 whose connections each answer what `answers` has for them and then close.
    fn serve(path: &Path, answers: Vec<Vec<Option<Reply>>>) -> std::thread::JoinHandle<Vec<Request>> {
        let listener = packet::listen(path, 4).unwrap();
        std::thread::spawn(move || {
            let mut asked = Vec::new();
            let mut open: Vec<OwnedFd> = Vec::new();
            for connection in answers {
                let socket = loop {
                    let deadline = Instant::now() + Duration::from_secs(10);
                    assert!(packet::wait(listener.as_fd(), false, deadline).unwrap(), "a client connects");
                    if let Some(socket) = packet::accept(listener.as_fd()).unwrap() {
                        break socket;
                    }
                };
                let mut silent = false;
                for answer in connection {
                    let deadline = Instant::now() + Duration::from_secs(10);
                    assert!(packet::wait(socket.as_fd(), false, deadline).unwrap(), "a request comes");
                    asked.push(wire::receive_request(socket.as_fd()).unwrap().0);
                    match answer {
                        Some(reply) => wire::send_reply(socket.as_fd(), &reply).unwrap(),
                        None => silent = true,
                    }
                }
                if silent {
                    open.push(socket);
                }
            }
            asked
        })
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_broken_connection_is_replaced_at_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server = serve(&path, vec![vec![Some(Reply::Done)], vec![Some(Reply::Done)]]);
        runtime().block_on(async {
            let client = AsyncClient::new(&path);
            client.heartbeat().await.unwrap();
            // The server has closed; the call that finds out fails, the one after it connects.
            assert!(matches!(client.heartbeat().await, Err(CallError::Wire(WireError::Closed))));
            client.heartbeat().await.unwrap();
        });
        assert_eq!(server.join().unwrap().len(), 2);
    }

    #[test]
    fn a_late_answer_is_never_taken_for_that_of_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let logs = Reply::Logs(Logs { lines: vec![], next: 7, more: false });
        let server = serve(&path, vec![vec![None], vec![Some(logs)]]);
        runtime().block_on(async {
            let client = AsyncClient::new(&path).with_deadline(Duration::from_millis(200));
            assert!(matches!(client.heartbeat().await, Err(CallError::Deadline { .. })));
            let client = client.with_deadline(Duration::from_secs(10));
            assert_eq!(client.logs(0, None, 10).await.unwrap().next, 7);
        });
        server.join().unwrap();
    }

    #[test]
    fn a_call_that_is_given_up_leaves_no_answer_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server = serve(&path, vec![vec![None], vec![Some(Reply::Done)]]);
        runtime().block_on(async {
            let client = AsyncClient::new(&path);
            assert!(timeout(Duration::from_millis(200), client.heartbeat()).await.is_err());
            client.reboot("update").await.unwrap();
        });
        assert_eq!(server.join().unwrap().len(), 2);
    }

    #[test]
    fn a_refusal_is_an_error_and_leaves_the_connection_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let refusal = Refused::new(RefusalKind::Unknown, "unit x: unknown");
        let server = serve(&path, vec![vec![Some(Reply::Refused(refusal.clone())), Some(Reply::Done)]]);
        runtime().block_on(async {
            let client = AsyncClient::new(&path);
            let error = client.stop(&UnitName::new("x").unwrap(), None).await.unwrap_err();
            assert!(matches!(error, CallError::Refused(found) if found == refusal));
            client.heartbeat().await.unwrap();
        });
        server.join().unwrap();
    }

    #[test]
    fn calls_at_the_same_time_are_answered_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let page = |next| Some(Reply::Logs(Logs { lines: vec![], next, more: false }));
        let server = serve(&path, vec![vec![page(1), page(2)]]);
        runtime().block_on(async {
            let client = AsyncClient::new(&path);
            let (first, second) = tokio::join!(client.logs(0, None, 1), client.logs(1, None, 1));
            assert_eq!((first.unwrap().next, second.unwrap().next), (1, 2));
        });
        server.join().unwrap();
    }

    #[test]
    fn events_follow_the_subscription_until_pid_1_closes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server = serve(&path, vec![vec![Some(Reply::Done)]]);
        runtime().block_on(async {
            let mut events = AsyncSubscription::connect(&path).await.unwrap();
            assert!(matches!(events.next().await, Err(WireError::Closed)));
        });
        assert_eq!(server.join().unwrap(), [Request::Subscribe]);
    }

    #[test]
    fn nobody_listening_is_named_with_the_socket() {
        let error = runtime().block_on(AsyncClient::new("/nowhere/s").heartbeat()).unwrap_err().to_string();
        assert!(error.contains("/nowhere/s"), "{error}");
    }
}
