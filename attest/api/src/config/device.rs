//! The device itself: properties, counter commands, the base OS.

use super::{Faults, quoted, text, uuid};
use crate::proto::config::{ConfigItem, DeviceOpsCmd, EdgeDevConfig};
use holdfast_model::base_os::BaseOs;
use holdfast_model::desired::{Commands, Desired};
use holdfast_model::properties::Properties;
use holdfast_model::trouble::ObjectKind;

/// Reads what concerns the device as a whole, its properties included.
pub(super) fn read(config: &EdgeDevConfig, desired: &mut Desired, faults: &mut Faults) {
    let id = config.id.clone().unwrap_or_default();
    match uuid("id of the device", &id.uuid) {
        Ok(device) => desired.device = device,
        Err(text) => faults.add(ObjectKind::Device, &id.uuid, &config.device_name, text),
    }
    desired.revision = text::shown(&id.version);
    desired.device_name = text::shown(&config.device_name);
    desired.commands =
        Commands { reboot: counter(config.reboot.as_ref()), shutdown: counter(config.shutdown.as_ref()) };
    desired.controller_certificates_hash = text::shown(&config.controllercert_confighash);
    desired.controller_epoch = config.controller_epoch;

    let mut maintenance = config.maintenance_mode;
    desired.properties = properties(&config.config_items, &mut maintenance, faults);
    desired.maintenance = maintenance;
}

/// A counter command counts only while its state is wished for.
fn counter(command: Option<&DeviceOpsCmd>) -> u32 {
    command.filter(|command| command.desired_state).map_or(0, |command| command.counter)
}

/// A property with a whole number: where it goes and its range.
type Number = (&'static str, fn(&mut Properties) -> &mut u32, u32, u32);

/// The timers that this device honours, with EVE's ranges in seconds.
const NUMBERS: &[Number] = &[
    ("timer.config.interval", |p| &mut p.config_interval_seconds, 5, 86_400),
    ("timer.metric.interval", |p| &mut p.metric_interval_seconds, 5, 3_600),
    ("timer.deviceinfo.interval", |p| &mut p.device_info_interval_seconds, 30, u32::MAX),
    ("timer.reboot.no.network", |p| &mut p.reboot_no_network_seconds, 120, u32::MAX),
    ("timer.update.fallback.no.network", |p| &mut p.fallback_no_network_seconds, 60, u32::MAX),
    ("timer.test.baseimage.update", |p| &mut p.test_window_seconds, 30, 3_600),
    ("timer.download.retry", |p| &mut p.download_retry_seconds, 60, u32::MAX),
    ("timer.boot.retry", |p| &mut p.boot_retry_seconds, 10, u32::MAX),
    ("timer.cert.interval", |p| &mut p.certificate_interval_seconds, 60, u32::MAX),
    ("timer.port.testduration", |p| &mut p.port_test_seconds, 10, 3_600),
    ("timer.port.testinterval", |p| &mut p.port_retest_seconds, 300, 3_600),
    ("timer.port.testbetterinterval", |p| &mut p.port_better_seconds, 0, u32::MAX),
    ("timer.send.timeout", |p| &mut p.send_timeout_seconds, 0, 3_600),
    ("timer.dial.timeout", |p| &mut p.dial_timeout_seconds, 0, 3_600),
];

fn properties(items: &[ConfigItem], maintenance: &mut bool, faults: &mut Faults) -> Properties {
    let mut properties = Properties::default();
    for ConfigItem { key, value } in items {
        let result = if let Some((_, field, low, high)) = NUMBERS.iter().find(|(name, ..)| name == key) {
            number(value, *low, *high).map(|value| *field(&mut properties) = value)
        } else if key == "newlog.allow.fastupload" {
            boolean(value).map(|value| properties.fast_log_upload = value)
        } else if key == "network.fallback.any.eth" {
            switch(value).map(|value| properties.fallback_any_ethernet = value.unwrap_or(false))
        } else if key == "maintenance.mode" {
            // The property wins over the field when it says something ("none" says nothing).
            switch(value).map(|value| *maintenance = value.unwrap_or(*maintenance))
        } else {
            properties.unknown.push((text::shown(key), text::shown(value)));
            Ok(())
        };
        if let Err(text) = result {
            faults.add(ObjectKind::Property, key, key, format!("{text}; the default stays in force"));
        }
    }
    properties
}

fn number(text: &str, low: u32, high: u32) -> Result<u32, String> {
    text.trim()
        .parse()
        .ok()
        .filter(|value| (low..=high).contains(value))
        .ok_or_else(|| format!("expected a whole number from {low} to {high}, found {:?}", quoted(text)))
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("expected true or false, found {:?}", quoted(text))),
    }
}

fn switch(text: &str) -> Result<Option<bool>, String> {
    match text.trim() {
        "enabled" => Ok(Some(true)),
        "disabled" => Ok(Some(false)),
        "" | "none" => Ok(None),
        _ => Err(format!("expected enabled, disabled or none, found {:?}", quoted(text))),
    }
}

/// Reads the base OS; its content tree must already be in `desired`.
pub(super) fn read_base_os(config: &EdgeDevConfig, desired: &mut Desired, faults: &mut Faults) {
    let Some(wire) = &config.baseos else { return };
    if wire.content_tree_uuid.is_empty() && wire.base_os_version.is_empty() && !wire.activate {
        return; // an empty message says nothing
    }
    let read = || -> Result<BaseOs, String> {
        let content = uuid("content tree", &wire.content_tree_uuid)?;
        if wire.base_os_version.is_empty() {
            return Err(
                "version: expected the text that stands inside the image, found none; no update is started".to_owned()
            );
        }
        if !desired.contents.iter().any(|tree| tree.id == content) {
            return Err(format!("content tree {content}: not in the config or it has a fault; no update is started"));
        }
        Ok(BaseOs {
            content,
            activate: wire.activate,
            version: text::name("version", &wire.base_os_version)?,
            retry_counter: wire.retry_update.as_ref().map_or(0, |command| command.counter),
        })
    };
    match read() {
        Ok(base_os) => desired.base_os = Some(base_os),
        Err(text) => faults.add(ObjectKind::BaseOs, &wire.content_tree_uuid, &wire.base_os_version, text),
    }
}
