use super::super::{from_response, tests::good, to_desired};
use super::*;
use crate::proto::common::Ipspec;
use crate::proto::config::{
    Ace, AceAction, BondAdapter, ConfigResponse, DeviceOpsCmd, NetworkConfig, PhysicalIo, SystemAdapter, VlanAdapter,
};
use holdfast_model::desired::Desired;
use holdfast_model::trouble::Severity;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor};
use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

/// Paths whose effect is not in `Desired`: seen only when secrets are decrypted (tests of `cipher`), or decided before the conversion (the
/// controller client's `freshness`).
const ELSEWHERE: [&str; 2] = ["cipherContexts.", "config_timestamp"];

static DESCRIPTOR: LazyLock<MessageDescriptor> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(&include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"))[..]);
    pool.expect("descriptors").get_message_by_name("org.lfedge.eve.config.EdgeDevConfig").expect("EdgeDevConfig")
});

/// A config in which every field that is acted on has something to act on.
fn rich() -> EdgeDevConfig {
    let mut config = good();
    config.apps[0].interfaces[0].acls.push(Ace {
        id: 3,
        actions: vec![AceAction { limit: true, limitrate: 2, limitunit: "s".to_owned(), ..AceAction::default() }],
        ..Ace::default()
    });
    config.device_name = "box".to_owned();
    config.global_profile = "day".to_owned();
    config.apps[0].profile_list = vec!["day".to_owned()];
    config.shutdown = Some(DeviceOpsCmd { counter: 3, desired_state: true, ..DeviceOpsCmd::default() });
    let fixed = "00000000-0000-4000-8000-0000000000f1";
    config.networks.push(NetworkConfig {
        id: fixed.to_owned(),
        ip: Some(Ipspec {
            dhcp: 1,
            subnet: "192.0.2.0/24".to_owned(),
            gateway: "192.0.2.1".to_owned(),
            ..Ipspec::default()
        }),
        ..NetworkConfig::default()
    });
    for (label, usage) in [("eth1", 0), ("eth2", 1), ("eth3", 1)] {
        config.device_io_list.push(PhysicalIo {
            ptype: 1,
            logicallabel: label.to_owned(),
            phyaddrs: HashMap::from([("ifname".to_owned(), label.to_owned())]),
            usage,
            ..PhysicalIo::default()
        });
    }
    config.system_adapter_list.push(SystemAdapter {
        name: "static".to_owned(),
        lower_layer_name: "eth1".to_owned(),
        network_uuid: fixed.to_owned(),
        addr: "192.0.2.9".to_owned(),
        ..SystemAdapter::default()
    });
    config.vlans.push(VlanAdapter {
        logicallabel: "office".to_owned(),
        interface_name: "office".to_owned(),
        lower_layer_name: "eth1".to_owned(),
        vlan_id: 7,
    });
    config.bonds.push(BondAdapter {
        logicallabel: "pair".to_owned(),
        interface_name: "bond0".to_owned(),
        lower_layer_names: vec!["eth2".to_owned(), "eth3".to_owned()],
        bond_mode: 5,
        ..BondAdapter::default()
    });
    config
}

/// Configs to change one field in: what one has set the other has not.
fn bases() -> Vec<EdgeDevConfig> {
    let mut bare = rich();
    bare.apps[0].user_data.clear();
    bare.system_adapter_list.iter_mut().for_each(|adapter| adapter.uplink = false);
    bare.device_io_list[0].usage = 0;
    vec![rich(), bare]
}

/// A place in the config: the fields that lead to it.
type Place = Vec<FieldDescriptor>;

fn path_of(place: &Place) -> String {
    place.iter().map(FieldDescriptor::name).collect::<Vec<_>>().join(".")
}

fn is_message(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    let message = field.kind().as_message()?.clone();
    (!field.is_map() && message.full_name().starts_with("org.lfedge.")).then_some(message)
}

/// Every place below `message` that is no message itself, each message once on the way.
fn places(message: &MessageDescriptor, above: &Place, found: &mut Vec<Place>) {
    for field in message.fields() {
        let mut place = above.clone();
        place.push(field.clone());
        match is_message(&field) {
            Some(below) if above.iter().filter_map(is_message).all(|other| other != below) => {
                places(&below, &place, found);
            }
            Some(_) => {}
            None => found.push(place),
        }
    }
}

