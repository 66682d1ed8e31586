//! PID 1 as the agent sees it: units started and stopped, their ends and log lines as a stream.

use holdfast_supervise::{CallError, Client, Event, Logs, Subscription, UnitName, UnitSpec, UnitStatus, WireError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// A connection for requests that is made anew when it broke.
#[derive(Debug)]
pub struct Supervisor {
    path: PathBuf,
    client: Option<Client>,
}

impl Supervisor {
    /// For the socket at `path`; connects at the first call.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), client: None }
    }

    fn with<T>(&mut self, call: impl Fn(&mut Client) -> Result<T, CallError>) -> Result<T, CallError> {
        if self.client.is_none() {
            self.client = Some(Client::connect(&self.path)?);
        }
        let answer = match &mut self.client {
            Some(client) => call(client),
            None => unreachable!("connected above"),
        };
        // A refusal leaves the connection good; anything else spoils it.
        if !matches!(answer, Ok(_) | Err(CallError::Refused(_))) {
            self.client = None;
        }
        answer
    }

    /// Starts a unit; see [`Client::start`].
    ///
    /// # Errors
    /// As the client's.
    pub fn start(&mut self, spec: &UnitSpec, fds: &[BorrowedFd<'_>]) -> Result<u32, CallError> {
        self.with(|c| c.start(spec, fds))
    }

    /// Begins to stop a unit.
    ///
    /// # Errors
    /// As the client's.
    pub fn stop(&mut self, name: &UnitName, deadline: Option<Duration>) -> Result<(), CallError> {
        self.with(|c| c.stop(name, deadline))
    }

    /// Forgets an ended unit.
    ///
    /// # Errors
    /// As the client's.
    pub fn remove(&mut self, name: &UnitName) -> Result<(), CallError> {
        self.with(|c| c.remove(name))
    }

    /// All units.
    ///
    /// # Errors
    /// As the client's.
    pub fn list(&mut self) -> Result<Vec<UnitStatus>, CallError> {
        self.with(Client::list)
    }

    /// Log lines after a cursor.
    ///
    /// # Errors
    /// As the client's.
    pub fn logs(&mut self, after: u64) -> Result<Logs, CallError> {
        self.with(|c| c.logs(after, None, 200))
    }

    /// Says that the agent's loop turns.
    ///
    /// # Errors
    /// As the client's.
    pub fn heartbeat(&mut self) -> Result<(), CallError> {
        self.with(Client::heartbeat)
    }

    /// Orders an orderly reboot.
    ///
    /// # Errors
    /// As the client's.
    pub fn reboot(&mut self, reason: &str) -> Result<(), CallError> {
        self.with(|c| c.reboot(reason))
    }
}

/// Events of PID 1, for `select!`.
#[derive(Debug)]
pub struct Events {
    subscription: Subscription,
    /// A duplicate of the subscription's descriptor, for readiness.
    ready: AsyncFd<OwnedFd>,
}

impl Events {
    /// Subscribes.
    ///
    /// # Errors
    /// When PID 1 cannot be reached.
    pub fn subscribe(path: &Path) -> anyhow::Result<Self> {
        let subscription = Subscription::connect(path)?;
        let ready = holdfast_netkernel::sys::register(subscription.as_fd().try_clone_to_owned()?)?;
        Ok(Self { subscription, ready })
    }

    /// The next event. After an error subscribe again and list the units.
    ///
    /// # Errors
    /// When PID 1 dropped the subscription.
    pub async fn next(&mut self) -> Result<Event, WireError> {
        loop {
            let mut guard = self.ready.readable().await.map_err(|_| WireError::Closed)?;
            match self.subscription.try_next()? {
                Some(event) => return Ok(event),
                None => guard.clear_ready(),
            }
        }
    }
}
