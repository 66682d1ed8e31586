use super::*;
use crate::app::{App, VolumeRef};
use crate::base_os::BaseOs;
use crate::net::{AppInterface, InstanceKind, NetworkInstance};
use crate::storage::{ContentTree, Datastore, DatastoreKind, ImageFormat, Volume, VolumeOrigin};
use crate::trouble::Object;
use proptest::prelude::*;

const STORE: Uuid = Uuid::from_u128(1);
const TREE: Uuid = Uuid::from_u128(2);
const VOLUME: Uuid = Uuid::from_u128(3);
const INSTANCE: Uuid = Uuid::from_u128(4);
const APP: Uuid = Uuid::from_u128(5);

fn good() -> Desired {
    Desired {
        datastores: vec![Datastore {
            id: STORE,
            kind: DatastoreKind::Https,
            host: "store".into(),
            path: String::new(),
            user: String::new(),
            password: String::new(),
            ca_pem: vec![],
        }],
        contents: vec![ContentTree {
            id: TREE,
            name: "tree".into(),
            datastores: vec![STORE],
            path: "web:1".into(),
            format: ImageFormat::Container,
            sha256: String::new(),
            max_size_bytes: 0,
            generation: 0,
        }],
        volumes: vec![Volume {
            id: VOLUME,
            name: "volume".into(),
            origin: VolumeOrigin::Content(TREE),
            generation: 1,
            max_size_bytes: 0,
            read_only: false,
        }],
        instances: vec![NetworkInstance {
            id: INSTANCE,
            version: String::new(),
            name: "net".into(),
            kind: InstanceKind::Switch,
            activate: true,
            uplinks: vec![],
            v4: None,
            v6: None,
            dns: vec![],
            domain: String::new(),
            names: vec![],
            mtu: None,
        }],
        apps: vec![App {
            id: APP,
            name: "web".into(),
            purge_counter: 1,
            volumes: vec![VolumeRef { volume: VOLUME, generation: 1, mount_dir: String::new() }],
            interfaces: vec![AppInterface { name: "eth0".into(), instance: INSTANCE, ..AppInterface::default() }],
            ..App::default()
        }],
        base_os: Some(BaseOs { content: TREE, activate: true, version: "2".into(), retry_counter: 0 }),
        ..Desired::default()
    }
}

fn fault(kind: ObjectKind, id: impl ToString, name: &str, text: &str) -> Trouble {
    Trouble::error(Object::new(kind, id, name), text)
}

#[test]
fn an_app_with_a_fault_runs_on_in_its_last_good_form_with_all_it_needs() {
    let last = good();
    let text = "interface \"eth0\": rule 1: typo; the app is not run";
    let mut new = Desired { faults: vec![fault(ObjectKind::App, APP, "web", text)], ..Desired::default() };
    keep_last_good(&last, &mut new);
    let expected = "interface \"eth0\": rule 1: typo; the last good configuration stays in force";
    assert_eq!(new.faults[0].text, expected);
    new.faults.clear();
    assert_eq!(new, Desired { base_os: None, ..last });
}

#[test]
fn a_fault_below_keeps_everything_above_it() {
    let last = good();
    let id = TREE.to_string().to_uppercase();
    let mut new = Desired {
        faults: vec![
            fault(ObjectKind::Datastore, STORE, "store", "certificate: typo; it is not used"),
            fault(ObjectKind::Content, id, "tree", "datastore 1: it has a fault; the image is not fetched"),
            fault(ObjectKind::Volume, VOLUME, "volume", "content tree 2: it has a fault; the volume is not made"),
            fault(ObjectKind::App, APP, "web", "volume 3: it has a fault; the app is not run"),
            fault(ObjectKind::BaseOs, TREE, "2", "content tree 2: it has a fault; no update is started"),
        ],
        instances: last.instances.clone(),
        ..Desired::default()
    };
    keep_last_good(&last, &mut new);
    assert!(new.faults.iter().all(|fault| fault.text.ends_with(STAYS)), "{:#?}", new.faults);
    new.faults.clear();
    assert_eq!(new, last);
}

