//! The host kernel does everything that a network plan can ask for.
//!
//! Wrong way to see it: reading the configuration. nftables expressions, tunnel kinds and ciphers are looked up by name when first used, and
//! a missing one shows only then. So iproute2 and nft, as witnesses independent of our netlink code, ask for each once.

use holdfast_format::cpio::Archive;
use holdfast_harness::{Device, secs};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use xtask::kernel::{Kernel, build};

/// Links, addresses, rules, transforms and queueing, in an order that satisfies their dependencies.
const COMMANDS: &[&str] = &[
    "ip link add br0 type bridge vlan_filtering 1",
    "ip link add v1 type veth peer name v2",
    "ip link set v1 master br0",
    "bridge vlan add dev v1 vid 10 pvid untagged",
    "ip link add link v2 name v2.10 type vlan id 10",
    "ip link add bond1 type bond mode active-backup",
    "ip link add bond2 type bond mode 802.3ad",
    "ip link add vrf1 type vrf table 100",
    "ip link add vx1 type vxlan id 7 dstport 4789 dev v2",
    "ip link add wg1 type wireguard",
    "ip link add link v2 name mt1 type macvtap mode bridge",
    "ip link add link v2 name mv1 type macvlan mode bridge",
    "ip link add xf1 type xfrm dev v2 if_id 5",
    "ip tuntap add dev tap1 mode tap vnet_hdr",
    "ip rule add fwmark 5 table 100",
    "ip -6 rule add fwmark 5 table 100",
    "ip rule add iif v1 l3mdev",
    "ip link set v2 up",
    "ip addr add 10.9.9.1/24 dev v2",
    "ip route add 10.8.0.0/16 nexthop via 10.9.9.2 nexthop via 10.9.9.3",
    "ip xfrm state add src 10.9.9.1 dst 10.9.9.2 proto esp spi 1 mode tunnel aead rfc4106(gcm(aes)) 0x0123456789abcdef0123456789abcdef01234567 128",
    "ip xfrm state add src 10.9.9.1 dst 10.9.9.3 proto esp spi 2 mode tunnel enc cbc(aes) 0x0123456789abcdef0123456789abcdef auth hmac(sha256) 0x0123456789abcdef0123456789abcdef",
    "tc qdisc add dev v2 root tbf rate 1mbit burst 10k latency 50ms",
    "tc qdisc add dev v2 clsact",
    "tc filter add dev v2 ingress matchall action police rate 1mbit burst 10k",
    "tc filter add dev v2 egress matchall action mirred egress mirror dev v1",
    "tc qdisc add dev v1 root fq_codel",
];

/// nftables: family, chain with its hook, rules.
const RULES: &[(&str, &str, &str, &[&str])] = &[
    (
        "inet",
        "input",
        "type filter hook input priority 0",
        &[
            "ct state established,related accept",
            "ip saddr @addresses counter accept",
            "iifname vmap @interfaces",
            "tcp dport 22 limit rate 5/second accept",
            "fib saddr . iif oif missing drop",
            "fib daddr type local accept",
            "log prefix x level info",
            "log group 5",
            "reject with icmpx admin-prohibited",
            "tcp dport 25 reject with tcp reset",
            "quota over 10 mbytes drop",
            "queue num 1",
            "ct count over 10 drop",
            "socket transparent 1 accept",
            "add @recent { ip saddr limit rate 1/second } accept",
        ],
    ),
    (
        "inet",
        "forward",
        "type filter hook forward priority 0",
        &[
            "ct mark set 5",
            "meta mark set ct mark",
            "tcp flags syn tcp option maxseg size set rt mtu",
            "meta ipsec exists accept",
            "ip protocol tcp flow add @fast",
            "meta mark set numgen random mod 10",
            "meta mark set jhash ip saddr mod 4",
            "ct label set 1",
            "ip dscp set cs1",
        ],
    ),
    ("inet", "raw", "type filter hook prerouting priority -300", &["notrack", "ct zone set 5"]),
    ("inet", "mangle", "type filter hook prerouting priority -150", &["meta l4proto tcp tproxy to :5000"]),
    (
        "inet",
        "dstnat",
        "type nat hook prerouting priority -100",
        &["tcp dport 53 redirect to :5353", "dnat ip to tcp dport map { 80 : 10.0.0.2 }"],
    ),
    (
        "inet",
        "srcnat",
        "type nat hook postrouting priority 100",
        &["masquerade", "snat ip to 10.0.0.1", "meta nfproto ipv6 masquerade"],
    ),
    ("ip", "dstnat", "type nat hook prerouting priority -100", &["tcp dport 8080 dnat to 10.0.0.2:80"]),
    ("ip6", "srcnat", "type nat hook postrouting priority 100", &["masquerade"]),
    (
        "bridge",
        "forward",
        "type filter hook forward priority 0",
        &[
            "ct state established accept",
            "ether saddr != 52:54:00:00:00:01 drop",
            "arp saddr ip 10.0.0.1 accept",
            "vlan id 5 accept",
            "meta ibrname br0 accept",
            "limit rate 10/second accept",
        ],
    ),
    ("bridge", "prerouting", "type filter hook prerouting priority 0", &["reject"]),
    (
        "netdev",
        "ingress",
        "type filter hook ingress device v2 priority 0",
        &["ip saddr 10.0.0.1 drop", "fwd to v1", "dup to v1"],
    ),
    ("netdev", "egress", "type filter hook egress device v2 priority 0", &["dup to v1"]),
    ("arp", "input", "type filter hook input priority 0", &["arp operation request accept"]),
];

