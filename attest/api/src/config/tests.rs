use super::*;
use crate::proto::common::{IpRange, Ipspec};
use crate::proto::config::*;
use holdfast_model::net::{Addressing4, InstanceKind, Protocol, RuleAction};
use holdfast_model::storage::VolumeOrigin;
use proptest::prelude::*;
use prost::Message;

const DEVICE: &str = "00000000-0000-4000-8000-000000000001";
const NET: &str = "00000000-0000-4000-8000-000000000002";
const INSTANCE: &str = "00000000-0000-4000-8000-000000000003";
const STORE: &str = "00000000-0000-4000-8000-000000000004";
const TREE: &str = "00000000-0000-4000-8000-000000000005";
const VOLUME: &str = "00000000-0000-4000-8000-000000000006";
const APP: &str = "00000000-0000-4000-8000-000000000007";
const OS_TREE: &str = "00000000-0000-4000-8000-000000000008";

fn id(uuid: &str) -> Option<UuiDandVersion> {
    Some(UuiDandVersion { uuid: uuid.to_owned(), version: "3".to_owned() })
}

fn matching(kind: &str, value: &str) -> AceMatch {
    AceMatch { r#type: kind.to_owned(), value: value.to_owned() }
}

/// A config as testers send it: one port, one local network instance, one container app with a port map.
pub(super) fn good() -> EdgeDevConfig {
    EdgeDevConfig {
        id: id(DEVICE),
        config_items: vec![ConfigItem { key: "timer.config.interval".to_owned(), value: "10".to_owned() }],
        device_io_list: vec![
            PhysicalIo {
                ptype: 1,
                logicallabel: "eth0".to_owned(),
                phyaddrs: [("Ifname".to_owned(), "eth0".to_owned())].into(),
                usage: 1,
                ..PhysicalIo::default()
            },
            PhysicalIo { ptype: 2, phylabel: "USB".to_owned(), ..PhysicalIo::default() },
        ],
        networks: vec![NetworkConfig {
            id: NET.to_owned(),
            r#type: 4,
            ip: Some(Ipspec { dhcp: 4, ..Ipspec::default() }),
            ..NetworkConfig::default()
        }],
        system_adapter_list: vec![SystemAdapter {
            name: "eth0".to_owned(),
            uplink: true,
            network_uuid: NET.to_owned(),
            ..SystemAdapter::default()
        }],
        network_instances: vec![NetworkInstanceConfig {
            uuidandversion: id(INSTANCE),
            displayname: "n1".to_owned(),
            inst_type: 2,
            activate: true,
            port: Some(Adapter { name: "uplink".to_owned(), ..Adapter::default() }),
            ip: Some(Ipspec {
                subnet: "10.11.12.0/24".to_owned(),
                gateway: "10.11.12.1".to_owned(),
                dhcp_range: Some(IpRange { start: "10.11.12.2".to_owned(), end: "10.11.12.254".to_owned() }),
                ..Ipspec::default()
            }),
            ..NetworkInstanceConfig::default()
        }],
        datastores: vec![DatastoreConfig {
            id: STORE.to_owned(),
            d_type: 5,
            fqdn: "docker://registry".to_owned(),
            ..Default::default()
        }],
        content_info: vec![
            ContentTree {
                uuid: TREE.to_owned(),
                ds_id: STORE.to_owned(),
                url: "web:1".to_owned(),
                iformat: 8,
                display_name: "web".to_owned(),
                ..ContentTree::default()
            },
            ContentTree {
                uuid: OS_TREE.to_owned(),
                ds_ids_list: vec![STORE.to_owned()],
                url: "os.update".to_owned(),
                iformat: 1,
                sha256: "AB".repeat(32),
                ..ContentTree::default()
            },
        ],
        volumes: vec![Volume {
            uuid: VOLUME.to_owned(),
            origin: Some(VolumeContentOrigin { r#type: 2, download_content_tree_id: TREE.to_owned() }),
            maxsizebytes: 1 << 30,
            display_name: "web volume".to_owned(),
            ..Volume::default()
        }],
        apps: vec![AppInstanceConfig {
            uuidandversion: id(APP),
            displayname: "web".to_owned(),
            fixedresources: Some(VmConfig { memory: 262_144, vcpus: 2, virtualization_mode: 1, ..VmConfig::default() }),
            activate: true,
            volume_ref_list: vec![VolumeRef { uuid: VOLUME.to_owned(), ..VolumeRef::default() }],
            user_data: "Rk9PPWJhcgo=".to_owned(),
            interfaces: vec![NetworkAdapter {
                name: "nic".to_owned(),
                network_id: INSTANCE.to_owned(),
                mac_address: "02:16:3e:00:00:01".to_owned(),
                acls: vec![
                    Ace {
                        id: 1,
                        matches: vec![
                            matching("protocol", "tcp"),
                            matching("lport", "8080"),
                            matching("ip", "0.0.0.0/0"),
                        ],
                        actions: vec![AceAction { portmap: true, app_port: 80, ..AceAction::default() }],
                        ..Ace::default()
                    },
                    Ace { id: 2, matches: vec![matching("ip", "0.0.0.0/0")], ..Ace::default() },
                ],
                ..NetworkAdapter::default()
            }],
            ..AppInstanceConfig::default()
        }],
        baseos: Some(BaseOs {
            content_tree_uuid: OS_TREE.to_owned(),
            activate: true,
            base_os_version: "1.2.3".to_owned(),
            ..BaseOs::default()
        }),
        reboot: Some(DeviceOpsCmd { counter: 4, desired_state: true, ..DeviceOpsCmd::default() }),
        shutdown: Some(DeviceOpsCmd { counter: 9, desired_state: false, ..DeviceOpsCmd::default() }),
        ..EdgeDevConfig::default()
    }
}

#[test]
fn config_as_testers_send_it_has_no_fault() {
    let desired = to_desired(&good(), None);
    assert!(desired.faults.is_empty(), "{:#?}", desired.faults);
    assert_eq!((desired.device.to_string().as_str(), desired.revision.as_str()), (DEVICE, "3"));
    assert_eq!(desired.properties.config_interval_seconds, 10);
    assert_eq!((desired.commands.reboot, desired.commands.shutdown), (4, 0));
    assert_eq!(desired.ports.len(), 1);
    assert_eq!(desired.ports[0].interface, "eth0");
    assert!(desired.adapters[0].management);
    assert_eq!(desired.adapters[0].v4, Addressing4::Dhcp);
    let instance = &desired.instances[0];
    assert_eq!((instance.kind, instance.uplinks.join(",").as_str()), (InstanceKind::Local, "uplink"));
    assert_eq!(instance.v4.and_then(|subnet| subnet.gateway), Some([10, 11, 12, 1].into()));
    assert!(matches!(desired.volumes[0].origin, VolumeOrigin::Content(_)));
    assert_eq!(desired.contents[1].sha256, "ab".repeat(32));
    let app = &desired.apps[0];
    assert_eq!((app.memory_bytes, app.vcpus, app.user_data.as_str()), (256 << 20, 2, "FOO=bar\n"));
    let rules = &app.interfaces[0].rules;
    assert_eq!((rules[0].protocol, rules[0].local_port), (Some(Protocol::Tcp), Some(8080)));
    assert_eq!(rules[0].action, RuleAction::PortMap { app_port: 80 });
    assert_eq!(rules[1].action, RuleAction::Allow);
    assert_eq!(desired.base_os.expect("base OS").version, "1.2.3");
}

/// Breaks a good config in one place; the fault must be on the named object, and only objects that need it fall with it.
#[test]
fn fault_is_named_on_its_object_and_the_rest_is_applied() {
    use ObjectKind as K;
    type Break = fn(&mut EdgeDevConfig);
    type Expected = &'static [(K, &'static str, &'static str)];
    let cases: &[(&str, Break, Expected)] = &[
        ("device id", |c| c.id = id("device"), &[(K::Device, "device", "expected a UUID")]),
        (
            "property",
            |c| c.config_items[0].value = "4".into(),
            &[(K::Property, "timer.config.interval", "from 5 to 86400")],
        ),
        (
            "VLAN",
            |c| c.vlans.push(VlanAdapter { logicallabel: "v".into(), ..Default::default() }),
            &[(K::Port, "v", "VLAN")],
        ),
        (
            "port without address",
            |c| c.device_io_list[0].phyaddrs.clear(),
            &[(K::Port, "eth0", "ifname"), (K::Adapter, "eth0", "lower layer")],
        ),
        ("cost", |c| c.system_adapter_list[0].cost = 256, &[(K::Adapter, "eth0", "0 to 255")]),
        (
            "DHCP type",
            |c| c.networks[0].ip.as_mut().unwrap().dhcp = 3,
            &[(K::Network, NET, "dhcp"), (K::Adapter, "eth0", "network")],
        ),
        (
            "static network without address",
            |c| c.networks[0].ip = Some(Ipspec { dhcp: 1, subnet: "10.0.0.0/8".into(), ..Default::default() }),
            &[(K::Adapter, "eth0", "expected an address, found none")],
        ),
        (
            "instance type",
            |c| c.network_instances[0].inst_type = 3,
            &[(K::NetworkInstance, INSTANCE, "found 3"), (K::App, APP, "network instance")],
        ),
        (
            "gateway outside",
            |c| c.network_instances[0].ip.as_mut().unwrap().gateway = "10.9.9.1".into(),
            &[(K::NetworkInstance, INSTANCE, "10.11.12.0/24"), (K::App, APP, "network instance")],
        ),
        (
            "pool upside down",
            |c| c.network_instances[0].ip.as_mut().unwrap().dhcp_range.as_mut().unwrap().end = "10.11.12.1".into(),
            &[(K::NetworkInstance, INSTANCE, "pool"), (K::App, APP, "network instance")],
        ),
        (
            "unknown uplink",
            |c| c.network_instances[0].port.as_mut().unwrap().name = "eth9".into(),
            &[(K::NetworkInstance, INSTANCE, "eth9"), (K::App, APP, "network instance")],
        ),
        (
            "datastore type",
            |c| c.datastores[0].d_type = 4,
            &[
                (K::Datastore, STORE, "found 4"),
                (K::Content, TREE, STORE),
                (K::Content, OS_TREE, STORE),
                (K::Volume, VOLUME, TREE),
                (K::App, APP, VOLUME),
                (K::BaseOs, OS_TREE, "content tree"),
            ],
        ),
        (
            "hash",
            |c| c.content_info[1].sha256 = "abc".into(),
            &[(K::Content, OS_TREE, "64 hexadecimal"), (K::BaseOs, OS_TREE, "content tree")],
        ),
        (
            "blank volume without size",
            |c| {
                c.volumes[0].origin = Some(VolumeContentOrigin { r#type: 1, ..Default::default() });
                c.volumes[0].maxsizebytes = 0;
            },
            &[(K::Volume, VOLUME, "0 bytes"), (K::App, APP, "volume")],
        ),
        (
            "generation",
            |c| c.apps[0].volume_ref_list[0].generation_count = 2,
            &[(K::App, APP, "generation 0, found 2")],
        ),
        ("memory", |c| c.apps[0].fixedresources.as_mut().unwrap().memory = 0, &[(K::App, APP, "memory")]),
        ("user data", |c| c.apps[0].user_data = "!".into(), &[(K::App, APP, "base64")]),
        (
            "MAC",
            |c| c.apps[0].interfaces[0].mac_address = "01:00:5e:00:00:01".into(),
            &[(K::App, APP, "single station")],
        ),
        ("rule", |c| c.apps[0].interfaces[0].acls[0].matches[0].value = "tpc".into(), &[(K::App, APP, "rule 1")]),
        (
            "port without protocol",
            |c| drop(c.apps[0].interfaces[0].acls[0].matches.remove(0)),
            &[(K::App, APP, "protocol tcp")],
        ),
        (
            "two actions at once",
            |c| c.apps[0].interfaces[0].acls[0].actions[0].drop = true,
            &[(K::App, APP, "one of drop, limit and portmap")],
        ),
        ("twice", |c| c.volumes.push(c.volumes[0].clone()), &[(K::Volume, VOLUME, "second object")]),
        (
            "secret without keys",
            |c| {
                c.apps[0] = AppInstanceConfig {
                    user_data: String::new(),
                    cipher_data: Some(Default::default()),
                    ..c.apps[0].clone()
                }
            },
            &[(K::App, APP, "keys for object encryption")],
        ),
        (
            "version of the base OS",
            |c| c.baseos.as_mut().unwrap().base_os_version.clear(),
            &[(K::BaseOs, OS_TREE, "version")],
        ),
        (
            "proxy",
            |c| {
                c.networks[0].ent_proxy =
                    Some(crate::proto::common::ProxyConfig { pacfile: "x".into(), ..Default::default() })
            },
            &[(K::Network, NET, "proxies")],
        ),
    ];
    let whole = to_desired(&good(), None);
    for (what, break_it, expected) in cases {
        let mut config = good();
        break_it(&mut config);
        let desired = to_desired(&config, None);
        let found: Vec<_> =
            desired.faults.iter().map(|fault| (fault.on.kind, fault.on.id.as_str(), fault.text.as_str())).collect();
        assert_eq!(found.len(), expected.len(), "{what}: {found:#?}");
        for ((kind, id, text), (expected_kind, expected_id, expected_text)) in found.iter().zip(*expected) {
            assert_eq!((kind, id), (expected_kind, expected_id), "{what}");
            assert!(text.contains(expected_text), "{what}: {text}");
        }
        let fell = |kind: K| expected.iter().any(|(other, ..)| *other == kind);
        assert_eq!(desired.ports == whole.ports, !fell(K::Port) || what == &"VLAN", "{what}: ports");
        assert_eq!(desired.apps.len(), usize::from(!fell(K::App)), "{what}: apps");
        assert_eq!(desired.instances.len(), usize::from(!fell(K::NetworkInstance)), "{what}: instances");
        assert_eq!(desired.base_os.is_some(), !fell(K::BaseOs), "{what}: base OS");
    }
}

#[test]
fn clear_credentials_stand_in_when_decryption_fails() {
    let mut config = good();
    config.datastores[0].cipher_data = Some(Default::default());
    config.datastores[0].api_key = "user".to_owned();
    let desired = to_desired(&config, None);
    assert!(desired.faults.is_empty());
    assert_eq!(desired.datastores[0].user, "user");
}

#[test]
fn app_of_another_profile_is_kept_but_not_activated() {
    let mut config = good();
    config.apps[0].profile_list = vec!["night".to_owned()];
    config.global_profile = "day".to_owned();
    assert!(!to_desired(&config, None).apps[0].activate);
    config.global_profile = "night".to_owned();
    assert!(to_desired(&config, None).apps[0].activate);
}

#[test]
fn maintenance_comes_from_the_field_and_the_property_overrides_it() {
    let mut config = good();
    config.maintenance_mode = true;
    assert!(to_desired(&config, None).maintenance);
    config.config_items.push(ConfigItem { key: "maintenance.mode".to_owned(), value: "disabled".to_owned() });
    assert!(!to_desired(&config, None).maintenance);
}

#[test]
fn unknown_property_is_kept_to_be_reported() {
    let mut config = good();
    config.config_items.push(ConfigItem { key: "debug.enable.ssh".to_owned(), value: "x".to_owned() });
    let desired = to_desired(&config, None);
    assert!(desired.faults.is_empty());
    assert_eq!(desired.properties.unknown, [("debug.enable.ssh".to_owned(), "x".to_owned())]);
}

#[test]
fn objects_beyond_the_limit_are_faults() {
    let mut config = EdgeDevConfig { id: id(DEVICE), ..EdgeDevConfig::default() };
    for number in 0..limits::OBJECTS + 3 {
        config
            .networks
            .push(NetworkConfig { id: Uuid::from_u128(number as u128).to_string(), ..NetworkConfig::default() });
    }
    let desired = to_desired(&config, None);
    assert_eq!(desired.faults.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Flipped bytes of a real config reach far deeper than random ones.
    #[test]
    fn damaged_config_never_panics(hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = good().encode_to_vec();
        for (index, value) in hits {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(config) = EdgeDevConfig::decode(bytes.as_slice()) {
            let desired = to_desired(&config, None);
            prop_assert!(desired.faults.iter().all(|fault| !fault.text.is_empty()));
        }
    }
}