/// Values to try in a field.
fn values(field: &FieldDescriptor) -> Vec<prost_reflect::Value> {
    use prost_reflect::Value as V;
    if field.is_map() {
        let map = HashMap::from([(MapKey::String("ifname".to_owned()), V::String("eth9".to_owned()))]);
        return vec![V::Map(map)];
    }
    let single = match field.kind() {
        Kind::Bool => vec![V::Bool(true), V::Bool(false)],
        Kind::String => ["x", "10.11.12.200", "7"].map(|text| V::String(text.to_owned())).into(),
        Kind::Bytes => vec![V::Bytes(b"x".to_vec().into())],
        Kind::Uint32 | Kind::Fixed32 => [1, 5000, u32::MAX].map(V::U32).into(),
        Kind::Uint64 | Kind::Fixed64 => vec![V::U64(5000)],
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => vec![V::I32(5000)],
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => vec![V::I64(5000)],
        Kind::Float => vec![V::F32(1.5)],
        Kind::Double => vec![V::F64(1.5)],
        Kind::Enum(of) => of.values().map(|value| V::EnumNumber(value.number())).collect(),
        Kind::Message(of) => {
            let mut message = DynamicMessage::new(of);
            message.set_field_by_number(1, V::I64(1_800_000_000));
            vec![V::Message(message)]
        }
    };
    if field.is_list() { single.into_iter().map(|value| V::List(vec![value])).collect() } else { single }
}

/// Sets the field at `place` in every object on the way, or in a new one when there is none.
fn set(message: &mut DynamicMessage, place: &[FieldDescriptor], value: &prost_reflect::Value) {
    use prost_reflect::Value as V;
    let Some((field, rest)) = place.split_first() else { return };
    if rest.is_empty() {
        return message.set_field(field, value.clone());
    }
    match message.get_field_mut(field) {
        V::List(list) => {
            if list.is_empty() {
                let below = is_message(field).expect("a list of messages");
                list.push(V::Message(DynamicMessage::new(below)));
            }
            list.iter_mut().filter_map(V::as_message_mut).for_each(|below| set(below, rest, value));
        }
        V::Message(below) => set(below, rest, value),
        other => panic!("expected messages, found {other:?}"),
    }
}

fn changed(base: &EdgeDevConfig, place: &Place, value: &prost_reflect::Value) -> EdgeDevConfig {
    let mut message =
        DynamicMessage::decode(DESCRIPTOR.clone(), base.encode_to_vec().as_slice()).expect("the same message");
    set(&mut message, place, value);
    message.transcode_to().expect("the same message")
}

/// How the field at a path is named, when nothing of it is acted on: without the list that its object stands in.
fn name_of_unsupported(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let end = (1..=parts.len()).find(|end| treatment(&parts[..*end].join(".")) != Treatment::Partly)?;
    let path = parts[..end].join(".");
    if treatment(&path) == Treatment::Known {
        return None;
    }
    let objects = [
        "apps",
        "networks",
        "datastores",
        "systemAdapterList",
        "deviceIoList",
        "vlans",
        "bonds",
        "networkInstances",
        "contentInfo",
        "volumes",
        "baseos",
    ];
    let list = objects.iter().find(|list| path.strip_prefix(**list).is_some_and(|rest| rest.starts_with('.')));
    Some(list.map_or(path.clone(), |list| path[list.len() + 1..].to_owned()))
}

fn new_warnings<'a>(desired: &'a Desired, base: &'a Desired) -> impl Iterator<Item = &'a Trouble> {
    desired.faults.iter().filter(|fault| !base.faults.contains(fault))
}

#[test]
fn listed_paths_exist_once() {
    let mut all = Vec::new();
    places(&DESCRIPTOR, &Vec::new(), &mut all);
    let known: Vec<String> = all.iter().map(path_of).collect();
    let listed: Vec<&str> = ACTED.iter().chain(REFUSED).copied().chain(INERT.iter().map(|(path, _)| *path)).collect();
    for path in listed.iter().chain(VALUES.iter().map(|(path, ..)| path)) {
        let below = format!("{path}.");
        assert!(known.iter().any(|other| other == path || other.starts_with(&below)), "{path}: no such field");
    }
    assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len(), "a path is listed twice");
    for (one, other) in listed.iter().flat_map(|one| listed.iter().map(move |other| (one, other))) {
        assert!(!other.starts_with(&format!("{one}.")), "{other} is covered by {one}");
    }
    for (path, ..) in VALUES {
        assert!(ACTED.contains(path), "{path}: values of a field that is not acted on");
    }
}

