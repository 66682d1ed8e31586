//! The engine's driver for all network items.

use crate::error::NetlinkError;
use crate::netlink::Netlink;
use crate::route::KernelRoute;
use crate::rtnl::Rtnl;
use crate::sockets::{Prepared, prepare};
use crate::{discover, sysctl, tap};
use holdfast_engine::{Action, Driver, Graph};
use holdfast_plan::item::{Hop, ItemKey, NetItem, Route, Service};
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
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
    rtnl: Rtnl,
    nft: Netlink,
    resolver: PathBuf,
    /// The services, for whoever needs them between runs.
    pub services: S,
}

impl<S: Services> NetDriver<S> {
    /// For the network namespace of the calling thread, inside a tokio runtime. `resolver` is where `resolv.conf` is
    /// written.
    pub fn new(services: S, resolver: impl Into<PathBuf>) -> Result<Self, NetlinkError> {
        Ok(Self { rtnl: Rtnl::new()?, nft: Netlink::netfilter()?, resolver: resolver.into(), services })
    }

    /// What exists now of what this program makes: to be adopted by a fresh engine.
    pub async fn discover(&self, intended: &Graph<NetItem>) -> Result<Graph<NetItem>, NetlinkError> {
        let mut graph = discover::discover(&self.rtnl, &self.nft, &self.resolver, intended).await?;
        graph.extend(self.services.running().await.into_iter().map(NetItem::Service));
        Ok(graph)
    }

    /// Items that are believed to exist and do not: to be told to the engine (`mark_lost`) after a change that the
    /// [`crate::Monitor`] saw. Looks at what is there now, so an event that is late does no harm.
    pub async fn lost(&self, believed: &Graph<NetItem>) -> Result<Vec<ItemKey>, NetlinkError> {
        let found = self.discover(believed).await?;
        let missing = believed
            .iter()
            .filter(|(key, _)| !matches!(key, ItemKey::Sysctl(_) | ItemKey::Resolver) && !found.contains(key));
        Ok(missing.map(|(key, _)| key.clone()).collect())
    }

    /// The rtnetlink connection, for reading links and counters.
    pub fn netlink(&self) -> &Rtnl {
        &self.rtnl
    }

    async fn finish_link(&self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        let link = self.rtnl.link(name).await?;
        if !link.ours {
            self.rtnl.mark_ours(&link).await?;
        }
        self.rtnl.set_mtu(&link, mtu).await?;
        self.rtnl.set_up(&link, true).await
    }

    /// True when an interface of that name and kind is there; a conflict when it is of another kind.
    async fn has_link(&self, name: &str, kind: &str) -> Result<bool, NetlinkError> {
        match self.rtnl.find_link(name).await? {
            None => Ok(false),
            Some(l) if l.kind == kind => Ok(true),
            Some(l) => Err(NetlinkError::Conflict {
                what: format!("{kind} {name}"),
                found: format!("an interface of kind {:?} has the name", l.kind),
            }),
        }
    }

    async fn remove_link(&self, name: &str) -> Result<(), NetlinkError> {
        match self.rtnl.find_link(name).await? {
            Some(link) => self.rtnl.delete_link(&link).await,
            None => Ok(()),
        }
    }

    async fn kernel_route(&self, route: &Route) -> Result<KernelRoute, NetlinkError> {
        let mut kernel = KernelRoute {
            table: route.table,
            destination: route.destination,
            metric: route.metric,
            output: None,
            router: None,
            source: None,
            unreachable: false,
            ours: true,
        };
        match &route.hop {
            Hop::Unreachable => kernel.unreachable = true,
            Hop::Gateway { link, source, router } => {
                kernel.output = Some(self.rtnl.link(link).await?.index);
                kernel.source = Some(source.address);
                kernel.router = Some(*router);
            }
            Hop::Link { link, source } => {
                kernel.output = Some(self.rtnl.link(link).await?.index);
                kernel.source = Some(source.address);
            }
        }
        Ok(kernel)
    }

