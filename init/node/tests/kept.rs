//! Files that parts keep, as each version of the agent wrote them (`golden/<part>-v<version>.json`): what this version reads of them,
//! and that what this version writes is still read by what reads the first version.
//!
//! A file here is never changed. A version that writes another form adds one.

use holdfast_model::Uuid;
use holdfast_model::net::Layers;
use holdfast_model::observed::{BootReason, RebootRecord};
use holdfast_node::kept::decode;
use holdfast_node::parts::app::decide::Acted;
use holdfast_node::parts::app::kept::{Kept as Apps, KeptApp};
use holdfast_node::parts::content::kept::{Kept as Contents, KeptContent};
use holdfast_node::parts::device::kept::Kept as Device;
use holdfast_node::parts::network::kept::Kept as Networks;
use holdfast_plan::{Allocations, LinkFact, last_resort};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn apps() -> Apps {
    let web = KeptApp {
        name: "web".into(),
        number: Some(0),
        acted: Some(Acted { restart: 3, purge: 4 }),
        volumes: vec![(Uuid::from_u128(2), 1)],
    };
    Apps { apps: [(Uuid::from_u128(1), web)].into() }
}

fn contents() -> Contents {
    let web = KeptContent {
        asked: "web:1  0".into(),
        sha256: "aa".into(),
        size_bytes: 4096,
        image: Some(json!({"cmd": ["/web"]})),
    };
    Contents { contents: [(Uuid::from_u128(3), web)].into() }
}

fn networks() -> Networks {
    let mut last = last_resort(&[LinkFact { name: "eth0".into(), mac: [2; 6], pci: String::new() }]);
    let given = [(format!("{}/0", Uuid::from_u128(1)), [10, 9, 0, 2].into())].into();
    let addresses = Allocations { v4: [(Uuid::from_u128(4), given)].into(), ..Allocations::default() };
    let worked = Layers { ports: last.ports.split_off(0), links: vec![], adapters: last.adapters.split_off(0) };
    Networks { addresses, worked: Some(worked) }
}

/// What this version reads is the value, what it writes of it is the text, and fields of a newer version do not matter anywhere.
fn check<T: DeserializeOwned + Default + Serialize + PartialEq + std::fmt::Debug>(golden: &str, value: &T) {
    let (read, lost) = decode::<T>("golden", Some(golden.as_bytes()));
    assert_eq!((&read, lost), (value, vec![]));
    assert_eq!(serde_json::to_string_pretty(value).unwrap().trim(), golden.trim());
    let mut newer: Value = serde_json::from_str(golden).unwrap();
    add_fields(&mut newer);
    let (read, lost) = decode::<T>("newer", Some(newer.to_string().as_bytes()));
    assert_eq!((&read, lost), (value, vec![]));
}

/// Adds a field to the file and to each record in its maps, as a newer version would.
fn add_fields(value: &mut Value) {
    let Some(fields) = value.as_object_mut() else { return };
    for map in fields.values_mut().filter_map(Value::as_object_mut) {
        for record in map.values_mut().filter_map(Value::as_object_mut) {
            record.insert("of_a_newer_version".into(), json!({"x": 1}));
        }
    }
    fields.insert("of_a_newer_version".into(), json!([1, 2]));
}

#[test]
fn the_file_of_apps_is_read_forwards_and_backwards() {
    check(include_str!("golden/app-v1.json"), &apps());
}

#[test]
fn the_file_of_contents_is_read_forwards_and_backwards() {
    check(include_str!("golden/content-v1.json"), &contents());
}

#[test]
fn the_file_of_the_device_is_read_forwards_and_backwards() {
    let record = |reason, text: &str, time_seconds| RebootRecord { reason, text: text.into(), time_seconds };
    let device = Device {
        reboot_counter: Some(3),
        shutdown_counter: Some(1),
        shut_down_in_boot: Some(7),
        ordered_reboot: Some(record(BootReason::RebootCommand, "counter 3", 1_800_000_000)),
        last_reboot: Some((7, record(BootReason::Update, "update to 2", 0))),
        debug: [("debug.memory".into(), "now".into())].into(),
    };
    check(include_str!("golden/device-v1.json"), &device);
}

#[test]
fn a_reason_of_a_newer_version_costs_no_counter() {
    let text = include_str!("golden/device-v1.json").replace("reboot-command", "of-a-newer-version");
    let (read, lost) = decode::<Device>("device.json", Some(text.as_bytes()));
    assert_eq!((read.reboot_counter, read.shutdown_counter, read.last_reboot.is_some()), (Some(3), Some(1), true));
    assert_eq!(lost, ["device.json: ordered_reboot cannot be read and is lost"]);
}

#[test]
fn the_file_of_networks_is_read_forwards_and_backwards() {
    check(include_str!("golden/network-v1.json"), &networks());
}

#[test]
fn a_damaged_record_of_an_app_keeps_its_counters() {
    let text = include_str!("golden/app-v1.json").replace("\"number\": 0", "\"number\": -1");
    let (read, lost) = decode::<Apps>("app.json", Some(text.as_bytes()));
    let app = &read.apps[&Uuid::from_u128(1)];
    assert_eq!((app.number, app.acted), (None, Some(Acted { restart: 3, purge: 4 })));
    assert_eq!(lost, ["app.json: apps.00000000-0000-0000-0000-000000000001.number cannot be read and is lost"]);
}