/// Sets that the rules name.
const SETS: &[&str] = &[
    "add set inet t addresses { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }",
    "add set inet t recent { type ipv4_addr; size 100; flags dynamic,timeout; timeout 1m; }",
    "add map inet t interfaces { type ifname : verdict; }",
    "add flowtable inet t fast { hook ingress priority 0; devices = { v1, v2 }; }",
];

fn script() -> String {
    let mut lines = vec![
        "mount -t proc proc /proc; mount -t devtmpfs dev /dev".to_owned(),
        "try() { if out=$(\"$@\" 2>&1); then echo \"fine: $*\"; else echo \"fault: $*: $out\"; fi; }".to_owned(),
    ];
    let quoted = |words: &str| words.split(' ').map(|w| format!("'{w}'")).collect::<Vec<_>>().join(" ");
    lines.extend(COMMANDS.iter().map(|c| format!("try {}", quoted(c))));
    let nft = |text: &str| format!("try nft '{text}'");
    let families: BTreeSet<&str> = RULES.iter().map(|r| r.0).collect();
    lines.extend(families.iter().map(|f| nft(&format!("add table {f} t"))));
    lines.extend(SETS.iter().map(|s| nft(s)));
    for (family, chain, hook, rules) in RULES {
        lines.push(nft(&format!("add chain {family} t {chain} {{ {hook}; }}")));
        lines.extend(rules.iter().map(|r| nft(&format!("add rule {family} t {chain} {r}"))));
    }
    // PID 1 must stay: the test cuts the power.
    lines.push("echo all tried; while true; do sleep 60; done\n".to_owned());
    lines.join("\n")
}

fn initramfs() -> Vec<u8> {
    let mut archive = Archive::new();
    for folder in ["dev", "proc", "bin", "lib", "lib64", "lib/x86_64-linux-gnu", "run"] {
        archive.dir(folder, 0o755);
    }
    archive.char_device("dev/console", 0o600, 5, 1);
    let mut libraries = BTreeSet::new();
    for tool in ["/bin/bash", "/bin/mount", "/bin/sleep", "/usr/sbin/nft", "/sbin/ip", "/sbin/bridge", "/sbin/tc"] {
        let tool = Path::new(tool);
        let bytes = fs::read(tool).unwrap_or_else(|e| panic!("{}: {e}", tool.display()));
        archive.file(&format!("bin/{}", tool.file_name().unwrap().to_str().unwrap()), 0o755, &bytes);
        libraries.extend(xtask::programs::libraries(tool).unwrap());
    }
    for library in libraries {
        // All in one folder that the loader searches; the loader itself at the path programs name it by.
        let name = library.file_name().unwrap().to_str().unwrap();
        let folder = if name.starts_with("ld-linux") { "lib64" } else { "lib/x86_64-linux-gnu" };
        archive.file(&format!("{folder}/{name}"), 0o755, &fs::read(PathBuf::from(&library)).unwrap());
    }
    archive.file("script", 0o644, script().as_bytes());
    archive.finish()
}

#[test]
fn the_host_kernel_takes_every_link_rule_and_transform() {
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, initramfs()).unwrap();
    let kernel = build(Kernel::Host, &|line| eprintln!("{line}")).unwrap().bzimage;
    let mut device = Device::builder("network-features")
        .direct(kernel, Some(&initrd), "console=ttyS0 panic=-1 quiet rdinit=/bin/bash -- /script")
        .memory_mib(512)
        .watchdog(false)
        .start()
        .unwrap();
    device.wait_for("all tried", secs(180)).unwrap();
    let text = device.serial().text();
    let faults: Vec<&str> = text.lines().filter(|l| l.contains("fault: ")).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let tried = text.lines().filter(|l| l.starts_with("fine: ")).count();
    let families = RULES.iter().map(|r| r.0).collect::<BTreeSet<_>>().len();
    assert_eq!(tried, COMMANDS.len() + SETS.len() + families + RULES.iter().map(|r| 1 + r.3.len()).sum::<usize>());
}