    /// Makes or changes: for most items the same steps.
    async fn ensure(&self, item: &NetItem) -> Result<(), DriverError> {
        match item {
            NetItem::Port(i) => {
                let link = self.rtnl.link(&i.name).await?;
                self.rtnl.set_mtu(&link, i.mtu).await?;
                self.rtnl.set_up(&link, true).await?;
            }
            NetItem::Bridge(i) => {
                if !self.has_link(&i.name, "bridge").await? {
                    self.rtnl.add_bridge(&i.name, i.mac).await?;
                }
                let link = self.rtnl.link(&i.name).await?;
                self.rtnl.set_mac(&link, i.mac).await?;
                self.finish_link(&i.name, i.mtu).await?;
            }
            NetItem::Vlan(i) => {
                if !self.has_link(&i.name, "vlan").await? {
                    let parent = self.rtnl.link(&i.parent).await?.index;
                    self.rtnl.add_vlan(&i.name, parent, i.id).await?;
                }
                self.finish_link(&i.name, i.mtu).await?;
            }
            NetItem::Tap(i) => {
                tap::create(&self.rtnl, &i.name, i.owner_uid, i.multi_queue).await?;
                self.finish_link(&i.name, i.mtu).await?;
            }
            NetItem::BridgePort(i) => {
                let bridge = self.rtnl.link(&i.bridge).await?;
                let port = self.rtnl.link(&i.port).await?;
                self.rtnl.set_master(&port, Some(bridge.index)).await?;
                self.rtnl.set_isolated(&port, i.isolated).await?;
            }
            NetItem::Address(i) => {
                let link = self.rtnl.link(&i.link).await?;
                self.rtnl.add_address(&link, i.prefix).await?;
            }
            NetItem::Route(i) => {
                let route = self.kernel_route(i).await?;
                self.rtnl.add_route(&route).await?;
            }
            NetItem::PolicyRule(i) => self.rtnl.add_rule(i).await?,
            NetItem::Sysctl(i) => sysctl::write(&i.path, &i.value)?,
            NetItem::Nftables(i) => self.nft.replace_table(i)?,
            NetItem::Resolver(i) => write_file(&self.resolver, &i.text())?,
            // Handled by the callers: its steps differ.
            NetItem::Service(_) => {}
        }
        Ok(())
    }
}

impl<S: Services> Driver<NetItem> for NetDriver<S> {
    type Error = DriverError;

    async fn run(&self, actions: &[Action<NetItem>]) -> Vec<Result<(), DriverError>> {
        let mut results = Vec::with_capacity(actions.len());
        for action in actions {
            results.push(match action {
                Action::Create(item) => self.create(item).await,
                Action::Modify { old, new } => self.modify(old, new).await,
                Action::Delete(item) => self.delete(item).await,
            });
        }
        results
    }
}

impl<S: Services> NetDriver<S> {
    async fn create(&self, item: &NetItem) -> Result<(), DriverError> {
        if let NetItem::Service(service) = item {
            let prepared = prepare(&self.rtnl, service).await?;
            let started = self.services.start(service, prepared).await;
            return started.map_err(DriverError::Service);
        }
        self.ensure(item).await
    }

    async fn modify(&self, old: &NetItem, new: &NetItem) -> Result<(), DriverError> {
        if let (NetItem::Service(old), NetItem::Service(new)) = (old, new) {
            let updated = self.services.update(old, new).await;
            return updated.map_err(DriverError::Service);
        }
        self.ensure(new).await
    }

    async fn delete(&self, item: &NetItem) -> Result<(), DriverError> {
        match item {
            NetItem::Port(i) => {
                if let Some(link) = self.rtnl.find_link(&i.name).await? {
                    self.rtnl.set_up(&link, false).await?;
                }
            }
            NetItem::Bridge(i) => self.remove_link(&i.name).await?,
            NetItem::Vlan(i) => self.remove_link(&i.name).await?,
            NetItem::Tap(i) => self.remove_link(&i.name).await?,
            NetItem::BridgePort(i) => {
                if let Some(link) = self.rtnl.find_link(&i.port).await? {
                    self.rtnl.set_master(&link, None).await?;
                }
            }
            NetItem::Address(i) => {
                if let Some(link) = self.rtnl.find_link(&i.link).await? {
                    self.rtnl.delete_address(&link, i.prefix).await?;
                }
            }
            NetItem::Route(i) => {
                // With its interface gone, so is the route.
                let route = match self.kernel_route(i).await {
                    Err(NetlinkError::NotFound { .. }) => return Ok(()),
                    other => other?,
                };
                let by_key = KernelRoute { router: None, source: None, ..route };
                self.rtnl.delete_route(&by_key).await?;
            }
            NetItem::PolicyRule(i) => self.rtnl.delete_rule(i).await?,
            // A variable of an interface goes with it; a global one keeps its value, which is the safe one.
            NetItem::Sysctl(_) => {}
            NetItem::Nftables(i) => self.nft.delete_table(i.family, &i.name)?,
            NetItem::Resolver(_) => write_file(&self.resolver, "")?,
            NetItem::Service(i) => {
                let stopped = self.services.stop(i).await;
                stopped.map_err(DriverError::Service)?;
            }
        }
        Ok(())
    }
}

/// Replaces a file in one step, so that a reader never sees half of it.
fn write_file(path: &Path, text: &str) -> Result<(), DriverError> {
    let attempt = || -> std::io::Result<()> {
        let fresh = path.with_extension("new");
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&fresh, path)
    };
    attempt().map_err(|source| DriverError::File { path: path.to_owned(), source })
}
