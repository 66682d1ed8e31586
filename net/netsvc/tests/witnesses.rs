//! Our DHCP and DNS against programs of others: a server of ours with their clients, a client of ours with their server.

mod common;

use common::*;
use holdfast_model::contract::network::{Assignment, ClientService, NetworkService, NetworkV4};
use holdfast_plan::kinds::service::{Service, ServiceKind};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 42);
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 7, 42];

/// Two namespaces joined by a veth pair: `s0` with 10.7.0.1/24, and `c0`.
fn pair() -> Option<(Namespace, Namespace)> {
    let (server, client) = (Namespace::new()?, Namespace::new()?);
    server.run(|| {
        veth("s0", "c0", CLIENT_MAC, &client);
        up("s0");
        address("s0", "10.7.0.1/24");
    });
    client.run(|| up("c0"));
    Some((server, client))
}

fn serve(server: &Namespace) -> Processes {
    let service = Service {
        name: "net".into(),
        link: "s0".into(),
        kind: ServiceKind::Network {
            address: "10.7.0.1/24".parse().expect("prefix"),
            uplink: None,
            service: NetworkService {
                v4: NetworkV4 {
                    gateway: SERVER,
                    prefix_length: 24,
                    router: Some(SERVER),
                    pool: None,
                    routes: Vec::new(),
                },
                assignments: vec![Assignment { mac: CLIENT_MAC, addresses: CLIENT.into(), host_name: "client".into() }],
                domain: "edge".into(),
                mtu: Some(1400),
                lease_seconds: 600,
                names: vec![("db.example".into(), vec![Ipv4Addr::new(198, 51, 100, 7).into()])],
                upstreams: Vec::new(),
            },
        },
    };
    let processes = Processes::new();
    let prepared = sockets(server, &service);
    processes.launch(&service, prepared);
    processes
}

/// A script that a DHCP client of others calls; it leaves its environment in a file.
fn script(directory: &tempfile::TempDir) -> (String, std::path::PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let out = directory.path().join("environment");
    let script = directory.path().join("script");
    let text = format!("#!/bin/sh\n[ \"$1\" = bound ] || [ \"$reason\" = BOUND ] && env > {}\nexit 0\n", out.display());
    std::fs::write(&script, text).expect("script");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("mode");
    (script.display().to_string(), out)
}

fn run(ns: &Namespace, program: &str, args: &[&str]) -> String {
    ns.run(|| {
        let out = Command::new(program).args(args).stdin(Stdio::null()).output().expect("run");
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
    })
}

#[test]
fn udhcpc_gets_its_assignment_from_our_server() {
    if !installed("busybox", "busybox") {
        return;
    }
    let Some((server, client)) = pair() else {
        return;
    };
    let _service = serve(&server);
    let directory = tempfile::tempdir().expect("directory");
    let (script, out) = script(&directory);
    let text = run(
        &client,
        "busybox",
        &["udhcpc", "-i", "c0", "-n", "-q", "-f", "-t", "5", "-T", "1", "-O", "mtu", "-s", &script],
    );
    let environment = std::fs::read_to_string(out).unwrap_or_else(|_| panic!("no lease: {text}"));
    for want in [
        "ip=10.7.0.42",
        "subnet=255.255.255.0",
        "router=10.7.0.1",
        "dns=10.7.0.1",
        "domain=edge",
        "mtu=1400",
        "lease=600",
        "serverid=10.7.0.1",
    ] {
        assert!(environment.lines().any(|l| l == want), "{want} in {environment}");
    }
}

#[test]
fn dhclient_gets_its_assignment_from_our_server() {
    if !installed("dhclient", "isc-dhcp-client") {
        return;
    }
    let Some((server, client)) = pair() else {
        return;
    };
    let _service = serve(&server);
    let directory = tempfile::tempdir().expect("directory");
    let (script, out) = script(&directory);
    let leases = directory.path().join("leases").display().to_string();
    let pid = directory.path().join("pid").display().to_string();
    let text = run(
        &client,
        "dhclient",
        &["-4", "-1", "-v", "-sf", &script, "-lf", &leases, "-pf", &pid, "-cf", "/dev/null", "c0"],
    );
    let environment = std::fs::read_to_string(out).unwrap_or_else(|_| panic!("no lease: {text}"));
    if let Ok(number) = std::fs::read_to_string(&pid) {
        // It went to the background.
        let _ = Command::new("kill").arg(number.trim()).status();
    }
    for want in
        ["new_ip_address=10.7.0.42", "new_subnet_mask=255.255.255.0", "new_routers=10.7.0.1", "new_domain_name=edge"]
    {
        assert!(environment.lines().any(|l| l == want), "{want} in {environment}");
    }
}

