//! The host's network of a real machine, and the tasks that tell the part of changes.

use super::host::{Changed, Host, Interface, LeaseNews, Sight};
use super::services::Units;
use crate::part::Event as AgentEvent;
use crate::world::{Local, blocking};
use holdfast_engine::{Action, Driver, Graph};
use holdfast_model::contract::network::{Lease, Request};
use holdfast_netkernel::cards::physical_links;
use holdfast_netkernel::{Event, Monitor, NetDriver, NetlinkError};
use holdfast_plan::{ItemKey, NetItem, names};
use holdfast_supervise::AsyncClient;
use holdfast_unit::durable;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Leases that may wait to be taken in.
const LEASES: usize = 64;
/// Changes told at once.
const CHANGES: usize = 256;
/// After a change, how long others are waited for, to be told with it.
const GATHER: Duration = Duration::from_millis(20);
/// Before a monitor that broke is replaced.
const AGAIN: Duration = Duration::from_secs(1);

/// The kernel's network cannot be reached.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Requests.
    #[error("kernel's network: {0}")]
    Requests(#[from] NetlinkError),
    /// Changes.
    #[error("monitor of the kernel's network: {0}")]
    Changes(io::Error),
}

/// The kernel's network of this process.
#[derive(Clone)]
pub struct Kernel {
    driver: Rc<NetDriver<Units>>,
    hosts: PathBuf,
}

impl Kernel {
    /// Connects, inside a tokio runtime. `names` is the folder of `resolv.conf` and `hosts`, `control` that of control sockets.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(init: Rc<AsyncClient>, names: &Path, control: PathBuf) -> Result<(Self, Changes), OpenError> {
        let (sender, leases) = mpsc::channel(LEASES);
        let driver = NetDriver::new(Units::new(init, control, sender), names.join("resolv.conf"))?;
        let monitor = Monitor::new().map_err(OpenError::Changes)?;
        Ok((Self { driver: Rc::new(driver), hosts: names.join("hosts") }, Changes { monitor, leases }))
    }
}

impl Host for Kernel {
    fn look(&self) -> Local<Result<Sight, String>> {
        let driver = self.driver.clone();
        Box::pin(async move {
            let look = async {
                let cards = physical_links(driver.netlink()).await?;
                let all = driver.netlink().links().await?;
                Ok::<_, NetlinkError>((cards, all))
            };
            let (cards, all) = look.await.map_err(|e| e.to_string())?;
            let interface = |l: &holdfast_netkernel::link::Link| (l.name.clone(), interface(l));
            Ok(Sight { cards, interfaces: all.iter().map(interface).collect() })
        })
    }

    fn leases(&self) -> Local<BTreeMap<String, Lease>> {
        let driver = self.driver.clone();
        Box::pin(async move { driver.services.leases().await })
    }

    fn discover(&self, intended: Graph<NetItem>) -> Local<Result<Graph<NetItem>, String>> {
        let driver = self.driver.clone();
        Box::pin(async move { driver.discover(&intended).await.map_err(|e| e.to_string()) })
    }

    fn lost(&self, believed: Graph<NetItem>) -> Local<Result<Vec<ItemKey>, String>> {
        let driver = self.driver.clone();
        Box::pin(async move { driver.lost(&believed).await.map_err(|e| e.to_string()) })
    }

    fn run(&self, actions: Vec<Action<NetItem>>) -> Local<Vec<Result<(), String>>> {
        let driver = self.driver.clone();
        Box::pin(async move {
            let results = driver.run(&actions).await;
            results.into_iter().map(|result| result.map_err(|e| e.to_string())).collect()
        })
    }

    fn tell_carrier(&self, interface: String, up: bool) -> Local<()> {
        let driver = self.driver.clone();
        Box::pin(async move {
            let _ = driver.services.ask(&names::dhcp_client(&interface), &Request::Carrier { up }).await;
        })
    }

    fn write_hosts(&self, text: String) -> Local<Result<(), String>> {
        let path = self.hosts.clone();
        Box::pin(async move {
            let replace = move || durable::replace(&path, text.as_bytes(), 0o644).map_err(io::Error::other);
            blocking(replace).await.map_err(|e| e.to_string())
        })
    }
}

/// How an interface is seen.
#[must_use]
pub fn interface(link: &holdfast_netkernel::link::Link) -> Interface {
    Interface { mac: link.mac, up: link.up, carrier: link.carrier, physical: link.kind.is_empty() }
}

/// What changes by itself.
pub struct Changes {
    monitor: Monitor,
    leases: mpsc::Receiver<LeaseNews>,
}

impl Changes {
    /// Tells the agent's kernel of changes for as long as it runs.
    pub async fn watch(self, events: mpsc::UnboundedSender<AgentEvent>) {
        let Self { monitor, mut leases } = self;
        let to = events.clone();
        tokio::task::spawn_local(async move {
            while let Some(news) = leases.recv().await {
                if to.send(AgentEvent::News(Rc::new(news))).is_err() {
                    return;
                }
            }
        });
        let mut monitor = Some(monitor);
        loop {
            let batch = match &mut monitor {
                Some(open) => gather(open).await,
                None => {
                    sleep(AGAIN).await;
                    // What happened until now was not seen.
                    Monitor::new().map(|open| monitor = Some(open)).map(|()| vec![Event::Overrun])
                }
            };
            let batch = match batch {
                Ok(batch) => batch,
                Err(e) => {
                    eprintln!("monitor of the kernel's network: {e}; it is opened again");
                    monitor = None;
                    continue;
                }
            };
            if events.send(AgentEvent::News(Rc::new(Changed(batch)))).is_err() {
                return;
            }
        }
    }
}

/// A change, with those that follow it at once.
async fn gather(monitor: &mut Monitor) -> io::Result<Vec<Event>> {
    let mut batch = vec![monitor.next().await?];
    sleep(GATHER).await;
    while batch.len() < CHANGES
        && let Ok(event) = timeout(Duration::ZERO, monitor.next()).await
    {
        batch.push(event?);
    }
    Ok(batch)
}
