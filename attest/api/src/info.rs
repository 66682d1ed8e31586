//! From [`Observed`] to `ZInfoMsg`: one message for each object, keyed so that a newer one replaces an older one.
//!
//! An object that exists only as a fault of the config is reported too: in error, with the fault's text. Faults that
//! belong to no object with a message of its own (datastores, networks, the device) are reported as errors of
//! configuration items named `config/<kind>/<id>`.

use crate::proto::info::{
    ApiCapability, AttestationInfo, AttestationState as WireAttestation,
    BaseOsStatus as WireBaseOs, BaseOsSubStatus as WireBaseOsSub, BootReason as WireBootReason,
    ContentResources, DataSecAtRest, DataSecAtRestStatus, DeviceEntity, DevicePort,
    DevicePortStatus, Entity, ErrorInfo, HwSecurityModuleStatus, MaintenanceModeReason, PcrStatus,
    Severity, SystemAdapterInfo, VaultInfo, VolumeResources, ZDeviceState, ZInfoApp,
    ZInfoAppInstance, ZInfoBlob, ZInfoBlobList, ZInfoConfigItem, ZInfoConfigItemStatus,
    ZInfoContentTree, ZInfoDevSw, ZInfoDevice, ZInfoDns, ZInfoManufacturer, ZInfoMsg, ZInfoNetwork,
    ZInfoNetworkInstance, ZInfoStorage, ZInfoTypes, ZInfoVolume, ZNetworkInstanceState, ZSwState,
    ZmetIpAssignmentEntry, ZmetVifInfo, z_info_msg::InfoContent,
};
use holdfast_model::desired::{Fault, ObjectKind};
use holdfast_model::net::mac_text;
use holdfast_model::observed::{
    AppState, AppStatus, AttestationState, BootReason, ContentStatus, DeviceState, InstanceStatus,
    LoadState, Observed, PortStatus, VolumeStatus,
};
use holdfast_model::properties::Properties;
use holdfast_model::slot::{BaseOsStatus, BaseOsSubStatus, PartitionState, Slot, SlotStatus};
use prost_types::Timestamp;
use std::collections::BTreeMap;
use std::time::SystemTime;

/// Highest level of the API that is really done here; a number claims all lower ones.
pub const API_CAPABILITY: ApiCapability = ApiCapability::StartDelayInSeconds;

/// One mebibyte: the unit of sizes in info and metrics.
pub(crate) const MIB: u64 = 1 << 20;

/// What a report needs beside the observed state.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// When the report is made.
    pub now: SystemTime,
    /// Properties in force, to be echoed; `None` before the first config.
    pub properties: Option<&'a Properties>,
}

/// What an info message is about. A message replaces an older one of the same key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InfoKey {
    /// Kind of the object.
    pub kind: InfoKind,
    /// Its id; empty for the device and the blob list.
    pub id: String,
}

/// Kinds of info messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InfoKind {
    /// The device.
    Device,
    /// An app.
    App,
    /// A network instance.
    NetworkInstance,
    /// A volume.
    Volume,
    /// A content tree.
    Content,
    /// All blobs.
    Blobs,
}

impl InfoKey {
    fn new(kind: InfoKind, id: impl ToString) -> Self {
        Self {
            kind,
            id: id.to_string(),
        }
    }
}

