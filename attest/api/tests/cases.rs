//! Configs that ask for what this version does not do, encoded as a controller sends them: each must be told so on the right object.
//!
//! The wrong way to see it: that the config converts without an error. It does, and what it asks for is not done.

use holdfast_api::config::to_desired;
use holdfast_api::proto::config::EdgeDevConfig;
use holdfast_model::trouble::{ObjectKind as K, Severity as S, Trouble};
use prost::Message;
use std::path::Path;

/// File below `testdata/config`, and a trouble that the config has: kind of the object, severity, words of the text.
const CASES: &[(&str, K, S, &str)] = &[
    ("silent-1-KiB-of-memory", K::App, S::Error, "memory: expected at least 16384 KiB, found 1 KiB"),
    ("silent-802-1X-on-a-port", K::Port, S::Warning, "pnacs"),
    ("silent-CA-of-a-proxy-alone", K::Network, S::Warning, "proxies are not supported"),
    ("silent-EdgeView", K::Device, S::Warning, "edgeview"),
    ("silent-NTP-server-of-a-port", K::Network, S::Warning, "ip.ntp"),
    ("silent-RAID-layout", K::Device, S::Warning, "disks"),
    ("silent-VNC", K::App, S::Warning, "fixedresources.enable_vnc"),
    ("silent-WPAD-proxy-URL-alone", K::Network, S::Warning, "proxies are not supported"),
    ("silent-access-VLAN-of-a-port-of-a-switch", K::NetworkInstance, S::Warning, "vlan_access_ports"),
    ("silent-access-VLAN-of-an-app-on-a-switch", K::App, S::Warning, "interfaces.access_vlan_id"),
    ("silent-air-gap--loc-config", K::Device, S::Warning, "loc_config"),
    ("silent-cloud-config-as-user-data", K::App, S::Warning, "userData: expected lines KEY=VALUE"),
    ("silent-cluster", K::Device, S::Warning, "cluster"),
    ("silent-local-profile-server", K::Device, S::Warning, "local_profile_server"),
    ("silent-old-base-OS-form", K::Device, S::Warning, "base:"),
    ("silent-one-volume-in-two-apps", K::App, S::Error, "uses it too, expected one app for each"),
    ("silent-one-volume-twice-in-one-app", K::App, S::Error, "expected once in an app, found twice"),
    ("silent-patch-envelope", K::Device, S::Warning, "patchEnvelopes"),
    ("silent-pinned-CPUs", K::App, S::Warning, "fixedresources.pin_cpu"),
    ("silent-propagate-connected-routes", K::NetworkInstance, S::Warning, "propagate_connected_routes"),
    ("silent-read-only-root-volume", K::App, S::Warning, "readonly of the first volume"),
    ("silent-snapshot-of-an-app", K::App, S::Warning, "snapshot"),
    ("silent-static-names-of-a-port-s-network", K::Network, S::Warning, "dns"),
    ("silent-static-route", K::NetworkInstance, S::Warning, "static_routes"),
    ("silent-two-volumes-on-one-mount-point", K::App, S::Error, "expected for one volume, found for two"),
];

fn troubles(name: &str) -> Vec<Trouble> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/config").join(format!("{name}.pb"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    to_desired(&EdgeDevConfig::decode(bytes.as_slice()).expect("a config"), None).faults
}

#[test]
fn what_is_asked_for_and_not_done_is_named_on_its_object() {
    for (name, kind, severity, words) in CASES {
        let found = troubles(name);
        let expected = |t: &Trouble| (t.on.kind, t.severity) == (*kind, *severity) && t.text.contains(words);
        assert!(found.iter().any(expected), "{name}: expected {kind:?}, {words:?}, found {found:#?}");
    }
}

#[test]
fn configs_as_eden_makes_them_have_no_trouble() {
    for name in ["eden-ni-dns-is-gateway", "eden-host-only"] {
        assert_eq!(troubles(name), [], "{name}");
    }
}
