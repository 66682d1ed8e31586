//! `netsvc` processes as units of PID 1, for the network driver.

use crate::fetching::jobs::memfd;
use crate::supervisor::Supervisor;
use holdfast_model::contract::network::{ClientService, ClientState, Lease, NetworkService, NetworkV4, Reply, Request};
use holdfast_model::net::Prefix;
use holdfast_netkernel::{Prepared, Services};
use holdfast_plan::kinds::service::{Service, ServiceKind};
use holdfast_supervise::{CallError, Limits, RefusalKind, Restart, Sandbox, UnitName, UnitSpec, UnitState};
use holdfast_unit::{AsyncChannel, packet};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// uid of `netsvc` units.
pub const NETSVC_UID: u32 = 1100;
/// Connections that may wait at a service's control socket.
const CONTROL_BACKLOG: u8 = 4;
/// Prefix of their unit names.
const PREFIX: &str = "netsvc-";
/// Longest wait for an answer of a service.
const ANSWER: Duration = Duration::from_secs(3);
/// Longest wait for a service to end.
const END: Duration = Duration::from_secs(12);

/// A DHCP client's news.
#[derive(Debug, Clone)]
pub struct LeaseEvent {
    /// The port's interface.
    pub link: String,
    /// State of the client.
    pub state: ClientState,
    /// The lease it holds.
    pub lease: Option<Lease>,
}

/// What a unit's tag keeps, so that a restarted agent knows what runs.
#[derive(Debug, Serialize, Deserialize)]
struct Tag {
    link: String,
    /// Address of a network's bridge; absent for a DHCP client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<Prefix>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uplink: Option<String>,
}

/// Runs services.
pub struct Units {
    supervisor: Rc<RefCell<Supervisor>>,
    control: PathBuf,
    leases: mpsc::Sender<LeaseEvent>,
    listeners: RefCell<BTreeMap<String, JoinHandle<()>>>,
    ends: RefCell<Ends>,
}

impl std::fmt::Debug for Units {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Units").finish_non_exhaustive()
    }
}

impl Units {
    /// With control sockets in `control`; leases of DHCP clients go to `leases`.
    #[must_use]
    pub fn new(supervisor: Rc<RefCell<Supervisor>>, control: PathBuf, leases: mpsc::Sender<LeaseEvent>) -> Self {
        Self { supervisor, control, leases, listeners: RefCell::default(), ends: RefCell::default() }
    }

    /// Tells these services to end, without waiting: those that hang then do so side by side, and [`Services::stop`] of each waits
    /// for what is left of one [`END`] in all. PID 1 takes the agent for dead when its turn is not over in a minute.
    pub fn begin_to_stop<'a>(&self, services: impl IntoIterator<Item = &'a Service>) {
        for service in services {
            // What cannot be told now is told by `stop`, which also says why.
            let _ = self.tell_to_end(service);
        }
    }

    /// Until when its end is waited for; `None` when it does not run.
    fn tell_to_end(&self, service: &Service) -> Result<Option<Instant>, String> {
        self.forget(&service.name);
        let unit = Self::unit(&service.name)?;
        match self.supervisor.borrow_mut().stop(&unit, None) {
            Err(CallError::Refused(r)) if r.kind == RefusalKind::Unknown => Ok(None),
            Err(e) => Err(format!("service {}: {e}", service.name)),
            Ok(()) => Ok(Some(self.ends.borrow_mut().deadline(&service.name, Instant::now()))),
        }
    }

    fn unit(service: &str) -> Result<UnitName, String> {
        UnitName::new(format!("{PREFIX}{service}")).map_err(|e| e.to_string())
    }

    fn socket(&self, service: &str) -> PathBuf {
        self.control.join(format!("{PREFIX}{service}.sock"))
    }

    /// One question to a running service.
    ///
    /// # Errors
    /// When it does not run or does not answer in time.
    pub async fn ask(&self, service: &str, request: &Request) -> anyhow::Result<Reply> {
        Ok(AsyncChannel::connect(&self.socket(service))?.ask(request, ANSWER).await?)
    }

    /// Follows a DHCP client for as long as it is wanted, through restarts of either side.
    fn listen(&self, service: &Service) {
        let (path, link, leases) = (self.socket(&service.name), service.link.clone(), self.leases.clone());
        let task = tokio::task::spawn_local(async move {
            loop {
                if let Ok(mut channel) = AsyncChannel::connect(&path)
                    && channel.send(&Request::Subscribe, &[]).await.is_ok()
                {
                    while let Ok(reply) = channel.receive().await.and_then(|message| message.parse::<Reply>()) {
                        if let Reply::Lease { state, lease } = reply
                            && leases.send(LeaseEvent { link: link.clone(), state, lease }).await.is_err()
                        {
                            return;
                        }
                    }
                }
                sleep(Duration::from_millis(300)).await;
            }
        });
        if let Some(old) = self.listeners.borrow_mut().insert(service.name.clone(), task) {
            old.abort();
        }
    }

    fn forget(&self, service: &str) {
        if let Some(task) = self.listeners.borrow_mut().remove(service) {
            task.abort();
        }
    }
}

