//! The part's turn on a bench, over a kernel in memory.

mod memory;

use self::memory::{Memory, cards};
use super::*;
use crate::parts::app::decide::Readiness;
use crate::parts::app::facts::Guest;
use crate::testing::Bench;
use holdfast_model::app::App;
use holdfast_model::desired::Desired;
use holdfast_model::net::{
    Addresses, Addressing4, Addressing6, AppInterface, InstanceKind, NetworkInstance, PortConfigSource, Static, Subnet,
    Tried,
};
use holdfast_netkernel::Event as Change;
use holdfast_netkernel::link::Link;
use holdfast_plan::last_resort;
use uuid::Uuid;

const WEB: Uuid = Uuid::from_u128(11);
const DB: Uuid = Uuid::from_u128(12);
const LAN: Uuid = Uuid::from_u128(1);
const LAB: Uuid = Uuid::from_u128(2);

fn app(id: Uuid, instance: Uuid) -> App {
    let interface =
        AppInterface { name: "eth0".into(), instance, fixed: Addresses::default(), mac: None, rules: vec![] };
    App {
        id,
        version: "1".into(),
        name: format!("app-{}", id.as_u128()),
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
    }
}

fn instance(id: Uuid, third: u8) -> NetworkInstance {
    NetworkInstance {
        id,
        version: "1".into(),
        name: format!("net-{third}"),
        kind: InstanceKind::Local,
        activate: true,
        uplinks: vec!["eth0".into()],
        v4: Some(Subnet { network: [10, 9, third, 0].into(), prefix_length: 24, gateway: None, range: None }),
        v6: None,
        dns: vec![],
        domain: String::new(),
        names: vec![],
        mtu: None,
    }
}

fn config(apps: &[(Uuid, Uuid)]) -> Desired {
    let mut desired = last_resort(&cards()[..1]);
    desired.adapters[0].v6 = Addressing6::None;
    desired.instances = vec![instance(LAN, 1), instance(LAB, 2)];
    desired.apps = apps.iter().map(|(id, instance)| app(*id, *instance)).collect();
    desired
}

fn lease() -> Lease {
    Lease {
        address: [192, 0, 2, 10].into(),
        prefix_length: 24,
        routers: vec![[192, 0, 2, 1].into()],
        dns: vec![[192, 0, 2, 1].into()],
        domain: String::new(),
        ntp: vec![],
        mtu: None,
        routes: vec![],
        server: [192, 0, 2, 1].into(),
        lease_seconds: 600,
    }
}

/// A device on a bench.
struct Device {
    host: Rc<Memory>,
    part: NetworkPart,
    bench: Bench,
}

impl Device {
    /// An agent that has just started.
    fn started(host: Rc<Memory>) -> Self {
        let part = NetworkPart::over(host.clone(), None, Kept::default(), true);
        let mut device = Self { host, part, bench: Bench::default() };
        device.settle();
        device
    }

    /// One that runs this config, with PID 1's list of virtual machines known and a lease.
    fn with(host: Rc<Memory>, desired: Desired, running: &[Uuid]) -> Self {
        let mut device = Self::started(host);
        device.guests(&desired, running);
        device.bench.config(&mut device.part, desired);
        device.news(LeaseNews { interface: "eth0".into(), lease: Some(lease()) });
        device
    }

    fn settle(&mut self) {
        self.bench.settle(&mut self.part);
    }

    fn guests(&mut self, desired: &Desired, running: &[Uuid]) {
        let known = desired.apps.iter().map(|app| app.id).chain(running.iter().copied());
        let guest = |id: Uuid| (id, Guest { uid: 2000 + id.as_u128() as u32, running: running.contains(&id) });
        self.bench.facts.publish(Guests(known.map(guest).collect()));
        self.bench.facts.publish(HeldVolumes::default());
    }

    fn config(&mut self, desired: Desired, running: &[Uuid]) {
        self.guests(&desired, running);
        self.bench.config(&mut self.part, desired);
    }

    fn news<T: 'static>(&mut self, news: T) {
        self.bench.event(&mut self.part, &Event::News(Rc::new(news)));
    }

    fn fact<T: Clone + Default + 'static>(&self) -> T {
        self.bench.facts.get::<T>().cloned().unwrap_or_default()
    }

    fn nics(&self, app: Uuid) -> Result<usize, Readiness> {
        self.fact::<Nics>().0[&app].clone().map(|nics| nics.len())
    }

    fn observed(&self) -> Observed {
        let mut observed = Observed::default();
        self.part.observe(&mut observed);
        observed
    }

    fn poll(&mut self, seconds: u64, result: Result<(), String>) {
        self.bench.now = Duration::from_secs(seconds);
        self.news(Polled(vec![Tried { adapter: "eth0".into(), result }]));
    }
}

