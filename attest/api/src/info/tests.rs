use super::*;
use crate::proto::info::{
    AttestationState as WireAttestation, BaseOsStatus as WireBaseOs, DataSecAtRestStatus, HwSecurityModuleStatus,
    MaintenanceModeReason, ZDeviceState, ZInfoDevice, ZNetworkInstanceState, ZSwState,
};
use holdfast_model::net::{
    Adapter, Addressing4, Addressing6, InstanceKind, Layers, PathTest, PortConfig, PortConfigSource, PortConfigs,
    Static, Verdict,
};
use holdfast_model::observed::{
    AppInterfaceStatus, AppState, AppStatus, AttestationState, DeviceState, InstanceStatus, PortStatus, Tens,
};
use holdfast_model::slot::{BaseOsStatus, BaseOsSubStatus, PartitionState, Slot, SlotStatus};
use holdfast_model::trouble::{Object, Trouble};
use std::time::Duration;
use uuid::Uuid;

fn context() -> Context<'static> {
    Context { now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000), properties: None, gauges: None }
}

fn observed() -> Observed {
    let mut observed = Observed::default();
    observed.device.id = Uuid::from_u128(1);
    observed.device.state = DeviceState::Online;
    observed.device.cpus = 4;
    observed.device.memory_bytes = 2048 * MIB;
    observed.device.trust.tpm = true;
    observed.device.trust.vault_open = true;
    observed.device.trust.vault_sealed = true;
    observed.device.attestation = AttestationState::Complete;
    let slot = |slot, running, version: &str| SlotStatus {
        slot,
        running,
        version: version.to_owned(),
        partition_state: if running { PartitionState::Active } else { PartitionState::Unused },
        status: if running { BaseOsStatus::Updated } else { BaseOsStatus::Failed },
        sub_status: BaseOsSubStatus::None,
        sub_status_progress: Tens::default(),
        reason: if running { String::new() } else { "controller not reached in 300 s".to_owned() },
    };
    observed.device.slots = vec![slot(Slot::A, false, "2"), slot(Slot::B, true, "1")];
    observed.device.troubles = observed.device.slots.iter().filter_map(SlotStatus::trouble).collect();
    observed.ports.push(PortStatus {
        name: "eth0".to_owned(),
        interface: "eth0".to_owned(),
        up: true,
        management: true,
        dhcp: true,
        addresses: vec!["192.0.2.5".parse().expect("address")],
        prefix_length: 24,
        ..PortStatus::default()
    });
    observed.instances.push(InstanceStatus {
        id: Uuid::from_u128(3),
        name: "n1".to_owned(),
        kind: InstanceKind::Local,
        activated: true,
        assignments: vec![
            ([2, 0, 0, 0, 0, 1], "10.1.0.2".parse().expect("address")),
            ([2, 0, 0, 0, 0, 1], "10.1.0.3".parse().expect("address")),
        ],
        ..InstanceStatus::default()
    });
    observed.apps.push(AppStatus {
        id: Uuid::from_u128(7),
        name: "web".to_owned(),
        state: AppState::Running,
        interfaces: vec![AppInterfaceStatus {
            name: "nic".to_owned(),
            addresses: vec!["10.1.0.2".parse().expect("address")],
            ..AppInterfaceStatus::default()
        }],
        ..AppStatus::default()
    });
    observed
}

fn device(observed: &Observed) -> ZInfoDevice {
    match messages(observed, context()).remove(0).1.info_content {
        Some(InfoContent::Dinfo(device)) => device,
        other => panic!("first message is {other:?}"),
    }
}

#[test]
fn device_fields_that_testers_read_are_filled() {
    let device = device(&observed());
    assert_eq!((device.ncpu, device.memory), (4, 2048));
    assert_eq!(device.state(), ZDeviceState::ZdeviceStateOnline);
    assert_eq!(device.hsm_status(), HwSecurityModuleStatus::Enabled);
    assert_eq!(device.attestation_info.expect("attestation").state(), WireAttestation::Complete);
    assert_eq!(device.data_sec_at_rest_info.expect("vault").status(), DataSecAtRestStatus::DatasecAtRestEnabled);
    let port = &device.system_adapter.expect("adapters").status[0].ports[0];
    assert_eq!((port.name.as_str(), port.ip_addrs[0].as_str(), port.dhcp_type), ("eth0", "192.0.2.5", 4));
    assert_eq!(device.app_instances[0].name, "web");
}