/// All messages that describe `observed`, the device first.
#[must_use]
pub fn messages(observed: &Observed, context: Context<'_>) -> Vec<(InfoKey, ZInfoMsg)> {
    let report = Report {
        observed,
        context,
        at: Timestamp::from(context.now),
    };
    let mut out = vec![(
        InfoKey::new(InfoKind::Device, ""),
        report.message(ZInfoTypes::ZiDevice, InfoContent::Dinfo(report.device())),
    )];

    for app in &observed.apps {
        out.push((
            InfoKey::new(InfoKind::App, app.id),
            report.message(ZInfoTypes::ZiApp, InfoContent::Ainfo(report.app(app))),
        ));
    }
    for instance in &observed.instances {
        let content = InfoContent::Niinfo(report.instance(instance));
        out.push((
            InfoKey::new(InfoKind::NetworkInstance, instance.id),
            report.message(ZInfoTypes::ZiNetworkInstance, content),
        ));
    }
    for volume in &observed.volumes {
        let content = InfoContent::Vinfo(report.volume(volume));
        out.push((
            InfoKey::new(InfoKind::Volume, volume.id),
            report.message(ZInfoTypes::ZiVolume, content),
        ));
    }
    for tree in &observed.contents {
        let content = InfoContent::Cinfo(report.content(tree));
        out.push((
            InfoKey::new(InfoKind::Content, tree.id),
            report.message(ZInfoTypes::ZiContentTree, content),
        ));
    }
    if observed.contents.iter().any(|tree| !tree.sha256.is_empty()) {
        let content = InfoContent::Binfo(report.blobs());
        out.push((
            InfoKey::new(InfoKind::Blobs, ""),
            report.message(ZInfoTypes::ZiBlobList, content),
        ));
    }
    for fault in &observed.faults {
        if let Some((key, message)) = report.fault(fault) {
            if out.iter().all(|(other, _)| *other != key) {
                out.push((key, message));
            }
        }
    }
    out
}

/// The message that says an object is no longer there; `None` for the device and the blob list.
#[must_use]
pub fn gone(key: &InfoKey, device: &uuid::Uuid, now: SystemTime) -> Option<ZInfoMsg> {
    let id = key.id.clone();
    let (ztype, content) = match key.kind {
        InfoKind::Device | InfoKind::Blobs => return None,
        InfoKind::App => (
            ZInfoTypes::ZiApp,
            InfoContent::Ainfo(ZInfoApp {
                app_id: id,
                ..ZInfoApp::default()
            }),
        ),
        InfoKind::NetworkInstance => {
            let gone = ZInfoNetworkInstance {
                network_id: id,
                ..ZInfoNetworkInstance::default()
            };
            (ZInfoTypes::ZiNetworkInstance, InfoContent::Niinfo(gone))
        }
        InfoKind::Volume => (
            ZInfoTypes::ZiVolume,
            InfoContent::Vinfo(ZInfoVolume {
                uuid: id,
                ..ZInfoVolume::default()
            }),
        ),
        InfoKind::Content => (
            ZInfoTypes::ZiContentTree,
            InfoContent::Cinfo(ZInfoContentTree {
                uuid: id,
                ..ZInfoContentTree::default()
            }),
        ),
    };
    Some(ZInfoMsg {
        ztype: ztype.into(),
        dev_id: device.to_string(),
        at_time_stamp: Some(Timestamp::from(now)),
        info_content: Some(content),
    })
}

struct Report<'a> {
    observed: &'a Observed,
    context: Context<'a>,
    at: Timestamp,
}

