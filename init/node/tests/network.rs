//! The network part on the agent's kernel against the kernel of this machine, in a network namespace of the test's thread. There is
//! no PID 1 here: services do not start, and an app's network is there all the same. Without root the test says so and does nothing.

use holdfast_engine::Graph;
use holdfast_model::Uuid;
use holdfast_model::app::App;
use holdfast_model::desired::Desired;
use holdfast_model::net::{Addresses, AppInterface, InstanceKind, NetworkInstance, Subnet};
use holdfast_model::observed::Observed;
use holdfast_netkernel::sys::unshare_network;
use holdfast_netkernel::{Rtnl, link::Link};
use holdfast_node::kernel::{Kernel, Means};
use holdfast_node::part::{Event, Part, Turn};
use holdfast_node::parts::app::facts::{Guest, Guests, HeldVolumes};
use holdfast_node::parts::controller::facts::Stored;
use holdfast_node::parts::network::NetworkPart;
use holdfast_node::parts::network::facts::Nics;
use holdfast_node::parts::network::host::Host as _;
use holdfast_node::parts::network::kept::Kept;
use holdfast_node::parts::network::real;
use holdfast_node::world::real::{DataFolder, KernelClock};
use holdfast_supervise::AsyncClient;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

const WEB: Uuid = Uuid::from_u128(11);
const LAN: Uuid = Uuid::from_u128(1);

/// The other parts, as far as the network part sees them.
struct Others {
    running: bool,
}

impl Part for Others {
    fn name(&self) -> &'static str {
        "others"
    }
    fn event(&mut self, _: &Event, _: &mut Turn<'_>) {}
    fn turn(&mut self, turn: &mut Turn<'_>) {
        turn.facts.publish(Stored { found: true });
        turn.facts.publish(Guests([(WEB, Guest { uid: 2000, running: self.running })].into()));
        turn.facts.publish(HeldVolumes::default());
    }
    fn observe(&self, _: &mut Observed) {}
}

/// One app in a network without uplink.
fn config() -> Desired {
    let subnet = Subnet { network: [10, 9, 0, 0].into(), prefix_length: 24, gateway: None, range: None };
    let lan = NetworkInstance {
        id: LAN,
        version: "1".into(),
        name: "lan".into(),
        kind: InstanceKind::Local,
        activate: true,
        uplinks: vec![],
        v4: Some(subnet),
        v6: None,
        dns: vec![],
        domain: String::new(),
        names: vec![],
        mtu: None,
    };
    let interface =
        AppInterface { name: "eth0".into(), instance: LAN, fixed: Addresses::default(), mac: None, rules: vec![] };
    let web = App {
        id: WEB,
        version: "1".into(),
        name: "web".into(),
        activate: true,
        vcpus: 1,
        memory_bytes: 1 << 27,
        volumes: vec![],
        interfaces: vec![interface],
        user_data: String::new(),
        restart_counter: 0,
        purge_counter: 0,
        start_delay_seconds: 0,
        disable_logs: false,
    };
    Desired { instances: vec![lan], apps: vec![web], ..Desired::default() }
}

/// Runs an agent in `folder` until its files are written and `done` says that the app's NICs are as they shall be.
async fn agent(folder: &Path, desired: Desired, running: bool, done: impl Fn(&Nics) -> bool) {
    let init = Rc::new(AsyncClient::new(folder.join("no-pid-1")));
    let (host, changes) = real::Kernel::open(init, folder, folder.to_owned()).unwrap();
    let part = NetworkPart::over(Rc::new(host), None, Kept::default(), true);
    let means = Means {
        clock: Rc::new(KernelClock),
        files: Rc::new(DataFolder::new(folder)),
        say: Box::new(|line| println!("{}: {}", line.severity, line.text)),
    };
    let (mut kernel, _observed) = Kernel::new(vec![Box::new(part), Box::new(Others { running })], means);
    spawn_local(changes.watch(kernel.sender()));
    let _ = kernel.sender().send(Event::Config(Rc::new(desired)));
    let written = || ["status/network.json", "hosts"].iter().all(|file| folder.join(file).exists());
    let reached = kernel.run(|facts| written() && facts.get::<Nics>().is_some_and(&done));
    timeout(Duration::from_secs(20), reached).await.expect("the network comes to be as it is wanted");
}

async fn ours() -> Vec<(String, u32)> {
    let links = Rtnl::new().unwrap().links().await.unwrap();
    let mut list: Vec<(String, u32)> = links.into_iter().filter(|l: &Link| l.ours).map(|l| (l.name, l.index)).collect();
    list.sort();
    list
}

#[test]
fn a_restarted_agent_takes_over_the_network_of_a_running_machine_and_removes_it_when_it_has_ended() {
    if let Err(e) = unshare_network() {
        println!("not run: a network namespace needs root ({e})");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("status")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ready = |nics: &Nics| nics.0.get(&WEB).is_some_and(Result::is_ok);
    let run = |desired: Desired, running, done: &dyn Fn(&Nics) -> bool| {
        LocalSet::new().block_on(&runtime, agent(folder.path(), desired, running, done));
        LocalSet::new().block_on(&runtime, ours())
    };

    let first = run(config(), false, &ready);
    assert_eq!(first.iter().filter(|(name, _)| name.starts_with("br-") || name.starts_with("tap-")).count(), 2);

    // Another agent finds everything: the same interfaces, by their numbers.
    assert_eq!(run(config(), true, &ready), first);

    // Without the app in the config: its machine ended, and so does its network.
    let init = Rc::new(AsyncClient::new(folder.path().join("no-pid-1")));
    LocalSet::new().block_on(&runtime, async {
        let last = agent(folder.path(), Desired::default(), false, |_| false);
        // It has nothing to wait for but the kernel.
        let gone = async {
            while !ours().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = last => {}
            () = gone => {}
        }
        let (host, _changes) = real::Kernel::open(init, folder.path(), folder.path().to_owned()).unwrap();
        let found: Graph<_> = host.discover(Graph::new()).await.unwrap();
        let left = found.iter().filter(|(key, _)| key.to_string().contains("tap-") || key.to_string().contains("br-"));
        assert_eq!(left.count(), 0);
    });
}