#[test]
fn our_client_gets_and_renews_a_lease_from_dnsmasq() {
    if !installed("dnsmasq", "dnsmasq-base") {
        return;
    }
    let Some((server, client)) = pair() else {
        return;
    };
    let directory = tempfile::tempdir().expect("directory");
    let leases = format!("--dhcp-leasefile={}", directory.path().join("leases").display());
    let mut dnsmasq = server.run(|| {
        Command::new("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--no-daemon",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--port=0",
            ])
            .args(["--user=root", "--interface=s0", "--bind-interfaces", "--dhcp-authoritative", &leases])
            .args(["--dhcp-range=10.7.0.50,10.7.0.60,255.255.255.0,120", "--dhcp-option=option:router,10.7.0.1"])
            .args([
                "--dhcp-option=option:dns-server,10.7.0.2,10.7.0.3",
                "--domain=lab",
                "--dhcp-option=option:mtu,1300",
            ])
            .args(["--dhcp-option=option:classless-static-route,172.16.0.0/12,10.7.0.9,0.0.0.0/0,10.7.0.8"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dnsmasq")
    });
    let service = Service {
        name: "dhcp-c0".into(),
        link: "c0".into(),
        kind: ServiceKind::DhcpClient(ClientService { interface: "c0".into(), host_name: "edge-1".into() }),
    };
    let processes = Processes::new();
    let prepared = sockets(&client, &service);
    processes.launch(&service, prepared);
    let lease = wait_for_lease(&processes, "dhcp-c0");
    assert!((50..=60).contains(&lease.address.octets()[3]), "{lease:?}");
    assert_eq!((lease.prefix_length, lease.mtu, lease.lease_seconds), (24, Some(1300), 120));
    assert_eq!(lease.dns, [Ipv4Addr::new(10, 7, 0, 2), Ipv4Addr::new(10, 7, 0, 3)]);
    // RFC 3442: the static routes replace the router option.
    assert_eq!(lease.routers, [Ipv4Addr::new(10, 7, 0, 8)]);
    assert_eq!(lease.routes.len(), 1);
    assert_eq!(lease.domain, "lab");
    // Asked again, it keeps its address.
    let request = holdfast_model::contract::network::Request::Renew;
    processes.ask("dhcp-c0", &request);
    assert_eq!(wait_for_lease(&processes, "dhcp-c0").address, lease.address);
    let text = std::fs::read_to_string(directory.path().join("leases")).expect("leases");
    dnsmasq.kill().expect("kill");
    dnsmasq.wait().expect("wait");
    assert!(text.contains("02:00:00:00:07:2a") && text.contains("edge-1"), "{text}");
}

#[test]
fn dig_reads_our_answers() {
    if !installed("dig", "bind9-dnsutils") {
        return;
    }
    let Some((server, client)) = pair() else {
        return;
    };
    let _service = serve(&server);
    client.run(|| address("c0", "10.7.0.42/24"));
    let dig = |args: &[&str]| run(&client, "dig", &[&["@10.7.0.1", "+time=3", "+tries=2"], args].concat());
    assert_eq!(dig(&["+short", "db.example"]).trim(), "198.51.100.7");
    assert_eq!(dig(&["+short", "+tcp", "CLIENT.edge"]).trim(), "10.7.0.42");
    assert_eq!(dig(&["+short", "-x", "10.7.0.42"]).trim(), "client.edge.");
    let text = dig(&["db.example", "AAAA"]);
    assert!(text.contains("status: NOERROR") && text.contains("ANSWER: 0"), "{text}");
    let text = dig(&["other.example"]);
    assert!(text.contains("status: REFUSED"), "{text}");
}