impl Report<'_> {
    fn message(&self, ztype: ZInfoTypes, content: InfoContent) -> ZInfoMsg {
        ZInfoMsg {
            ztype: ztype.into(),
            dev_id: self.observed.device.id.to_string(),
            at_time_stamp: Some(self.at),
            info_content: Some(content),
        }
    }

    fn device(&self) -> ZInfoDevice {
        let device = &self.observed.device;
        let maintenance = !device.maintenance.is_empty();
        let reason = if device.trust.vault_open {
            MaintenanceModeReason::UserRequested
        } else {
            MaintenanceModeReason::VaultLockedUp
        };
        #[allow(deprecated)] // the struct has fields that are not filled
        ZInfoDevice {
            machine_arch: device.architecture.clone(),
            cpu_arch: device.architecture.clone(),
            platform: device.product.clone(),
            ncpu: device.cpus,
            memory: device.memory_bytes / MIB,
            storage: device.storage_bytes / MIB,
            minfo: Some(ZInfoManufacturer {
                manufacturer: device.manufacturer.clone(),
                product_name: device.product.clone(),
                serial_number: device.serial.clone(),
                bios_version: device.bios_version.clone(),
                ..ZInfoManufacturer::default()
            }),
            dns: self
                .observed
                .ports
                .iter()
                .find(|port| port.management && port.up)
                .map(dns),
            storage_list: vec![ZInfoStorage {
                device: "DATA".to_owned(),
                mount_path: "/data".to_owned(),
                total: device.storage_bytes / MIB,
                storage_location: true,
            }],
            boot_time: stamp(device.boot_time_seconds),
            sw_list: self.slots(),
            host_name: device.host_name.clone(),
            last_reboot_reason: device.last_reboot.text.clone(),
            last_reboot_time: stamp(device.last_reboot.time_seconds),
            system_adapter: Some(self.adapters()),
            restart_counter: u32::try_from(device.boot_count).unwrap_or(u32::MAX),
            hsm_status: if device.trust.tpm {
                HwSecurityModuleStatus::Enabled
            } else {
                HwSecurityModuleStatus::Notfound
            }
            .into(),
            hsm_info: hsm_text(device),
            data_sec_at_rest_info: Some(self.vault()),
            config_item_status: Some(self.config_items()),
            app_instances: self.app_instances(),
            reboot_config_counter: device.reboot_counter,
            last_boot_reason: boot_reason(device.last_reboot.reason).into(),
            maintenance_mode: maintenance,
            maintenance_mode_reasons: if maintenance {
                vec![reason.into()]
            } else {
                Vec::new()
            },
            reboot_inprogress: device.state == DeviceState::Rebooting,
            state: device_state(device.state).into(),
            attestation_info: Some(AttestationInfo {
                state: attestation_state(device.attestation).into(),
                error: self.error(&device.attestation_error, Entity::Attestation, "", ""),
            }),
            api_capability: API_CAPABILITY.into(),
            ..ZInfoDevice::default()
        }
    }

    /// The running slot first, as testers and controllers expect.
    fn slots(&self) -> Vec<ZInfoDevSw> {
        let mut slots: Vec<&SlotStatus> = self.observed.device.slots.iter().collect();
        slots.sort_by_key(|slot| !slot.running);
        let fault = self
            .observed
            .faults
            .iter()
            .find(|fault| fault.kind == ObjectKind::BaseOs);
        slots
            .into_iter()
            .map(|slot| self.slot(slot, fault.filter(|_| !slot.running)))
            .collect()
    }

    fn slot(&self, slot: &SlotStatus, fault: Option<&Fault>) -> ZInfoDevSw {
        let (label, device) = match slot.slot {
            Slot::A => ("IMGA", "OS-A"),
            Slot::B => ("IMGB", "OS-B"),
        };
        let text = fault.map_or(&slot.reason, |fault| &fault.text);
        let status = match slot.status {
            BaseOsStatus::Downloading => ZSwState::DownloadStarted,
            BaseOsStatus::DownloadDone => ZSwState::Delivered,
            BaseOsStatus::Failed => ZSwState::Error,
            _ if slot.version.is_empty() => ZSwState::Initial,
            _ => ZSwState::Installed,
        };
        ZInfoDevSw {
            // EVE's sense of the word: the image that is booted or to be booted.
            activated: slot.running || slot.partition_state == PartitionState::Active,
            partition_label: label.to_owned(),
            partition_device: device.to_owned(),
            partition_state: slot.partition_state.as_str().to_owned(),
            status: status.into(),
            short_version: slot.version.clone(),
            long_version: slot.version.clone(),
            sw_err: self.error(text, Entity::BaseOs, &slot.slot.to_string(), &slot.version),
            download_progress: match slot.status {
                BaseOsStatus::DownloadDone | BaseOsStatus::Updating | BaseOsStatus::Updated => 100,
                _ => 0,
            },
            user_status: match slot.status {
                BaseOsStatus::None => WireBaseOs::None,
                BaseOsStatus::Downloading => WireBaseOs::Downloading,
                BaseOsStatus::DownloadDone => WireBaseOs::DownloadDone,
                BaseOsStatus::Updating => WireBaseOs::Updating,
                BaseOsStatus::Updated => WireBaseOs::Updated,
                BaseOsStatus::Fallback => WireBaseOs::Fallback,
                BaseOsStatus::Failed => WireBaseOs::Failed,
            }
            .into(),
            sub_status_str: slot.reason.clone(),
            sub_status: match slot.sub_status {
                BaseOsSubStatus::None => WireBaseOsSub::NoneSubstatus,
                BaseOsSubStatus::Installing => WireBaseOsSub::UpdateInitializing,
                BaseOsSubStatus::Rebooting => WireBaseOsSub::UpdateRebooting,
                BaseOsSubStatus::Testing => WireBaseOsSub::UpdateTesting,
            }
            .into(),
            sub_status_progress: slot.sub_status_progress,
        }
    }

    fn adapters(&self) -> SystemAdapterInfo {
        let mut ports: Vec<DevicePort> = self
            .observed
            .ports
            .iter()
            .map(|port| self.port(port))
            .collect();
        let mut others = Vec::new();
        for fault in &self.observed.faults {
            let entity = match fault.kind {
                ObjectKind::Port => Entity::Port,
                ObjectKind::Adapter => Entity::SystemAdapter,
                ObjectKind::Network => {
                    others.push(format!("network {}: {}", fault.name, fault.text));
                    continue;
                }
                _ => continue,
            };
            let err = self.error(&fault.text, entity, &fault.id, &fault.name);
            match ports.iter_mut().find(|port| port.name == fault.name) {
                Some(port) if port.err.is_none() => port.err = err,
                Some(_) => {}
                None => ports.push(DevicePort {
                    name: fault.name.clone(),
                    err,
                    ..DevicePort::default()
                }),
            }
        }
        SystemAdapterInfo {
            current_index: 0,
            status: vec![DevicePortStatus {
                version: 1,
                key: "zedagent".to_owned(), // EVE's word for "from the controller"
                last_succeeded: Some(self.at),
                ports,
                last_error: others.join("; "),
                ..DevicePortStatus::default()
            }],
        }
    }

    fn port(&self, port: &PortStatus) -> DevicePort {
        DevicePort {
            ifname: port.interface.clone(),
            name: port.name.clone(),
            is_mgmt: port.management,
            free: port.cost == 0,
            dhcp_type: if port.dhcp { 4 } else { 1 },
            subnet: subnet(port),
            gateway: port
                .gateways
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
            domainname: port.domain.clone(),
            dns_servers: texts(&port.dns),
            mac_addr: mac_text(port.mac),
            ip_addrs: texts(&port.addresses),
            default_routers: texts(&port.gateways),
            dns: Some(dns(port)),
            up: port.up,
            err: self.error(&port.error, Entity::SystemAdapter, &port.name, &port.name),
            cost: port.cost.into(),
            mtu: port.mtu,
            ..DevicePort::default()
        }
    }

    fn vault(&self) -> DataSecAtRest {
        let trust = &self.observed.device.trust;
        let status = match (trust.vault_open, trust.vault_sealed) {
            (true, true) => DataSecAtRestStatus::DatasecAtRestEnabled,
            (true, false) => DataSecAtRestStatus::DatasecAtRestDisabled,
            (false, _) => DataSecAtRestStatus::DatasecAtRestError,
        };
        let text = if trust.vault_open {
            ""
        } else {
            "the vault is not open"
        };
        DataSecAtRest {
            status: status.into(),
            info: trust.weaknesses.join("; "),
            vault_list: vec![VaultInfo {
                name: "Application Data Store".to_owned(),
                status: status.into(),
                vault_err: self.error(text, Entity::Vault, "", "Application Data Store"),
                pcr_status: if trust.vault_sealed {
                    PcrStatus::PcrEnabled
                } else {
                    PcrStatus::PcrDisabled
                }
                .into(),
            }],
        }
    }

    fn config_items(&self) -> ZInfoConfigItemStatus {
        let mut status = ZInfoConfigItemStatus::default();
        if let Some(properties) = self.context.properties {
            for (key, value) in property_values(properties) {
                status.config_items.insert(
                    key.to_owned(),
                    ZInfoConfigItem {
                        value,
                        error: String::new(),
                    },
                );
            }
            for (key, value) in &properties.unknown {
                let item = ZInfoConfigItem {
                    value: value.clone(),
                    error: "not known to this device".to_owned(),
                };
                status.unknown_config_items.insert(key.clone(), item);
            }
        }
        for fault in &self.observed.faults {
            let key = match fault.kind {
                ObjectKind::Property => fault.id.clone(),
                ObjectKind::Device => format!("config/device/{}", fault.id),
                ObjectKind::Datastore => format!("config/datastore/{}", fault.id),
                ObjectKind::Network => format!("config/network/{}", fault.id),
                _ => continue,
            };
            status.config_items.entry(key).or_default().error = fault.text.clone();
        }
        status
    }

    /// Every app still present, those in error included: a tester sees a deletion by absence here.
    fn app_instances(&self) -> Vec<ZInfoAppInstance> {
        let mut apps: BTreeMap<String, String> = BTreeMap::new();
        for fault in self
            .observed
            .faults
            .iter()
            .filter(|fault| fault.kind == ObjectKind::App)
        {
            apps.insert(fault.id.clone(), fault.name.clone());
        }
        for app in &self.observed.apps {
            apps.insert(app.id.to_string(), app.name.clone());
        }
        apps.into_iter()
            .map(|(uuid, name)| ZInfoAppInstance {
                domain_name: name.clone(),
                uuid,
                name,
            })
            .collect()
    }

    fn app(&self, app: &AppStatus) -> ZInfoApp {
        ZInfoApp {
            app_id: app.id.to_string(),
            app_version: app.version.clone(),
            app_name: app.name.clone(),
            boot_time: stamp(app.boot_time_seconds),
            app_err: self
                .error(
                    &app.error,
                    Entity::AppInstance,
                    &app.id.to_string(),
                    &app.name,
                )
                .into_iter()
                .collect(),
            state: app_state(app.state).into(),
            network: app
                .interfaces
                .iter()
                .map(|nic| ZInfoNetwork {
                    mac_addr: mac_text(nic.mac),
                    dev_name: nic.name.clone(),
                    ip_addrs: texts(&nic.addresses),
                    ipv4_up: nic.addresses.iter().any(std::net::IpAddr::is_ipv4),
                    local_name: nic.tap.clone(),
                    ..ZInfoNetwork::default()
                })
                .collect(),
            volume_refs: app.volumes.iter().map(ToString::to_string).collect(),
            ..ZInfoApp::default()
        }
    }

    fn instance(&self, instance: &InstanceStatus) -> ZInfoNetworkInstance {
        let mut assignments: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for (mac, ip) in &instance.assignments {
            assignments.entry(*mac).or_default().push(ip.to_string());
        }
        let state = match (instance.error.is_empty(), instance.activated) {
            (false, _) => ZNetworkInstanceState::ZnetinstStateError,
            (true, true) => ZNetworkInstanceState::ZnetinstStateOnline,
            (true, false) => ZNetworkInstanceState::ZnetinstStateInit,
        };
        #[allow(deprecated)]
        ZInfoNetworkInstance {
            network_id: instance.id.to_string(),
            network_version: instance.version.clone(),
            inst_type: u32::try_from(instance.kind).unwrap_or(0),
            displayname: instance.name.clone(),
            activated: instance.activated,
            ports: if instance.uplink.is_empty() {
                Vec::new()
            } else {
                vec![instance.uplink.clone()]
            },
            bridge_name: instance.bridge.clone(),
            bridge_ip_addr: instance
                .address
                .map(|ip| ip.to_string())
                .unwrap_or_default(),
            ip_assignments: assignments
                .into_iter()
                .map(|(mac, ip_address)| ZmetIpAssignmentEntry {
                    mac_address: mac_text(mac),
                    ip_address,
                })
                .collect(),
            vifs: instance
                .interfaces
                .iter()
                .map(|(tap, mac, app)| ZmetVifInfo {
                    vif_name: tap.clone(),
                    mac_address: mac_text(*mac),
                    app_id: app.to_string(),
                })
                .collect(),
            network_err: self
                .error(
                    &instance.error,
                    Entity::NetworkInstance,
                    &instance.id.to_string(),
                    &instance.name,
                )
                .into_iter()
                .collect(),
            state: state.into(),
            ..ZInfoNetworkInstance::default()
        }
    }

    fn volume(&self, volume: &VolumeStatus) -> ZInfoVolume {
        ZInfoVolume {
            uuid: volume.id.to_string(),
            display_name: volume.name.clone(),
            resources: Some(VolumeResources {
                max_size_bytes: volume.max_size_bytes,
                cur_size_bytes: volume.used_bytes,
            }),
            state: load_state(volume.state).into(),
            progress_percentage: volume.progress,
            volume_err: self.error(
                &volume.error,
                Entity::Volume,
                &volume.id.to_string(),
                &volume.name,
            ),
            generation_count: volume.generation,
            ..ZInfoVolume::default()
        }
    }

    fn content(&self, tree: &ContentStatus) -> ZInfoContentTree {
        ZInfoContentTree {
            uuid: tree.id.to_string(),
            display_name: tree.name.clone(),
            sha256: tree.sha256.clone(),
            resources: Some(ContentResources {
                cur_size_bytes: tree.size_bytes,
            }),
            state: load_state(tree.state).into(),
            progress_percentage: tree.progress,
            err: self.error(
                &tree.error,
                Entity::ContentTree,
                &tree.id.to_string(),
                &tree.name,
            ),
            component_sha_list: if tree.sha256.is_empty() {
                Vec::new()
            } else {
                vec![tree.sha256.clone()]
            },
            ..ZInfoContentTree::default()
        }
    }

    fn blobs(&self) -> ZInfoBlobList {
        let with_digest = self
            .observed
            .contents
            .iter()
            .filter(|tree| !tree.sha256.is_empty());
        let blob = with_digest.map(|tree| ZInfoBlob {
            sha256: tree.sha256.clone(),
            resources: Some(ContentResources {
                cur_size_bytes: tree.size_bytes,
            }),
            state: load_state(tree.state).into(),
            progress_percentage: tree.progress,
            err: self.error(&tree.error, Entity::ContentBlob, &tree.sha256, &tree.name),
            ..ZInfoBlob::default()
        });
        ZInfoBlobList {
            blob: blob.collect(),
        }
    }

    /// The message of an object that exists only as a fault.
    fn fault(&self, fault: &Fault) -> Option<(InfoKey, ZInfoMsg)> {
        let (id, name) = (fault.id.clone(), fault.name.clone());
        let error = |entity| self.error(&fault.text, entity, &fault.id, &fault.name);
        let (kind, ztype, content) = match fault.kind {
            ObjectKind::App => {
                let app_err = error(Entity::AppInstance).into_iter().collect();
                let app = ZInfoApp {
                    app_id: id,
                    app_name: name,
                    app_err,
                    state: ZSwState::Error.into(),
                    ..ZInfoApp::default()
                };
                (InfoKind::App, ZInfoTypes::ZiApp, InfoContent::Ainfo(app))
            }
            ObjectKind::NetworkInstance => {
                let instance = ZInfoNetworkInstance {
                    network_id: id,
                    displayname: name,
                    network_err: error(Entity::NetworkInstance).into_iter().collect(),
                    state: ZNetworkInstanceState::ZnetinstStateError.into(),
                    ..ZInfoNetworkInstance::default()
                };
                (
                    InfoKind::NetworkInstance,
                    ZInfoTypes::ZiNetworkInstance,
                    InfoContent::Niinfo(instance),
                )
            }
            ObjectKind::Volume => {
                let volume = ZInfoVolume {
                    uuid: id,
                    display_name: name,
                    state: ZSwState::Error.into(),
                    volume_err: error(Entity::Volume),
                    ..ZInfoVolume::default()
                };
                (
                    InfoKind::Volume,
                    ZInfoTypes::ZiVolume,
                    InfoContent::Vinfo(volume),
                )
            }
            ObjectKind::Content => {
                let tree = ZInfoContentTree {
                    uuid: id,
                    display_name: name,
                    state: ZSwState::Error.into(),
                    err: error(Entity::ContentTree),
                    ..ZInfoContentTree::default()
                };
                (
                    InfoKind::Content,
                    ZInfoTypes::ZiContentTree,
                    InfoContent::Cinfo(tree),
                )
            }
            // Reported inside the device's message.
            ObjectKind::Device
            | ObjectKind::Property
            | ObjectKind::Port
            | ObjectKind::Adapter
            | ObjectKind::Network
            | ObjectKind::Datastore
            | ObjectKind::BaseOs => return None,
        };
        Some((InfoKey::new(kind, &fault.id), self.message(ztype, content)))
    }

    /// An error message; `None` for an empty text.
    fn error(&self, text: &str, entity: Entity, id: &str, name: &str) -> Option<ErrorInfo> {
        (!text.is_empty()).then(|| ErrorInfo {
            description: text.to_owned(),
            timestamp: Some(self.at),
            severity: Severity::Error.into(),
            entities: vec![DeviceEntity {
                entity: entity.into(),
                entity_id: id.to_owned(),
                entity_name: name.to_owned(),
            }],
            retry_condition: String::new(),
        })
    }
}

