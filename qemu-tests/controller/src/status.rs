//! What is known of a device in the few lines that people and failed tests want to see first.

use crate::attest::Report;
use crate::records::Info;
use crate::state::Device;
use holdfast_api::proto::info::z_info_msg::InfoContent;
use holdfast_api::proto::info::{
    AttestationState, BaseOsStatus, BootReason, ErrorInfo, ZDeviceState, ZInfoDevice, ZNetworkInstanceState, ZSwState,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Summary of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// UUID.
    pub uuid: Uuid,
    /// Hardware serial.
    pub serial: String,
    /// Milliseconds since 1970.
    pub registered_at_ms: u64,
    /// Last good request, milliseconds since 1970; 0: none since this controller started.
    pub last_seen_ms: u64,
    /// Revision of the wanted configuration; 0: none was set.
    pub config_revision: u64,
    /// Why no configuration is served, if none is.
    pub config_error: Option<String>,
    /// The device said that it has the configuration.
    pub config_accepted: bool,
    /// Result of the last quote.
    pub attestation: Option<Report>,
    /// The device's own words, one line per fact.
    pub device: Vec<String>,
    /// Every other object: kind and name, state, errors.
    pub objects: Vec<Object>,
}

/// One reported object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Such as `app` or `volume`.
    pub kind: String,
    /// UUID.
    pub id: String,
    /// Display name.
    pub name: String,
    /// State in the words of the API.
    pub state: String,
    /// Addresses of an app or a network instance.
    pub addresses: Vec<String>,
    /// Errors.
    pub errors: Vec<String>,
}

impl DeviceStatus {
    /// Summarises a device.
    pub fn of(device: &Device) -> Self {
        let reported = device.info.values().find_map(|info| match &info.message.info_content {
            Some(InfoContent::Dinfo(dinfo)) => Some(device_lines(dinfo)),
            _ => None,
        });
        Self {
            uuid: device.record.uuid,
            serial: device.record.serial.clone(),
            registered_at_ms: device.record.registered_at_ms,
            last_seen_ms: device.last_seen_ms,
            config_revision: device.wanted.as_ref().map_or(0, |wanted| wanted.revision),
            config_error: device.served.as_ref().err().cloned(),
            config_accepted: device.has_current_config(),
            attestation: device.record.proof.report.clone(),
            device: reported.unwrap_or_default(),
            objects: device.info.values().filter_map(object).collect(),
        }
    }

    /// The reported app of this name.
    pub fn app(&self, name: &str) -> Option<&Object> {
        self.objects.iter().find(|object| object.kind == "app" && object.name == name)
    }
}

impl fmt::Display for DeviceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "device {} serial {:?}", self.uuid, self.serial)?;
        match &self.config_error {
            Some(error) => writeln!(f, "  configuration: {error}")?,
            None => writeln!(
                f,
                "  configuration: revision {}, {}",
                self.config_revision,
                if self.config_accepted { "accepted" } else { "not accepted yet" }
            )?,
        }
        match &self.attestation {
            None => writeln!(f, "  attestation: none yet")?,
            Some(report) => writeln!(
                f,
                "  attestation: {}: {}",
                if report.accepted { "accepted" } else { "refused" },
                report.reason
            )?,
        }
        for line in &self.device {
            writeln!(f, "  {line}")?;
        }
        for object in &self.objects {
            writeln!(f, "  {object}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}: {}", self.kind, self.name, self.state)?;
        if !self.addresses.is_empty() {
            write!(f, ", {}", self.addresses.join(" "))?;
        }
        for error in &self.errors {
            write!(f, ", error: {error}")?;
        }
        Ok(())
    }
}

fn device_lines(dinfo: &ZInfoDevice) -> Vec<String> {
    let mut lines =
        vec![format!("state: {}", name(ZDeviceState::try_from(dinfo.state).map(|s| s.as_str_name()), dinfo.state))];
    if let Some(attestation) = &dinfo.attestation_info {
        let state = AttestationState::try_from(attestation.state).map(|s| s.as_str_name());
        lines.push(format!("attestation state: {}", name(state, attestation.state)));
        lines.extend(attestation.error.iter().flat_map(error).map(|e| format!("attestation error: {e}")));
    }
    for software in &dinfo.sw_list {
        let status = BaseOsStatus::try_from(software.user_status).map(|s| s.as_str_name());
        let mut line = format!(
            "base OS {} {:?}: {}, {}",
            software.partition_label,
            software.short_version,
            software.partition_state,
            name(status, software.user_status)
        );
        if !software.sub_status_str.is_empty() {
            line.push_str(&format!(", {}", software.sub_status_str));
        }
        for text in software.sw_err.iter().flat_map(error) {
            line.push_str(&format!(", error: {text}"));
        }
        lines.push(line);
    }
    let reason = BootReason::try_from(dinfo.last_boot_reason).map(|s| s.as_str_name());
    lines.push(format!("last boot: {} {:?}", name(reason, dinfo.last_boot_reason), dinfo.last_reboot_reason));
    if dinfo.maintenance_mode {
        lines.push(format!("maintenance mode: {:?}", dinfo.maintenance_mode_reasons));
    }
    lines
}

fn name<E>(known: Result<&'static str, E>, number: i32) -> String {
    known.map_or_else(|_| number.to_string(), str::to_owned)
}

fn error(error: &ErrorInfo) -> Option<String> {
    (!error.description.is_empty()).then(|| error.description.clone())
}

/// The name of a `ZSwState` number.
pub fn sw_state(number: i32) -> String {
    name(ZSwState::try_from(number).map(|s| s.as_str_name()), number)
}

fn object(info: &Info) -> Option<Object> {
    let new = |kind: &str, id: &str, name: &str, state: String| Object {
        kind: kind.into(),
        id: id.into(),
        name: name.into(),
        state,
        addresses: Vec::new(),
        errors: Vec::new(),
    };
    let out = match info.message.info_content.as_ref()? {
        InfoContent::Ainfo(app) => Object {
            addresses: app.network.iter().flat_map(|n| n.ip_addrs.clone()).collect(),
            errors: app.app_err.iter().filter_map(error).collect(),
            ..new("app", &app.app_id, &app.app_name, sw_state(app.state))
        },
        InfoContent::Niinfo(ni) => Object {
            addresses: ni.ip_assignments.iter().flat_map(|a| a.ip_address.clone()).collect(),
            errors: ni.network_err.iter().filter_map(error).collect(),
            ..new(
                "network-instance",
                &ni.network_id,
                &ni.displayname,
                name(ZNetworkInstanceState::try_from(ni.state).map(|s| s.as_str_name()), ni.state),
            )
        },
        InfoContent::Vinfo(volume) => Object {
            errors: volume.volume_err.iter().filter_map(error).collect(),
            ..new("volume", &volume.uuid, &volume.display_name, sw_state(volume.state))
        },
        InfoContent::Cinfo(tree) => Object {
            errors: tree.err.iter().filter_map(error).collect(),
            ..new("image", &tree.uuid, &tree.display_name, sw_state(tree.state))
        },
        _ => return None,
    };
    Some(out)
}
