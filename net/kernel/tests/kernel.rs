//! The actuators against the real kernel, each test in a network namespace of its own thread, and against the `nft` and
//! `ip` programs as independent witnesses. Without root (or a witness) a test says so and does nothing.

use holdfast_engine::{Backoff, Engine, Graph, drive};
use holdfast_links::tap::{attach, mtu};
use holdfast_model::net::Prefix;
use holdfast_netkernel::route::KernelRoute;
use holdfast_netkernel::{Event, Monitor, NetDriver, PROTOCOL, Prepared, Rtnl, Services, sys, sysctl, tap};
use holdfast_plan::ItemKey;
use holdfast_plan::firewall::skeleton::TAPS;
use holdfast_plan::firewall::{Family, Owner, Part, Rule, Verdict};
use holdfast_plan::kinds::firewall_element::{FirewallElement, Target};
use holdfast_plan::kinds::{Bridge, BridgePort, FirewallChain, FirewallSkeleton, NetItem, PolicyRule, Service, Tap};
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Instant;
use uuid::Uuid;

/// Moves this test's thread into a fresh namespace.
fn namespace() -> bool {
    match sys::unshare_network() {
        Ok(()) => true,
        Err(e) => {
            println!("not run: a network namespace needs root ({e})");
            false
        }
    }
}

