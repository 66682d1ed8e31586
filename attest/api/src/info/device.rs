//! The device's own message.

use super::errors::merged;
use super::ports::dns;
use super::words::{attestation_state, boot_reason, device_state};
use super::{API_CAPABILITY, MIB, Report, stamp};
use crate::proto::info::{
    AttestationInfo, BaseOsStatus as WireBaseOs, BaseOsSubStatus as WireBaseOsSub, DataSecAtRest, DataSecAtRestStatus,
    HwSecurityModuleStatus, MaintenanceModeReason, PcrStatus, VaultInfo, ZInfoAppInstance, ZInfoConfigItem,
    ZInfoConfigItemStatus, ZInfoDevSw, ZInfoDevice, ZInfoManufacturer, ZInfoStorage, ZSwState,
};
use holdfast_model::observed::{DeviceState, DeviceStatus};
use holdfast_model::properties::Properties;
use holdfast_model::slot::{BaseOsStatus, BaseOsSubStatus, PartitionState, Slot, SlotStatus};
use holdfast_model::trouble::ObjectKind;
use std::collections::BTreeMap;

impl Report<'_> {
    pub(super) fn device(&self) -> ZInfoDevice {
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
            dns: self.observed.ports.iter().find(|port| port.management && port.up).map(dns),
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
            shutdown_config_counter: device.shutdown_counter,
            last_boot_reason: boot_reason(device.last_reboot.reason).into(),
            maintenance_mode: maintenance,
            maintenance_mode_reasons: if maintenance { vec![reason.into()] } else { Vec::new() },
            reboot_inprogress: device.state == DeviceState::Rebooting,
            state: device_state(device.state).into(),
            attestation_info: Some(AttestationInfo {
                state: attestation_state(device.attestation).into(),
                error: merged(self.device_troubles(ObjectKind::Attestation)),
            }),
            api_capability: API_CAPABILITY.into(),
            ..ZInfoDevice::default()
        }
    }

    /// The running slot first, as testers and controllers expect.
    fn slots(&self) -> Vec<ZInfoDevSw> {
        let mut slots: Vec<&SlotStatus> = self.observed.device.slots.iter().collect();
        slots.sort_by_key(|slot| !slot.running);
        slots.into_iter().map(|slot| self.slot(slot)).collect()
    }

    fn slot(&self, slot: &SlotStatus) -> ZInfoDevSw {
        let (label, device) = match slot.slot {
            Slot::A => ("IMGA", "OS-A"),
            Slot::B => ("IMGB", "OS-B"),
        };
        // A fault of the config is about the image to be, whose place is the slot that is not running.
        let faults = self.observed.faults.iter().filter(|t| t.on.kind == ObjectKind::BaseOs && !slot.running);
        let id = slot.slot.to_string();
        let troubles = self.device_troubles(ObjectKind::BaseOs).filter(|t| t.on.id == id);
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
            sw_err: merged(faults.chain(troubles)),
            download_progress: match slot.status {
                BaseOsStatus::Downloading => slot.sub_status_progress.get(),
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
                BaseOsSubStatus::None if slot.status == BaseOsStatus::Downloading => WireBaseOsSub::DownloadInprogress,
                BaseOsSubStatus::None => WireBaseOsSub::NoneSubstatus,
                BaseOsSubStatus::Installing => WireBaseOsSub::UpdateInitializing,
                BaseOsSubStatus::Rebooting => WireBaseOsSub::UpdateRebooting,
                BaseOsSubStatus::Testing => WireBaseOsSub::UpdateTesting,
            }
            .into(),
            sub_status_progress: slot.sub_status_progress.get(),
        }
    }

    fn vault(&self) -> DataSecAtRest {
        let trust = &self.observed.device.trust;
        let status = match (trust.vault_open, trust.vault_sealed) {
            (true, true) => DataSecAtRestStatus::DatasecAtRestEnabled,
            (true, false) => DataSecAtRestStatus::DatasecAtRestDisabled,
            (false, _) => DataSecAtRestStatus::DatasecAtRestError,
        };
        // The note of an open vault is no error: it is said beside what is weaker.
        let note = trust.vault_open.then_some(&trust.vault_note).filter(|note| !note.is_empty());
        let info: Vec<&str> = note.into_iter().chain(&trust.weaknesses).map(String::as_str).collect();
        DataSecAtRest {
            status: status.into(),
            info: info.join("; "),
            vault_list: vec![VaultInfo {
                name: "Application Data Store".to_owned(),
                status: status.into(),
                vault_err: merged(self.device_troubles(ObjectKind::Vault)),
                pcr_status: if trust.vault_sealed { PcrStatus::PcrEnabled } else { PcrStatus::PcrDisabled }.into(),
            }],
        }
    }

    fn config_items(&self) -> ZInfoConfigItemStatus {
        let mut status = ZInfoConfigItemStatus::default();
        if let Some(properties) = self.context.properties {
            for (key, value) in property_values(properties) {
                status.config_items.insert(key.to_owned(), ZInfoConfigItem { value, error: String::new() });
            }
            for (key, value) in &properties.unknown {
                let item = ZInfoConfigItem { value: value.clone(), error: "not known to this device".to_owned() };
                status.unknown_config_items.insert(key.clone(), item);
            }
        }
        for fault in &self.observed.faults {
            let key = match fault.on.kind {
                ObjectKind::Property => fault.on.id.clone(),
                ObjectKind::Device => format!("config/device/{}", fault.on.id),
                ObjectKind::Datastore => format!("config/datastore/{}", fault.on.id),
                ObjectKind::Network => format!("config/network/{}", fault.on.id),
                _ => continue,
            };
            let error = &mut status.config_items.entry(key).or_default().error;
            *error = if error.is_empty() { fault.text.clone() } else { format!("{error}; {}", fault.text) };
        }
        status
    }

    /// Every app still present, those in error included: a tester sees a deletion by absence here.
    fn app_instances(&self) -> Vec<ZInfoAppInstance> {
        let mut apps: BTreeMap<String, String> = BTreeMap::new();
        for fault in self.observed.faults.iter().filter(|fault| fault.on.kind == ObjectKind::App) {
            apps.insert(fault.on.id.to_ascii_lowercase(), fault.on.name.clone());
        }
        for app in &self.observed.apps {
            apps.insert(app.id.to_string(), app.name.clone());
        }
        apps.into_iter().map(|(uuid, name)| ZInfoAppInstance { domain_name: name.clone(), uuid, name }).collect()
    }
}