#[test]
fn every_port_configuration_is_reported_and_the_one_in_use_with_what_is_so() {
    let adapter = Adapter {
        name: "wan".into(),
        on: "up".into(),
        network: None,
        v4: Addressing4::Static(Static { address: [198, 51, 100, 7].into(), prefix_length: 24, gateway: None }),
        v6: Addressing6::None,
        dns: Vec::new(),
        domain: String::new(),
        mtu: None,
        cost: 3,
        management: true,
        labels: Vec::new(),
    };
    let config = |source, failed_seconds, succeeded_seconds| PortConfig {
        source,
        layers: Layers { adapters: vec![adapter.clone()], ..Layers::default() },
        made_seconds: 50,
        verdict: Verdict::Untested,
        succeeded_seconds,
        failed_seconds,
        error: if failed_seconds > 0 { "no contact".into() } else { String::new() },
        paths: [("wan".to_owned(), PathTest { error: "timeout".into(), failed_seconds: 90, ..PathTest::default() })]
            .into(),
    };
    let mut observed = observed();
    let list = vec![config(PortConfigSource::Controller, 100, 0), config(PortConfigSource::Site, 0, 200)];
    observed.port_configs = PortConfigs { current: 1, list };
    let info = device(&observed).system_adapter.expect("adapters");
    assert_eq!(info.current_index, 1);
    let [given_up, in_use] = info.status.as_slice() else { panic!("{info:?}") };
    let seconds = |stamp: &Option<prost_types::Timestamp>| stamp.as_ref().map(|stamp| stamp.seconds);
    assert_eq!((given_up.key.as_str(), in_use.key.as_str()), ("zedagent", "bootstrap"));
    assert_eq!((seconds(&given_up.last_failed), seconds(&given_up.last_succeeded)), (Some(100), None));
    assert_eq!((seconds(&in_use.last_failed), seconds(&in_use.last_succeeded)), (None, Some(200)));
    assert_eq!((given_up.last_error.as_str(), seconds(&given_up.time_priority)), ("no contact", Some(50)));
    let port = &given_up.ports[0];
    assert_eq!((port.name.as_str(), port.dhcp_type, port.subnet.as_str()), ("wan", 1, "198.51.100.7/24"));
    assert_eq!(port.err.as_ref().map(|error| error.description.as_str()), Some("timeout"));
    assert_eq!((in_use.ports[0].name.as_str(), in_use.ports[0].dhcp_type), ("eth0", 4));

    observed.port_configs = PortConfigs::default();
    observed.ports[0].dhcp = false;
    observed.ports[0].addresses.clear();
    let info = device(&observed).system_adapter.expect("adapters");
    assert_eq!((info.status.len(), info.status[0].ports[0].dhcp_type), (1, 2), "no IP at all");
}

#[test]
fn a_closed_vault_says_why_and_one_that_escrow_opened_says_so() {
    let mut observed = observed();
    observed.device.trust.vault_note = "opened with the key from escrow".into();
    observed.device.trust.weaknesses = vec!["old TPM".into()];
    let vault = device(&observed).data_sec_at_rest_info.expect("vault");
    assert_eq!(vault.status(), DataSecAtRestStatus::DatasecAtRestEnabled);
    assert_eq!(vault.info, "opened with the key from escrow; old TPM");
    assert_eq!(vault.vault_list[0].vault_err, None);

    observed.device.trust.vault_open = false;
    observed.device.trust.vault_note = "sealed under another release key".into();
    observed.device.troubles.extend(observed.device.trust.trouble());
    observed.device.maintenance = "the vault is closed".into();
    let device = device(&observed);
    let vault = device.data_sec_at_rest_info.as_ref().expect("vault");
    assert_eq!((vault.status(), vault.info.as_str()), (DataSecAtRestStatus::DatasecAtRestError, "old TPM"));
    let error = vault.vault_list[0].vault_err.as_ref().expect("an error");
    assert_eq!(error.description, "sealed under another release key");
    assert_eq!(device.maintenance_mode_reasons().next(), Some(MaintenanceModeReason::VaultLockedUp));
}

#[test]
fn running_slot_comes_first_and_a_failed_trial_says_why() {
    let device = device(&observed());
    assert_eq!(device.sw_list[0].short_version, "1");
    assert_eq!(device.sw_list[0].partition_label, "IMGB");
    assert!(device.sw_list[0].activated);
    assert_eq!(device.sw_list[1].user_status(), WireBaseOs::Failed);
    assert!(device.sw_list[1].sw_err.as_ref().expect("error").description.contains("300 s"));
}

#[test]
fn app_and_instance_show_state_and_addresses() {
    let messages = messages(&observed(), context());
    let Some(InfoContent::Ainfo(app)) = &messages[1].1.info_content else { panic!("{:?}", messages[1]) };
    assert_eq!(app.state(), ZSwState::Running);
    assert_eq!(app.network[0].ip_addrs, ["10.1.0.2"]);
    let Some(InfoContent::Niinfo(instance)) = &messages[2].1.info_content else { panic!("{:?}", messages[2]) };
    assert_eq!(instance.state(), ZNetworkInstanceState::ZnetinstStateOnline);
    assert!(instance.activated);
    assert_eq!(instance.ip_assignments[0].ip_address, ["10.1.0.2", "10.1.0.3"]);
}