fn hsm_text(device: &holdfast_model::observed::DeviceStatus) -> String {
    let boot = if device.trust.secure_boot {
        "Secure Boot on"
    } else {
        "Secure Boot off"
    };
    if device.trust.tpm {
        format!("{}, {boot}", device.trust.tpm_text)
    } else {
        format!("no TPM, {boot}")
    }
}

fn property_values(properties: &Properties) -> [(&'static str, String); 12] {
    [
        (
            "timer.config.interval",
            properties.config_interval_seconds.to_string(),
        ),
        (
            "timer.metric.interval",
            properties.metric_interval_seconds.to_string(),
        ),
        (
            "timer.deviceinfo.interval",
            properties.device_info_interval_seconds.to_string(),
        ),
        (
            "timer.send.timeout",
            properties.send_timeout_seconds.to_string(),
        ),
        (
            "timer.dial.timeout",
            properties.dial_timeout_seconds.to_string(),
        ),
        (
            "timer.reboot.no.network",
            properties.reboot_no_network_seconds.to_string(),
        ),
        (
            "timer.update.fallback.no.network",
            properties.fallback_no_network_seconds.to_string(),
        ),
        (
            "timer.test.baseimage.update",
            properties.test_window_seconds.to_string(),
        ),
        (
            "timer.download.retry",
            properties.download_retry_seconds.to_string(),
        ),
        (
            "timer.boot.retry",
            properties.boot_retry_seconds.to_string(),
        ),
        (
            "timer.cert.interval",
            properties.certificate_interval_seconds.to_string(),
        ),
        (
            "newlog.allow.fastupload",
            properties.fast_log_upload.to_string(),
        ),
    ]
}

fn subnet(port: &PortStatus) -> String {
    port.addresses
        .first()
        .map(|ip| format!("{ip}/{}", port.prefix_length))
        .unwrap_or_default()
}

fn dns(port: &PortStatus) -> ZInfoDns {
    ZInfoDns {
        dn_sservers: texts(&port.dns),
        dn_sdomain: port.domain.clone(),
        dn_ssearch: Vec::new(),
    }
}

fn texts(addresses: &[std::net::IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// A stamp; `None` while the time is not known.
pub(crate) fn stamp(seconds: i64) -> Option<Timestamp> {
    (seconds > 0).then_some(Timestamp { seconds, nanos: 0 })
}

fn device_state(state: DeviceState) -> ZDeviceState {
    match state {
        DeviceState::Booting => ZDeviceState::ZdeviceStateBooting,
        DeviceState::Online => ZDeviceState::ZdeviceStateOnline,
        DeviceState::Rebooting => ZDeviceState::ZdeviceStateRebooting,
        DeviceState::Maintenance => ZDeviceState::ZdeviceStateMaintenanceMode,
        DeviceState::Updating => ZDeviceState::ZdeviceStateBaseosUpdating,
    }
}

fn boot_reason(reason: BootReason) -> WireBootReason {
    match reason {
        BootReason::First => WireBootReason::First,
        BootReason::RebootCommand => WireBootReason::RebootCmd,
        BootReason::Update => WireBootReason::Update,
        BootReason::Fallback => WireBootReason::Fallback,
        BootReason::Disconnect => WireBootReason::Disconnect,
        BootReason::Fatal => WireBootReason::Fatal,
        BootReason::Watchdog => WireBootReason::WatchdogHung,
        BootReason::Kernel => WireBootReason::Kernel,
        BootReason::PowerFail => WireBootReason::PowerFail,
        BootReason::Unknown => WireBootReason::Unknown,
        BootReason::VaultFailure => WireBootReason::VaultFailed,
    }
}

fn attestation_state(state: AttestationState) -> WireAttestation {
    match state {
        AttestationState::NonceWait => WireAttestation::NonceWait,
        AttestationState::QuoteWait => WireAttestation::TpmQuoteWait,
        AttestationState::EscrowWait => WireAttestation::TpmEscrowWait,
        AttestationState::AttestWait => WireAttestation::AttestWait,
        AttestationState::AttestEscrowWait => WireAttestation::AttestEscrowWait,
        AttestationState::RestartWait => WireAttestation::RestartWait,
        AttestationState::Complete => WireAttestation::Complete,
    }
}

fn load_state(state: LoadState) -> ZSwState {
    match state {
        LoadState::Initial => ZSwState::Initial,
        LoadState::Resolving => ZSwState::ResolvingTag,
        LoadState::Downloading => ZSwState::DownloadStarted,
        LoadState::Downloaded => ZSwState::Downloaded,
        LoadState::Verifying => ZSwState::Verifying,
        LoadState::Loaded => ZSwState::Delivered, // what EVE reports of a loaded image, not LOADED
        LoadState::CreatingVolume => ZSwState::CreatingVolume,
        LoadState::VolumeCreated => ZSwState::CreatedVolume,
        LoadState::Error => ZSwState::Error,
    }
}

fn app_state(state: AppState) -> ZSwState {
    match state {
        AppState::Initial => ZSwState::Initial,
        AppState::Downloading => ZSwState::DownloadStarted,
        AppState::Loaded => ZSwState::Delivered,
        AppState::CreatingVolume => ZSwState::CreatingVolume,
        AppState::Installed => ZSwState::Installed,
        AppState::AwaitNetworkInstance => ZSwState::Awaitnetworkinstance,
        AppState::StartDelayed => ZSwState::StartDelayed,
        AppState::Booting => ZSwState::Booting,
        AppState::Running => ZSwState::Running,
        AppState::Halting => ZSwState::Halting,
        AppState::Halted => ZSwState::Halted,
        AppState::Restarting => ZSwState::Restarting,
        AppState::Purging => ZSwState::Purging,
        AppState::Error => ZSwState::Error,
    }
}

/// What a message says, without its time stamp: equal contents need not be sent twice.
#[must_use]
pub fn without_stamp(message: &ZInfoMsg) -> ZInfoMsg {
    let mut message = message.clone();
    message.at_time_stamp = None;
    let clear = |error: &mut ErrorInfo| error.timestamp = None;
    match &mut message.info_content {
        Some(InfoContent::Dinfo(device)) => {
            for status in device
                .system_adapter
                .iter_mut()
                .flat_map(|adapters| &mut adapters.status)
            {
                status.last_succeeded = None;
                status
                    .ports
                    .iter_mut()
                    .filter_map(|port| port.err.as_mut())
                    .for_each(clear);
            }
            device
                .sw_list
                .iter_mut()
                .filter_map(|slot| slot.sw_err.as_mut())
                .for_each(clear);
            device
                .attestation_info
                .iter_mut()
                .filter_map(|info| info.error.as_mut())
                .for_each(clear);
            let vaults = device
                .data_sec_at_rest_info
                .iter_mut()
                .flat_map(|vaults| &mut vaults.vault_list);
            vaults
                .filter_map(|vault| vault.vault_err.as_mut())
                .for_each(clear);
        }
        Some(InfoContent::Ainfo(app)) => app.app_err.iter_mut().for_each(clear),
        Some(InfoContent::Niinfo(instance)) => instance.network_err.iter_mut().for_each(clear),
        Some(InfoContent::Vinfo(volume)) => volume.volume_err.iter_mut().for_each(clear),
        Some(InfoContent::Cinfo(tree)) => tree.err.iter_mut().for_each(clear),
        Some(InfoContent::Binfo(blobs)) => blobs
            .blob
            .iter_mut()
            .filter_map(|blob| blob.err.as_mut())
            .for_each(clear),
        _ => {}
    }
    message
}

#[cfg(test)]
mod tests;