#[test]
fn every_field_is_acted_on_or_named() {
    let bases: Vec<(EdgeDevConfig, Desired)> =
        bases().into_iter().map(|config| (config.clone(), to_desired(&config, None))).collect();
    let mut all = Vec::new();
    places(&DESCRIPTOR, &Vec::new(), &mut all);
    let (mut acted, mut named, mut wrong) = (0, 0, Vec::new());
    for place in &all {
        let path = path_of(place);
        let field = place.last().expect("a field");
        let inert = INERT.iter().any(|(other, _)| path == *other || path.starts_with(&format!("{other}.")));
        match name_of_unsupported(&path) {
            Some(name) => {
                named += 1;
                let (config, base) = &bases[0];
                for value in values(field).iter().filter(|value| !value.is_default_for_field(field)) {
                    let desired = to_desired(&changed(config, place, value), None);
                    let says = |fault: &Trouble| fault.severity == Severity::Warning && fault.text.contains(&name);
                    if !new_warnings(&desired, base).any(says) {
                        wrong.push(format!("{path} = {value:?}: expected a warning that names {name:?}"));
                    }
                }
            }
            None if ELSEWHERE.iter().any(|other| path.starts_with(other)) => {}
            None => {
                acted += usize::from(!inert);
                let effect = bases.iter().any(|(config, base)| {
                    values(field).iter().any(|value| to_desired(&changed(config, place, value), None) != *base)
                });
                if effect == inert {
                    wrong.push(format!(
                        "{path}: listed as {}, found otherwise",
                        if inert { "inert" } else { "acted on" }
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} places:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    assert!(acted > 100 && named > 200, "{acted} acted on, {named} named");
}

#[test]
fn values_that_mean_the_same_here_and_not_in_eve_are_named() {
    let mut all = Vec::new();
    places(&DESCRIPTOR, &Vec::new(), &mut all);
    let config = rich();
    let base = to_desired(&config, None);
    for (path, values, instead) in VALUES {
        let place = all.iter().find(|place| path_of(place) == *path).expect("a field");
        for value in *values {
            let value = prost_reflect::Value::EnumNumber(i32::try_from(*value).expect("an enum"));
            let desired = to_desired(&changed(&config, place, &value), None);
            assert!(new_warnings(&desired, &base).any(|fault| fault.text.contains(instead)), "{path} {value:?}");
        }
    }
}

#[test]
fn fields_newer_than_the_messages_known_here_are_named_by_number() {
    let config = good();
    let mut app = config.apps[0].encode_to_vec();
    app.extend([0xd8, 0x0f, 1]); // field 251, number 1
    let mut encoded = EdgeDevConfig { apps: Vec::new(), ..config.clone() }.encode_to_vec();
    encoded.extend([0x22, u8::try_from(app.len() & 0x7f).expect("seven bits") | 0x80]);
    encoded.push(u8::try_from(app.len() >> 7).expect("a short app"));
    encoded.extend(&app);
    encoded.extend([0xe0, 0x0f, 1]); // field 252
    let mut response = vec![0x0a, u8::try_from(encoded.len() & 0x7f).expect("seven bits") | 0x80];
    response.push(u8::try_from(encoded.len() >> 7).expect("a short config"));
    response.extend(&encoded);
    let decoded = ConfigResponse::decode(response.as_slice()).expect("a response").config.expect("a config");
    let desired = from_response(&decoded, &response, None);
    let found: Vec<_> = desired.faults.iter().map(|fault| (fault.on.kind, fault.text.as_str())).collect();
    assert_eq!(
        found,
        [
            (ObjectKind::Device, "field 252 of EdgeDevConfig: not supported by this version; ignored"),
            (ObjectKind::App, "field 251 of AppInstanceConfig: not supported by this version; ignored"),
        ]
    );
    assert_eq!(desired.apps.len(), 1, "the app runs all the same");
}

#[test]
fn one_object_has_one_warning_with_a_bounded_list() {
    let mut config = rich();
    let resources = config.apps[0].fixedresources.as_mut().expect("resources");
    (resources.enable_vnc, resources.pin_cpu, resources.vnc_display) = (true, true, 3);
    (resources.kernel, resources.ramdisk, resources.cpus) = ("k".into(), "r".into(), "1".into());
    (resources.bootloader, resources.extraargs, resources.devicetree) = ("b".into(), "e".into(), "d".into());
    (resources.vnc_passwd, resources.disable_vtpm, resources.boot_mode) = ("p".into(), true, 1);
    (resources.vmm_maxmem, resources.boot_order) = (1, 1);
    let desired = to_desired(&config, None);
    let [warning] = desired.faults.as_slice() else { panic!("{:#?}", desired.faults) };
    assert_eq!(warning.severity, Severity::Warning);
    assert!(warning.text.starts_with("fixedresources.kernel, "), "{}", warning.text);
    assert!(warning.text.ends_with(" and 2 more: not supported by this version; ignored"), "{}", warning.text);
}