#[test]
fn object_that_is_only_a_fault_is_reported_in_error_with_its_text() {
    let mut observed = observed();
    let fault =
        |kind, id: &str| Trouble::error(Object::new(kind, id, &format!("{id} name")), format!("{id} is broken"));
    observed.faults = vec![
        fault(ObjectKind::App, "app"),
        fault(ObjectKind::NetworkInstance, "instance"),
        fault(ObjectKind::Volume, "volume"),
        fault(ObjectKind::Content, "tree"),
        fault(ObjectKind::Adapter, "eth1"),
        fault(ObjectKind::Network, "network"),
        fault(ObjectKind::Datastore, "store"),
        fault(ObjectKind::Property, "timer.x"),
        fault(ObjectKind::BaseOs, "os"),
        fault(ObjectKind::Device, "device"),
    ];
    let text = format!("{:?}", messages(&observed, context()));
    for fault in &observed.faults {
        assert!(text.contains(&fault.text), "{}", fault.text);
    }
    let messages = messages(&observed, context());
    let app = messages.iter().find(|(key, _)| key.id == "app").expect("app").1.clone();
    let Some(InfoContent::Ainfo(app)) = app.info_content else { panic!("no app") };
    assert_eq!(app.state(), ZSwState::Error);
    assert_eq!(app.app_name, "app name");
    assert!(device(&observed).app_instances.iter().any(|app| app.uuid == "app"));
}

#[test]
fn gone_app_has_state_invalid_and_gone_instance_unspecified() {
    let now = context().now;
    let app = gone(&InfoKey::new(InfoKind::App, "a"), &Uuid::nil(), now).expect("message");
    assert!(
        matches!(app.info_content, Some(InfoContent::Ainfo(app)) if app.state() == ZSwState::Invalid && app.app_id == "a")
    );
    let instance = gone(&InfoKey::new(InfoKind::NetworkInstance, "n"), &Uuid::nil(), now).expect("message");
    let Some(InfoContent::Niinfo(instance)) = instance.info_content else { panic!("no instance") };
    assert_eq!(instance.state(), ZNetworkInstanceState::ZnetinstStateUnspecified);
    assert!(gone(&InfoKey::new(InfoKind::Device, ""), &Uuid::nil(), now).is_none());
}

#[test]
fn same_state_at_another_time_says_the_same() {
    let mut broken = observed();
    broken.apps[0].troubles = vec![Trouble::error(Object::new(ObjectKind::App, "7", "web"), "no memory")];
    broken.ports[0].troubles = vec![Trouble::error(Object::new(ObjectKind::Adapter, "eth0", "eth0"), "no link")];
    let later = Context { now: context().now + Duration::from_secs(60), ..context() };
    for ((_, first), (_, second)) in messages(&broken, context()).iter().zip(&messages(&broken, later)) {
        assert_ne!(first, second);
        assert_eq!(without_stamp(first), without_stamp(second));
    }
}

#[test]
fn a_second_object_with_the_id_of_the_first_is_an_error_of_the_first() {
    let mut observed = observed();
    let id = observed.apps[0].id.to_string();
    let second = Object::new(ObjectKind::App, id.to_uppercase(), "second");
    observed.faults = vec![Trouble::error(second, "a second object with this id; only the first is used")];
    let messages = messages(&observed, context());
    let apps: Vec<_> = messages.iter().filter(|(key, _)| key.kind == InfoKind::App).collect();
    let [(_, ZInfoMsg { info_content: Some(InfoContent::Ainfo(app)), .. })] = apps.as_slice() else {
        panic!("{apps:?}")
    };
    assert_eq!(app.state(), ZSwState::Running);
    assert!(app.app_err[0].description.contains("a second object"), "{:?}", app.app_err);
}

#[test]
fn a_warning_on_a_network_instance_leaves_it_online() {
    let mut observed = observed();
    let on = Object::new(ObjectKind::NetworkInstance, observed.instances[0].id, "n1");
    observed.instances[0].troubles = vec![Trouble::warning(on, "one of two ports is down")];
    let messages = messages(&observed, context());
    let Some(InfoContent::Niinfo(instance)) = &messages[2].1.info_content else { panic!("{:?}", messages[2]) };
    assert_eq!(instance.state(), ZNetworkInstanceState::ZnetinstStateOnline);
    assert_eq!(instance.network_err.len(), 1);
}