fn hsm_text(device: &DeviceStatus) -> String {
    let boot = if device.trust.secure_boot { "Secure Boot on" } else { "Secure Boot off" };
    if device.trust.tpm { format!("{}, {boot}", device.trust.tpm_text) } else { format!("no TPM, {boot}") }
}

fn property_values(properties: &Properties) -> [(&'static str, String); 16] {
    [
        ("timer.config.interval", properties.config_interval_seconds.to_string()),
        ("timer.metric.interval", properties.metric_interval_seconds.to_string()),
        ("timer.deviceinfo.interval", properties.device_info_interval_seconds.to_string()),
        ("timer.send.timeout", properties.send_timeout_seconds.to_string()),
        ("timer.dial.timeout", properties.dial_timeout_seconds.to_string()),
        ("timer.reboot.no.network", properties.reboot_no_network_seconds.to_string()),
        ("timer.update.fallback.no.network", properties.fallback_no_network_seconds.to_string()),
        ("timer.test.baseimage.update", properties.test_window_seconds.to_string()),
        ("timer.download.retry", properties.download_retry_seconds.to_string()),
        ("timer.boot.retry", properties.boot_retry_seconds.to_string()),
        ("timer.cert.interval", properties.certificate_interval_seconds.to_string()),
        ("timer.port.testduration", properties.port_test_seconds.to_string()),
        ("timer.port.testinterval", properties.port_retest_seconds.to_string()),
        ("timer.port.testbetterinterval", properties.port_better_seconds.to_string()),
        ("network.fallback.any.eth", if properties.fallback_any_ethernet { "enabled" } else { "disabled" }.to_owned()),
        ("newlog.allow.fastupload", properties.fast_log_upload.to_string()),
    ]
}
