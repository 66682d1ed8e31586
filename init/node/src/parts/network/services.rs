//! `netsvc` processes as units of PID 1, for the network driver.

use super::host::LeaseNews;
use crate::fetching::jobs::memfd;
use holdfast_model::contract::network::{ClientService, Lease, NetworkService, NetworkV4, Reply, Request};
use holdfast_model::net::Prefix;
use holdfast_netkernel::{Prepared, Services};
use holdfast_plan::kinds::service::{Service, ServiceKind};
use holdfast_supervise::{
    AsyncClient, CallError, Limits, RefusalKind, Restart, Sandbox, UnitName, UnitSpec, UnitState,
};
use holdfast_unit::channel::ChannelError;
use holdfast_unit::{AsyncChannel, packet};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// uid of `netsvc` units.
pub const NETSVC_UID: u32 = 1100;
/// Prefix of their unit names.
const PREFIX: &str = "netsvc-";
/// Longest wait for an answer of a service.
const ANSWER: Duration = Duration::from_secs(3);
/// Longest wait for a service to end.
const END: Duration = Duration::from_secs(12);
/// Between two looks at whether it has ended.
const LOOK: Duration = Duration::from_millis(50);
/// Before a lost DHCP client is followed again.
const AGAIN: Duration = Duration::from_millis(300);

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
#[derive(Debug)]
pub struct Units {
    init: Rc<AsyncClient>,
    control: PathBuf,
    leases: mpsc::Sender<LeaseNews>,
    listeners: RefCell<BTreeMap<String, JoinHandle<()>>>,
}