#[test]
fn an_app_gets_its_nic_and_the_controller_its_uplink() {
    let device = Device::with(Rc::default(), config(&[(WEB, LAN)]), &[]);
    assert_eq!(device.nics(WEB), Ok(1));
    let uplinks = device.fact::<Uplinks>().0;
    assert_eq!(uplinks.len(), 1);
    assert_eq!((uplinks[0].adapter.as_str(), uplinks[0].source), ("eth0", Some([192, 0, 2, 10].into())));
    let observed = device.observed();
    assert!(observed.instances.iter().all(|i| i.activated), "{:?}", observed.instances);
    assert_eq!((observed.ports.len(), observed.ports[0].up, observed.ports[0].mac), (1, true, [2, 0, 0, 0, 0, 1]));
    assert_eq!(observed.port_configs.list[observed.port_configs.current].source, PortConfigSource::Controller);
    assert!(device.bench.files.contains_key(std::path::Path::new(FILE)), "addresses of apps are kept");
}

#[test]
fn a_restarted_agent_touches_nothing_before_it_knows_config_machines_and_leases_and_then_changes_nothing() {
    let host: Rc<Memory> = Rc::default();
    let first = Device::with(host.clone(), config(&[(WEB, LAN)]), &[WEB]);
    host.leases.borrow_mut().insert("eth0".into(), lease());
    let kept = first.part.state.kept();
    host.forget();
    let part = NetworkPart::over(host.clone(), None, kept, true);
    let mut device = Device { host: host.clone(), part, bench: Bench::default() };
    device.settle();
    device.bench.facts.publish(Stored { found: true });
    device.settle();
    let desired = config(&[(WEB, LAN)]);
    device.bench.config(&mut device.part, desired.clone());
    assert_eq!(host.did("e"), 0, "{:?}", host.did.borrow());
    device.guests(&desired, &[WEB]);
    device.settle();
    assert_eq!(device.nics(WEB), Ok(1));
    let did = host.did.borrow();
    let changed = did.iter().filter(|did| !did.starts_with("hosts")).count();
    assert_eq!(changed, 0, "{did:?}");
}

#[test]
fn a_device_without_config_calls_its_controller_over_every_port() {
    let mut device = Device::started(Rc::default());
    device.guests(&Desired::default(), &[]);
    device.settle();
    assert_eq!(device.host.did("service dhcp"), 0);
    device.bench.facts.publish(Stored { found: false });
    device.settle();
    assert_eq!(device.host.did("create service dhcp-eth"), 2);
    // A controller part that never says whether there is a config does not keep the device off the network.
    let mut device = Device::started(Rc::default());
    device.guests(&Desired::default(), &[]);
    device.bench.at(&mut device.part, 21);
    assert_eq!(device.host.did("create service dhcp-eth"), 2);
}

#[test]
fn recovery_calls_the_controller_without_a_config_and_keeps_nothing_outside_of_the_vault() {
    let host: Rc<Memory> = Rc::default();
    let part = NetworkPart::over(host.clone(), None, Kept::default(), false);
    let mut device = Device { host: host.clone(), part, bench: Bench::default() };
    device.settle();
    device.news(LeaseNews { interface: "eth0".into(), lease: Some(lease()) });
    assert_eq!((host.did("create service dhcp-eth"), device.fact::<Uplinks>().0.len()), (2, 1));
    assert!(device.bench.files.is_empty());
}

#[test]
fn a_service_that_never_answers_holds_up_only_its_own_network() {
    let host: Rc<Memory> = Rc::default();
    *host.hangs.borrow_mut() = Some("create service net-");
    let mut device = Device::with(host.clone(), config(&[(WEB, LAN), (DB, LAB)]), &[]);
    // What an app needs of its network is there, and the device's own network too.
    assert_eq!((device.nics(WEB), device.nics(DB)), (Ok(1), Ok(1)));
    assert!(!device.fact::<Uplinks>().0.is_empty());
    assert!(device.observed().instances.iter().all(|i| !i.activated));
    *host.hangs.borrow_mut() = None;
    let mut more = config(&[(WEB, LAN), (DB, LAB)]);
    more.instances.push(instance(Uuid::from_u128(3), 3));
    device.config(more, &[]);
    let observed = device.observed();
    assert_eq!(observed.instances.iter().filter(|i| i.activated).count(), 1, "the third is made meanwhile");
}

#[test]
fn what_a_running_machine_stands_on_stays_until_it_has_ended() {
    let mut device = Device::with(Rc::default(), config(&[(WEB, LAN)]), &[]);
    device.config(config(&[(WEB, LAN)]), &[WEB]);
    device.host.forget();
    let mut without = config(&[]);
    without.instances.clear();
    device.config(without.clone(), &[WEB]);
    assert_eq!(device.host.did("interface tap-"), 0, "{:?}", device.host.did.borrow());
    device.config(without, &[]);
    assert_eq!(device.host.did("delete interface tap-"), 1);
    assert_eq!(device.host.did("delete interface br-"), 2);
}

#[test]
fn a_tap_that_has_to_change_stays_while_its_vm_runs_and_its_app_is_ready_for_the_next_start() {
    let mut device = Device::with(Rc::default(), config(&[(WEB, LAN)]), &[]);
    device.config(config(&[(WEB, LAN)]), &[WEB]);
    device.host.forget();
    let mut more = config(&[(WEB, LAN)]);
    more.apps[0].vcpus = 4;
    device.config(more.clone(), &[WEB]);
    assert_eq!((device.nics(WEB), device.host.did("interface tap-")), (Ok(1), 0), "the change is known, and waits");
    device.guests(&more, &[]);
    device.settle();
    assert_eq!((device.nics(WEB), device.host.did("create interface tap-")), (Ok(1), 1));
}