#[test]
fn what_the_config_has_no_more_goes_and_warnings_keep_nothing() {
    let mut new = Desired::default();
    new.faults.push(Trouble::warning(Object::new(ObjectKind::App, APP, "web"), "VNC: not supported; ignored"));
    new.faults.push(fault(ObjectKind::App, Uuid::from_u128(99), "web", "another app; the app is not run"));
    let before = new.clone();
    keep_last_good(&good(), &mut new);
    assert_eq!(new, before);
}

#[test]
fn a_typo_in_the_id_itself_is_found_by_the_name() {
    let mut new = good();
    new.apps.clear();
    new.faults.push(fault(ObjectKind::App, "not-a-uuid", "web", "id: expected a UUID; the app is not run"));
    keep_last_good(&good(), &mut new);
    assert_eq!(new.apps, good().apps);
}

#[test]
fn a_kept_app_keeps_the_generation_of_its_volume_and_counters_act_after_the_repair() {
    let last = good();
    let mut new = good();
    new.volumes[0].generation = 2;
    let repaired = App {
        purge_counter: 2,
        volumes: vec![VolumeRef { volume: VOLUME, generation: 2, mount_dir: String::new() }],
        ..new.apps.remove(0)
    };
    let mut broken = new.clone();
    broken.faults.push(fault(ObjectKind::App, APP, "web", "interface: typo; the app is not run"));
    keep_last_good(&last, &mut broken);
    assert_eq!((broken.volumes[0].generation, broken.apps[0].purge_counter), (1, 1));
    new.apps.push(repaired);
    let expected = new.clone();
    keep_last_good(&broken, &mut new);
    assert_eq!(new, expected, "the repaired config is taken as it is");
}

proptest! {
    /// Whatever is missing and whatever has a fault: what comes back was there before, nothing of the new config is lost, and a kept
    /// app finds everything that it refers to.
    #[test]
    fn kept_objects_are_old_ones_with_all_they_need(present in 0_u8..64, faulty in 0_u8..64) {
        let last = good();
        let mut new = good();
        let bit = |set: u8, n: u8| set & (1 << n) != 0;
        if !bit(present, 0) { new.datastores.clear(); }
        if !bit(present, 1) { new.contents.clear(); }
        if !bit(present, 2) { new.volumes.clear(); }
        if !bit(present, 3) { new.instances.clear(); }
        if !bit(present, 4) { new.apps.clear(); }
        if !bit(present, 5) { new.base_os = None; }
        let objects = [
            (ObjectKind::Datastore, STORE), (ObjectKind::Content, TREE), (ObjectKind::Volume, VOLUME),
            (ObjectKind::NetworkInstance, INSTANCE), (ObjectKind::App, APP), (ObjectKind::BaseOs, TREE),
        ];
        for (n, (kind, id)) in (0..).zip(objects) {
            if bit(faulty, n) { new.faults.push(fault(kind, id, "x", "typo; it is not made")); }
        }
        let before = new.clone();
        keep_last_good(&last, &mut new);
        prop_assert_eq!(new.apps.len(), usize::from(bit(present, 4) || bit(faulty, 4)));
        prop_assert_eq!(new.base_os.is_some(), bit(present, 5) || bit(faulty, 5));
        prop_assert!(before.volumes.iter().all(|o| new.volumes.contains(o)));
        prop_assert!(new.volumes.iter().all(|o| last.volumes.contains(o)));
        if bit(faulty, 4) && !bit(present, 4) {
            prop_assert_eq!(&new.volumes, &last.volumes);
            prop_assert_eq!(&new.contents, &last.contents);
            prop_assert_eq!(&new.datastores, &last.datastores);
            prop_assert_eq!(&new.instances, &last.instances);
        }
        let once = new.clone();
        keep_last_good(&last, &mut new);
        prop_assert_eq!(new.apps, once.apps);
    }
}