impl Units {
    /// With control sockets in `control`; leases of DHCP clients go to `leases`.
    #[must_use]
    pub fn new(init: Rc<AsyncClient>, control: PathBuf, leases: mpsc::Sender<LeaseNews>) -> Self {
        Self { init, control, leases, listeners: RefCell::default() }
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
    pub async fn ask(&self, service: &str, request: &Request) -> Result<Reply, ChannelError> {
        AsyncChannel::connect(&self.socket(service))?.ask(request, ANSWER).await
    }

    /// The leases that running DHCP clients hold, by interface.
    pub async fn leases(&self) -> BTreeMap<String, Lease> {
        let mut asked = Vec::new();
        for service in self.running().await {
            if matches!(service.kind, ServiceKind::DhcpClient(_)) {
                let socket = self.socket(&service.name);
                // Side by side: those that do not answer cost one deadline in all.
                asked.push(tokio::task::spawn_local(async move {
                    let reply = AsyncChannel::connect(&socket).ok()?.ask(&Request::Query, ANSWER).await.ok()?;
                    match reply {
                        Reply::Lease { lease: Some(lease), .. } => Some((service.link, lease)),
                        _ => None,
                    }
                }));
            }
        }
        let mut leases = BTreeMap::new();
        for answer in asked {
            leases.extend(answer.await.ok().flatten());
        }
        leases
    }

    /// Follows a DHCP client for as long as it is wanted, through restarts of either side.
    fn listen(&self, service: &Service) {
        let (path, link, leases) = (self.socket(&service.name), service.link.clone(), self.leases.clone());
        let task = tokio::task::spawn_local(async move {
            while follow(&path, &link, &leases).await.is_err() {
                sleep(AGAIN).await;
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

    async fn is_alive(&self, unit: &UnitName) -> Result<bool, CallError> {
        let list = self.init.list().await?;
        Ok(list.iter().any(|u| u.name == *unit && u.state != UnitState::Ended))
    }
}

/// Follows a client until the connection breaks; `Ok` when nobody wants to know any more.
async fn follow(path: &Path, interface: &str, leases: &mpsc::Sender<LeaseNews>) -> Result<(), ChannelError> {
    let mut channel = AsyncChannel::connect(path)?;
    channel.send(&Request::Subscribe, &[]).await?;
    loop {
        if let Reply::Lease { lease, .. } = channel.receive().await?.parse()?
            && leases.send(LeaseNews { interface: interface.to_owned(), lease }).await.is_err()
        {
            return Ok(());
        }
    }
}

fn spec(service: &Service, unit: UnitName) -> Result<UnitSpec, serde_json::Error> {
    let mut spec = UnitSpec::new(unit, "/bin/netsvc", NETSVC_UID);
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
    spec.tag = serde_json::to_string(&tag)?;
    Ok(spec)
}

impl Services for Units {
    async fn start(&self, service: &Service, prepared: Prepared) -> Result<(), String> {
        let unit = Self::unit(&service.name)?;
        let text = |e: &dyn Display| format!("service {}: {e}", service.name);
        let socket = self.socket(&service.name);
        let control = packet::listen(&socket, 4).map_err(|e| text(&format!("{}: {e}", socket.display())))?;
        let document = holdfast_model::contract::write(&prepared.config).map_err(|e| text(&e))?;
        let config = memfd("netsvc", &document).map_err(|e| text(&e))?;
        let mut fds = vec![config.as_fd(), control.as_fd()];
        fds.extend(prepared.sockets.iter().map(AsFd::as_fd));
        let spec = spec(service, unit).map_err(|e| text(&e))?;
        match self.init.start(&spec, &fds).await {
            // Left from before a restart of the agent with other sockets: the new one takes its place.
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Busy => {
                self.stop(service).await?;
                // The old one's end does not take the new one's socket away: it is bound already.
                self.init.start(&spec, &fds).await.map_err(|e| text(&e))?;
            }
            started => drop(started.map_err(|e| text(&e))?),
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
            Err(e) => Err(text(e.to_string())),
        }
    }

    async fn stop(&self, service: &Service) -> Result<(), String> {
        let unit = Self::unit(&service.name)?;
        let text = |e: &dyn Display| format!("service {}: {e}", service.name);
        self.forget(&service.name);
        match self.init.stop(&unit, None).await {
            Err(CallError::Refused(r)) if r.kind == RefusalKind::Unknown => return Ok(()),
            other => other.map_err(|e| text(&e))?,
        }
        let deadline = Instant::now() + END;
        while self.is_alive(&unit).await.map_err(|e| text(&e))? {
            if Instant::now() > deadline {
                return Err(text(&format!("told to end, and still runs after {} s", END.as_secs())));
            }
            sleep(LOOK).await;
        }
        let _ = self.init.remove(&unit).await;
        Ok(())
    }

    async fn running(&self) -> Vec<Service> {
        let Ok(list) = self.init.list().await else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for unit in list.iter().filter(|u| u.state != UnitState::Ended) {
            let (Some(name), Some(spec)) = (unit.name.as_str().strip_prefix(PREFIX), &unit.spec) else {
                continue;
            };
            let Some(service) = read(name, &spec.tag) else { continue };
            let listened = self.listeners.borrow().contains_key(&service.name);
            if matches!(service.kind, ServiceKind::DhcpClient(_)) && !listened {
                self.listen(&service);
            }
            found.push(service);
        }
        found
    }
}

/// What a unit's tag says of the service.
fn read(name: &str, tag: &str) -> Option<Service> {
    let Tag { link, address, uplink } = serde_json::from_str(tag).ok()?;
    let kind = match address {
        // Empty tables differ from any intended ones: the service gets an update, which is what a restarted agent owes it.
        Some(address) => ServiceKind::Network { address, uplink, service: empty_tables() },
        None => ServiceKind::DhcpClient(ClientService { interface: link.clone(), host_name: String::new() }),
    };
    Some(Service { name: name.to_owned(), link, kind })
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

    fn network() -> Service {
        let address = "10.1.0.1/24".parse().unwrap();
        let kind = ServiceKind::Network { address, uplink: Some("eth0".into()), service: empty_tables() };
        Service { name: "net-1".into(), link: "br-1".into(), kind }
    }

    #[test]
    fn a_restarted_agent_knows_a_service_by_its_tag() {
        let client = ClientService { interface: "eth0".into(), host_name: String::new() };
        let client = Service { name: "dhcp-eth0".into(), link: "eth0".into(), kind: ServiceKind::DhcpClient(client) };
        for service in [network(), client] {
            let spec = spec(&service, Units::unit(&service.name).unwrap()).unwrap();
            assert_eq!(spec.name.as_str().strip_prefix(PREFIX), Some(service.name.as_str()));
            assert_eq!(read(&service.name, &spec.tag), Some(service));
        }
        assert_eq!(read("net-1", "something of another version"), None);
    }

    #[test]
    fn a_service_has_no_network_of_its_own_and_no_way_to_grow() {
        let spec = spec(&network(), Units::unit("net-1").unwrap()).unwrap();
        assert!(spec.sandbox.new_net && spec.uid == NETSVC_UID);
        assert_eq!((spec.limits.memory_max_bytes, spec.limits.pids_max), (Some(32 << 20), Some(8)));
    }
}
