//! The engine's driver for all network items.

use crate::error::NetlinkError;
use crate::kinds::{self, Sight};
use crate::netlink::Netlink;
use crate::nft::commit::commit;
use crate::rtnl::Rtnl;
use crate::sockets::Prepared;
use holdfast_engine::{Action, Driver, Graph, Item};
use holdfast_plan::kinds::{Batch, ItemKey, NetItem, Service};
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// Why an item failed.
#[derive(Debug, Error)]
pub enum DriverError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// A service could not be started, changed or stopped.
    #[error("{0}")]
    Service(String),
    /// The kernel refused a change of the firewall.
    #[error("{0}")]
    Firewall(String),
    /// A file could not be written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// System error.
        source: std::io::Error,
    },
}

/// Runs `netsvc` processes. The agent implements it through the supervisor of PID 1.
///
/// All methods are idempotent and return within a deadline of their own. Several may be under way at once.
pub trait Services {
    /// Starts a service with its sockets and configuration (descriptor numbers: [`crate::sockets`]).
    fn start(&self, service: &Service, prepared: Prepared) -> impl Future<Output = Result<(), String>>;

    /// Gives a running service new tables (`Request::Update` on its control socket).
    fn update(&self, old: &Service, new: &Service) -> impl Future<Output = Result<(), String>>;

    /// Stops a service; one that does not run is no error.
    fn stop(&self, service: &Service) -> impl Future<Output = Result<(), String>>;

    /// Services that run now, for example from before a restart of the agent. What is given back differently than it is
    /// intended gets an update or is started anew.
    fn running(&self) -> impl Future<Output = Vec<Service>>;
}

/// Drives all network items.
#[derive(Debug)]
pub struct NetDriver<S> {
    pub(crate) rtnl: Rtnl,
    nft: Arc<Mutex<Netlink>>,
    pub(crate) resolver: PathBuf,
    /// The services, for whoever needs them between runs.
    pub services: S,
}

impl<S: Services> NetDriver<S> {
    /// For the network namespace of the calling thread, inside a tokio runtime. `resolver` is where `resolv.conf` is
    /// written.
    pub fn new(services: S, resolver: impl Into<PathBuf>) -> Result<Self, NetlinkError> {
        Ok(Self {
            rtnl: Rtnl::new()?,
            nft: Arc::new(Mutex::new(Netlink::netfilter()?)),
            resolver: resolver.into(),
            services,
        })
    }

    /// What exists now of what this program makes: to be adopted by a fresh engine. `intended` says where to look for what
    /// carries no mark.
    pub async fn discover(&self, intended: &Graph<NetItem>) -> Result<Graph<NetItem>, NetlinkError> {
        kinds::found(&Sight::new(self, intended).await?).await
    }

    /// Items that are believed to exist and do not: to be told to the engine (`mark_lost`) after a change that the
    /// [`crate::Monitor`] saw. Looks at what exists now, so an event that is late does no harm.
    pub async fn lost(&self, believed: &Graph<NetItem>) -> Result<Vec<ItemKey>, NetlinkError> {
        let found = self.discover(believed).await?;
        let readable = |item: &NetItem| !item.external() && !matches!(item, NetItem::Sysctl(_) | NetItem::Resolver(_));
        let missing = believed.iter().filter(|(key, item)| readable(item) && !found.contains(key));
        Ok(missing.map(|(key, _)| key.clone()).collect())
    }

    /// The socket of nftables, for reading.
    pub fn nft(&self) -> MutexGuard<'_, Netlink> {
        self.nft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rtnetlink connection, for reading links and counters.
    pub fn netlink(&self) -> &Rtnl {
        &self.rtnl
    }
}

impl<S: Services> Driver<NetItem> for NetDriver<S> {
    type Error = DriverError;

    async fn run(&self, actions: &[Action<NetItem>]) -> Vec<Result<(), DriverError>> {
        if actions.iter().all(|a| a.item().batch() == Some(Batch::Nftables)) {
            return commit(&self.nft, actions).await;
        }
        let mut results = Vec::with_capacity(actions.len());
        for action in actions {
            results.push(match action {
                Action::Create(item) => kinds::ensure(self, None, item).await,
                Action::Modify { old, new } => kinds::ensure(self, Some(old), new).await,
                Action::Delete(item) => kinds::remove(self, item).await,
            });
        }
        results
    }
}