#[test]
fn an_app_with_a_fault_keeps_its_network_and_the_firewall_of_it() {
    let mut device = Device::with(Rc::default(), config(&[(WEB, LAN)]), &[]);
    device.config(config(&[(WEB, LAN)]), &[WEB]);
    device.host.forget();
    // As the config is read: an app with a fault is not among its apps.
    device.config(config(&[]), &[WEB]);
    assert_eq!(device.host.did("e"), 0, "{:?}", device.host.did.borrow());
}

#[test]
fn an_app_that_is_not_known_to_the_app_part_gets_no_tap_of_another_user() {
    let mut device = Device::with(Rc::default(), config(&[]), &[]);
    device.bench.config(&mut device.part, config(&[(WEB, LAN)]));
    assert_eq!((device.host.did("create interface tap-"), device.fact::<Nics>()), (0, Nics::default()));
    device.guests(&config(&[(WEB, LAN)]), &[]);
    device.settle();
    assert_eq!(device.nics(WEB), Ok(1));
}

#[test]
fn ports_that_do_not_lead_to_the_controller_are_given_up_and_said_on_each_port() {
    let mut desired = config(&[(WEB, LAN)]);
    let fixed = Static { address: [198, 51, 100, 7].into(), prefix_length: 24, gateway: None };
    desired.adapters[0].v4 = Addressing4::Static(fixed);
    desired.properties.fallback_any_ethernet = true;
    let mut device = Device::with(Rc::default(), desired, &[]);
    for seconds in [10, 20, 31] {
        device.poll(seconds, Err("timeout".into()));
    }
    let observed = device.observed();
    let current = &observed.port_configs.list[observed.port_configs.current];
    assert_eq!(current.source, PortConfigSource::LastResort);
    assert!(observed.ports.iter().all(|p| p.troubles[0].text.contains("no contact with the controller")));
    assert_eq!((device.host.did("create service dhcp-"), device.nics(WEB)), (2, Ok(1)), "its app keeps its network");
    // What leads there now is not the config.
    device.poll(40, Ok(()));
    assert_eq!(device.part.state.kept().worked, None);
}

fn link(name: &str, carrier: bool, kind: &str) -> Link {
    Link {
        index: 2,
        name: name.into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        up: true,
        carrier,
        ethernet: true,
        master: None,
        lower: None,
        kind: kind.into(),
        vlan_id: None,
        tun_owner: None,
        tun_multi_queue: false,
        isolated: false,
        ours: !kind.is_empty(),
        counters: Default::default(),
    }
}

#[test]
fn a_cable_that_comes_is_told_to_its_dhcp_client() {
    let mut device = Device::with(Rc::default(), config(&[(WEB, LAN)]), &[]);
    device.news(Changed(vec![Change::Link(link("eth0", false, ""))]));
    assert_eq!(device.host.did("carrier of eth0: false"), 1);
    assert!(device.fact::<Uplinks>().0.is_empty(), "no way to the controller without a cable");
    device.news(Changed(vec![Change::Link(link("eth0", true, ""))]));
    assert_eq!((device.host.did("carrier of eth0: true"), device.fact::<Uplinks>().0.len()), (1, 1));
}

#[test]
fn a_bridge_that_others_removed_is_created_again() {
    let mut device = Device::with(Rc::default(), config(&[(WEB, LAN)]), &[]);
    let bridge = device.observed().instances[0].bridge.clone();
    device.host.forget();
    device.host.exists.borrow_mut().remove(&ItemKey::Link(bridge.clone()));
    device.news(Changed(vec![Change::LinkGone(link(&bridge, false, "bridge"))]));
    assert_eq!(device.host.did(&format!("create interface {bridge}")), 1);
}

#[test]
fn a_kernel_that_cannot_be_read_is_asked_again_and_then_made_as_if_nothing_existed() {
    let host: Rc<Memory> = Rc::default();
    *host.unreadable.borrow_mut() = 100;
    let mut device = Device::with(host.clone(), config(&[]), &[]);
    assert_eq!((host.did("create"), device.bench.said("cannot be read: EAGAIN")), (0, 1));
    device.bench.at(&mut device.part, 2);
    device.bench.at(&mut device.part, 4);
    assert!(host.did("create service dhcp-eth0") == 1, "{:?}", host.did.borrow());
}

#[test]
fn an_adapter_with_a_fault_is_reported_though_it_is_not_planned() {
    let mut desired = config(&[]);
    desired.ports[0].interface = "eth9".into();
    let device = Device::with(Rc::default(), desired, &[]);
    let observed = device.observed();
    assert_eq!((observed.ports.len(), observed.ports[0].name.as_str()), (1, "eth0"));
    assert!(observed.ports[0].troubles[0].text.contains("eth9"));
    assert_eq!(device.bench.said("eth9"), 1);
}