impl Services for Units {
    async fn start(&self, service: &Service, prepared: Prepared) -> Result<(), String> {
        let unit = Self::unit(&service.name)?;
        let text = |e: &dyn std::fmt::Display| format!("service {}: {e}", service.name);
        let control = packet::listen(&self.socket(&service.name), CONTROL_BACKLOG).map_err(|e| text(&e))?;
        let document = holdfast_model::contract::write(&prepared.config).map_err(|e| text(&e))?;
        let config = memfd("netsvc", &document).map_err(|e| text(&e))?;
        let mut fds = vec![config.as_fd(), control.as_fd()];
        fds.extend(prepared.sockets.iter().map(AsFd::as_fd));

        let mut spec = UnitSpec::new(unit.clone(), "/bin/netsvc", NETSVC_UID);
        spec.args = vec!["--config-fd".into(), "3".into()];
        spec.limits = Limits { memory_max_bytes: Some(32 << 20), cpu_weight: None, pids_max: Some(8) };
        spec.restart = Restart::OnFailure;
        // Its sockets belong to the host's network; of its own it needs none.
        spec.sandbox = Sandbox { new_net: true, new_mount: true, new_ipc: true, ..Sandbox::default() };
        let tag = match &service.kind {
            ServiceKind::Network { address, uplink, .. } => {
                Tag { link: service.link.clone(), address: Some(*address), uplink: uplink.clone() }
            }
            ServiceKind::DhcpClient(_) => Tag { link: service.link.clone(), address: None, uplink: None },
        };
        spec.tag = serde_json::to_string(&tag).map_err(|e| text(&e))?;
        let started = self.supervisor.borrow_mut().start(&spec, &fds);
        if let Err(CallError::Refused(refusal)) = &started
            && refusal.kind == RefusalKind::Busy
        {
            // Left from before a restart of the agent with other sockets: the new one takes its place.
            self.stop(service).await?;
            self.supervisor.borrow_mut().start(&spec, &fds).map_err(|e| text(&e))?;
        } else {
            started.map_err(|e| text(&e))?;
        }
        if matches!(service.kind, ServiceKind::DhcpClient(_)) {
            self.listen(service);
        }
        Ok(())
    }

    async fn update(&self, _old: &Service, new: &Service) -> Result<(), String> {
        let request = match &new.kind {
            ServiceKind::Network { service, .. } => Request::Update { service: service.clone() },
            ServiceKind::DhcpClient(client) => Request::SetHostName { host_name: client.host_name.clone() },
        };
        let text = |e: String| format!("service {}: {e}", new.name);
        match self.ask(&new.name, &request).await {
            Ok(Reply::Ok) => Ok(()),
            Ok(Reply::Error { text: why }) => Err(text(why)),
            Ok(other) => Err(text(format!("expected ok, found {other:?}"))),
            Err(e) => Err(text(format!("{e:#}"))),
        }
    }

    async fn stop(&self, service: &Service) -> Result<(), String> {
        let unit = Self::unit(&service.name)?;
        let text = |e: &dyn std::fmt::Display| format!("service {}: {e}", service.name);
        let Some(deadline) = self.tell_to_end(service)? else {
            return Ok(());
        };
        self.ends.borrow_mut().waited_for(&service.name);
        loop {
            let list = self.supervisor.borrow_mut().list().map_err(|e| text(&e))?;
            let state = list.iter().find(|u| u.name == unit).map(|u| u.state);
            if matches!(state, None | Some(UnitState::Ended)) {
                break;
            }
            if Instant::now() > deadline {
                return Err(text(&"did not end in time"));
            }
            sleep(Duration::from_millis(20)).await;
        }
        let _ = self.supervisor.borrow_mut().remove(&unit);
        Ok(())
    }

    async fn running(&self) -> Vec<Service> {
        let Ok(list) = self.supervisor.borrow_mut().list() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for unit in list.iter().filter(|u| u.state != UnitState::Ended) {
            let (Some(name), Some(spec)) = (unit.name.as_str().strip_prefix(PREFIX), &unit.spec) else {
                continue;
            };
            let Ok(tag) = serde_json::from_str::<Tag>(&spec.tag) else {
                continue;
            };
            let kind = match tag.address {
                // Empty tables differ from any intended ones: the service gets an update, which is what a restarted agent owes it.
                Some(address) => ServiceKind::Network { address, uplink: tag.uplink, service: empty_tables() },
                None => {
                    ServiceKind::DhcpClient(ClientService { interface: tag.link.clone(), host_name: String::new() })
                }
            };
            let service = Service { name: name.to_owned(), link: tag.link, kind };
            if matches!(service.kind, ServiceKind::DhcpClient(_))
                && !self.listeners.borrow().contains_key(&service.name)
            {
                self.listen(&service);
            }
            found.push(service);
        }
        found
    }
}

/// Until when the ends of services are waited for, each counted from the first time it was told to end.
#[derive(Debug, Default)]
struct Ends(BTreeMap<String, Instant>);

impl Ends {
    fn deadline(&mut self, service: &str, now: Instant) -> Instant {
        *self.0.entry(service.to_owned()).or_insert(now + END)
    }

    /// The next time it is told to end counts anew.
    fn waited_for(&mut self, service: &str) {
        self.0.remove(service);
    }
}

fn empty_tables() -> NetworkService {
    NetworkService {
        v4: NetworkV4 {
            gateway: std::net::Ipv4Addr::UNSPECIFIED,
            prefix_length: 0,
            router: None,
            pool: None,
            routes: vec![],
        },
        assignments: vec![],
        domain: String::new(),
        mtu: None,
        lease_seconds: 0,
        names: vec![],
        upstreams: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_hang_together_are_waited_for_together_and_each_time_anew() {
        let (mut ends, begin) = (Ends::default(), Instant::now());
        for service in ["a", "b", "c"] {
            assert_eq!(ends.deadline(service, begin), begin + END);
        }
        // The first was waited for to its end; the others have no more time than it had.
        ends.waited_for("a");
        let later = begin + END;
        assert_eq!(ends.deadline("b", later), begin + END);
        assert_eq!(ends.deadline("c", later), begin + END);
        assert_eq!(ends.deadline("a", later), later + END, "another try of the engine");
    }
}