fn witness(program: &str, args: &[&str]) -> Option<String> {
    match Command::new(program).args(args).output() {
        Err(e) => {
            println!("not run: {program} is not installed ({e})");
            None
        }
        Ok(o) => {
            assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
            Some(String::from_utf8(o.stdout).expect("text"))
        }
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("prefix")
}

async fn dummy(rtnl: &Rtnl, name: &str) {
    rtnl.add_veth(name, &format!("{name}p"), None, None).await.expect("veth");
    for n in [name.to_owned(), format!("{name}p")] {
        let link = rtnl.link(&n).await.expect("link");
        rtnl.set_up(&link, true).await.expect("up");
    }
}

#[tokio::test]
async fn links_are_made_read_back_and_removed() {
    if !namespace() {
        return;
    }
    let n = Rtnl::new().expect("netlink");
    let mac = [2, 0, 0, 0, 0, 9];
    n.add_bridge("br-t", mac).await.expect("bridge");
    tap::create(&n, "tap-t", 2003, false).await.expect("tap");
    tap::create(&n, "tap-t", 2003, false).await.expect("again is no error");
    assert!(tap::create(&n, "tap-t", 2004, false).await.is_err());
    dummy(&n, "v0").await;
    let v0 = n.link("v0").await.expect("v0");
    // Not every machine that runs the tests has VLANs.
    let vlan = n.add_vlan("v0.7", v0.index, 7).await;
    if vlan.as_ref().is_err_and(|e| e.errno() == Some(libc::EOPNOTSUPP)) {
        println!("not run: this kernel has no VLAN interfaces");
    } else {
        vlan.expect("vlan");
        assert_eq!(n.link("v0.7").await.expect("vlan").vlan_id, Some(7));
    }
    let bridge = n.link("br-t").await.expect("bridge");
    let tap_link = n.link("tap-t").await.expect("tap");
    n.mark_ours(&bridge).await.expect("mark");
    n.set_mtu(&bridge, 1400).await.expect("mtu");
    n.set_up(&bridge, true).await.expect("up");
    n.set_master(&tap_link, Some(bridge.index)).await.expect("enslave");
    n.set_isolated(&tap_link, true).await.expect("isolate");
    let bridge = n.link("br-t").await.expect("bridge");
    assert_eq!((bridge.mac, bridge.mtu, bridge.up, bridge.ours), (mac, 1400, true, true));
    let tap_link = n.link("tap-t").await.expect("tap");
    assert_eq!(tap_link.tun_owner, Some(2003));
    assert_eq!((tap_link.master, tap_link.isolated), (Some(bridge.index), true));
    drop(attach("tap-t", 1).expect("attach"));
    assert_eq!(mtu("tap-t").expect("mtu"), 1500);
    let error = attach("br-t", 1).expect_err("no tap").to_string();
    assert_eq!(error, "tap br-t: an interface of another kind has the name");
    let error = attach("tap-u", 1).expect_err("absent").to_string();
    assert_eq!(error, "interface tap-u does not exist");
    if let Some(text) = witness("ip", &["-d", "link", "show", "tap-t"]) {
        assert!(text.contains("isolated on") && text.contains("vnet_hdr on persist on user 2003"), "{text}");
    }
    for name in ["br-t", "tap-t"] {
        let link = n.link(name).await.expect("link");
        n.delete_link(&link).await.expect("delete");
        n.delete_link(&link).await.expect("again is no error");
    }
    let error = n.link("br-t").await.expect_err("gone").to_string();
    assert!(error.starts_with("interface br-t does not exist; present are lo, "), "{error}");
}

#[tokio::test]
async fn taps_of_both_kinds_are_made_and_told_apart() {
    if !namespace() {
        return;
    }
    let n = Rtnl::new().expect("netlink");
    let driver = NetDriver::new(NoServices, "/nonexistent").expect("driver");
    for (name, multi_queue, most) in [("tap-1", false, 1), ("tap-4", true, 4)] {
        for _ in 0..2 {
            tap::create(&n, name, 2003, multi_queue).await.expect("a second time is no error");
        }
        let link = n.link(name).await.expect("tap");
        assert_eq!((link.tun_owner, link.tun_multi_queue), (Some(2003), multi_queue), "{name}");
        let queues = attach(name, most).expect("attach");
        assert_eq!(queues.len(), usize::from(most));
        tap::create(&n, name, 2003, multi_queue).await.expect("a VM is not disturbed");
        n.mark_ours(&link).await.expect("mark");
        if let Some(text) = witness("ip", &["-d", "link", "show", name]) {
            assert_eq!(text.contains("multi_queue numqueues 4"), multi_queue, "{text}");
        }
    }
    let error = tap::create(&n, "tap-1", 2003, true).await.expect_err("other kind").to_string();
    assert!(error.contains("tap tap-1") && error.contains("one with one queue has the name"), "{error}");
    let error = tap::create(&n, "tap-4", 2003, false).await.expect_err("other kind").to_string();
    assert!(error.contains("tap tap-4") && error.contains("one with several queues has the name"), "{error}");
    let found = driver.discover(&Graph::new()).await.expect("discover");
    for (name, multi_queue) in [("tap-1", false), ("tap-4", true)] {
        let Some(NetItem::Tap(tap)) = found.get(&ItemKey::Link(name.to_owned())) else {
            panic!("{name}: not in {found:?}")
        };
        assert_eq!(tap.multi_queue, multi_queue, "{name}");
    }
}

/// No services: the networks here need none.
struct NoServices;

impl Services for NoServices {
    async fn start(&self, service: &Service, _: Prepared) -> Result<(), String> {
        Err(format!("{} is not to be started", service.name))
    }

    async fn update(&self, _: &Service, new: &Service) -> Result<(), String> {
        Err(format!("{} is not to be changed", new.name))
    }

    async fn stop(&self, service: &Service) -> Result<(), String> {
        Err(format!("{} is not to be stopped", service.name))
    }

    async fn running(&self) -> Vec<Service> {
        Vec::new()
    }
}

/// A tap in a bridge behind the firewall.
fn bridged_tap(multi_queue: bool) -> Graph<NetItem> {
    let mut graph = Graph::new();
    graph.extend([Family::Inet, Family::Bridge].map(|family| NetItem::from(FirewallSkeleton::of(family))));
    let drop = vec![Rule::new(vec![], Verdict::Drop)];
    let chain = FirewallChain::new(Family::Bridge, "from-t", drop, Owner::default());
    graph.extend([
        NetItem::from(FirewallElement {
            family: Family::Bridge,
            map: TAPS,
            key: vec![Part::Interface("tap-t".into())],
            target: Target::Goto(chain.name.clone()),
            owner: Owner::default(),
        }),
        NetItem::from(chain),
        NetItem::Bridge(Bridge { name: "br-t".into(), mac: [2, 0, 0, 0, 0, 9], mtu: 1400 }),
        NetItem::Tap(Tap { name: "tap-t".into(), app: Uuid::nil(), owner_uid: 2003, multi_queue, mtu: 1400 }),
        NetItem::BridgePort(BridgePort { port: "tap-t".into(), bridge: "br-t".into(), isolated: true, filtered: true }),
    ]);
    graph
}

#[tokio::test]
async fn a_tap_changes_its_kind_by_recreation_also_after_a_restart_of_the_agent() {
    if !namespace() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let driver = NetDriver::new(NoServices, folder.path().join("resolv.conf")).expect("driver");
    let n = Rtnl::new().expect("netlink");
    let mut before = 0;
    for queues in [1, 4, 4, 1] {
        // A fresh engine each time, as after a restart: what is there is found in the kernel.
        let mut engine = Engine::new(Backoff::default());
        let intended = bridged_tap(queues > 1);
        engine.adopt(driver.discover(&intended).await.expect("discover"));
        engine.set_intended(intended);
        let report = drive(&mut engine, &driver, Instant::now()).await;
        assert!(report.failed == 0 && engine.is_settled(), "{queues}: {:?}", engine.states());

        let bridge = n.link("br-t").await.expect("bridge");
        let tap = n.link("tap-t").await.expect("tap");
        assert_eq!((tap.tun_multi_queue, tap.tun_owner, tap.mtu), (queues > 1, Some(2003), 1400));
        assert_eq!((tap.master, tap.isolated, tap.up, tap.ours), (Some(bridge.index), true, true, true));
        drop(attach("tap-t", queues).expect("the VMM attaches"));
        assert_eq!(tap.index == before, report.done == 0, "only a tap that is right stays");
        before = tap.index;
    }
}

#[tokio::test]
async fn addresses_routes_rules_and_variables_are_idempotent_and_read_back() {
    if !namespace() {
        return;
    }
    let n = Rtnl::new().expect("netlink");
    dummy(&n, "v0").await;
    let link = n.link("v0").await.expect("v0");
    let own = prefix("10.9.0.2/24");
    for _ in 0..2 {
        n.add_address(&link, own).await.expect("address");
    }
    let found = n.addresses().await.expect("list");
    let ours: Vec<_> = found.iter().filter(|a| a.ours).collect();
    assert_eq!(ours.len(), 1);
    assert_eq!(ours[0].prefix, own);
    let route = KernelRoute {
        table: 1001,
        destination: prefix("0.0.0.0/0"),
        metric: 77,
        output: Some(link.index),
        router: Some(Ipv4Addr::new(10, 9, 0, 1).into()),
        source: Some(own.address),
        unreachable: false,
        ours: true,
    };
    let nowhere =
        KernelRoute { metric: 9000, output: None, router: None, source: None, unreachable: true, ..route.clone() };
    for _ in 0..2 {
        n.add_route(&route).await.expect("route");
        n.add_route(&nowhere).await.expect("unreachable route");
    }
    let ours: Vec<_> = n.routes().await.expect("list").into_iter().filter(|r| r.ours).collect();
    assert!(ours.contains(&route), "{ours:?}");
    assert_eq!(ours.len(), 2, "{ours:?}");
    let rule = PolicyRule { priority: 1000, input: "v0".into(), table: 254, suppress_prefix_length: Some(0) };
    for _ in 0..2 {
        n.add_rule(&rule).await.expect("rule");
    }
    assert_eq!(n.rules().await.expect("list"), vec![rule.clone()]);
    if let Some(text) = witness("ip", &["rule"]) {
        assert!(
            text.contains(&format!("1000:\tfrom all iif v0 lookup main suppress_prefixlength 0 proto {PROTOCOL}")),
            "{text}"
        );
    }
    sysctl::write("net/ipv4/conf/v0/rp_filter", "2").expect("sysctl");
    assert_eq!(sysctl::read("net/ipv4/conf/v0/rp_filter").expect("read"), "2");
    assert!(sysctl::write("../etc/passwd", "x").is_err());
    for _ in 0..2 {
        n.delete_rule(&rule).await.expect("delete");
        n.delete_route(&KernelRoute { router: None, source: None, ..route.clone() }).await.expect("delete");
        n.delete_route(&nowhere).await.expect("delete");
        n.delete_address(&link, own).await.expect("delete");
    }
    assert!(n.routes().await.expect("list").iter().all(|r| !r.ours));
    assert!(n.rules().await.expect("list").is_empty());
    assert!(n.addresses().await.expect("list").iter().all(|a| !a.ours));
}

#[tokio::test]
async fn monitor_tells_of_links_and_addresses() {
    if !namespace() {
        return;
    }
    let mut monitor = Monitor::new().expect("monitor");
    let n = Rtnl::new().expect("netlink");
    dummy(&n, "v0").await;
    let link = n.link("v0").await.expect("v0");
    n.add_address(&link, prefix("10.9.0.2/24")).await.expect("address");
    // Leaving a bridge is not being gone.
    n.add_bridge("br-t", [2, 0, 0, 0, 0, 9]).await.expect("bridge");
    let (peer, bridge) = (n.link("v0p").await.expect("v0p"), n.link("br-t").await.expect("bridge"));
    n.set_master(&peer, Some(bridge.index)).await.expect("enslave");
    let peer = n.link("v0p").await.expect("v0p");
    n.set_master(&peer, None).await.expect("release");
    n.delete_link(&link).await.expect("delete");
    let (mut up, mut addressed, mut gone) = (false, false, false);
    while !(up && addressed && gone) {
        let next = tokio::time::timeout(std::time::Duration::from_secs(5), monitor.next());
        match next.await.expect("in time").expect("event") {
            Event::Link(l) if l.name == "v0" && l.up => up = true,
            Event::Address(a) if a.prefix == prefix("10.9.0.2/24") => addressed = true,
            Event::LinkGone(l) if l.name == "v0" => gone = true,
            Event::LinkGone(l) => assert!(l.name == "v0p" && n.find_link("v0p").await.expect("links").is_none()),
            _ => {}
        }
    }
}
