//! From everything the agent knows to one `Observed`, of which info and metrics are made.

use crate::boot::{Boot, Paths};
use crate::machine;
use crate::network::Network;
use crate::parts::app::decide::{Runtime, Vm};
use crate::parts::content::state::Contents;
use crate::parts::volume::files as volumes;
use crate::session::Status;
use crate::trust;
use crate::trust::VaultState;
use crate::update::Update;
use holdfast_identity::Identity;
use holdfast_model::desired::Desired;
use holdfast_model::net::PortConfigs;
use holdfast_model::observed::{
    AppState, AppStatus, DeviceState, DeviceStatus, LoadState, Observed, RebootRecord, Tens, TrustStatus, VolumeStatus,
};
use holdfast_model::slot::SlotStatus;
use holdfast_model::storage::VolumeOrigin;
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Everything that reports are made of.
pub struct View<'a> {
    /// This boot.
    pub boot: &'a Boot,
    /// Where things are.
    pub paths: &'a Paths,
    /// What is wanted.
    pub desired: &'a Desired,
    /// A config is in force.
    pub configured: bool,
    /// The controller's side.
    pub session: &'a Status,
    /// Our UUID once known.
    pub device: Option<Uuid>,
    /// Why the last boot ended.
    pub last_reboot: &'a RebootRecord,
    /// A reboot is ordered.
    pub going_down: bool,
    /// Counter of reboots acted on.
    pub reboot_counter: u32,
    /// Counter of shutdowns acted on.
    pub shutdown_counter: u32,
    /// Images.
    pub contents: &'a Contents,
    /// VMs.
    pub runtimes: &'a BTreeMap<Uuid, Runtime>,
    /// Last decisions: state and error.
    pub verdicts: &'a BTreeMap<Uuid, (AppState, String)>,
    /// Networks.
    pub network: &'a Network,
    /// Base OS.
    pub update: &'a Update,
    /// Keys.
    pub identity: &'a dyn Identity,
    /// The vault.
    pub vault: &'a VaultState,
    /// PCRs as last quoted.
    pub pcrs: Vec<(u32, String)>,
}

/// Makes the report.
#[must_use]
pub fn observe(view: &View<'_>) -> Observed {
    Observed {
        device: device(view),
        ports: view.network.ports(),
        port_configs: PortConfigs::default(),
        instances: view.network.instances(view.desired),
        contents: view
            .contents
            .by_id
            .values()
            .map(|c| c.status.clone())
            .chain(view.update.content(view.desired))
            .collect(),
        volumes: view.desired.volumes.iter().map(|v| volume(view, v)).collect(),
        apps: apps(view),
        faults: view.desired.faults.iter().cloned().chain(refused(view)).collect(),
    }
}

/// A config that is not put in force is trouble of the device.
fn refused(view: &View<'_>) -> Option<Trouble> {
    let on = Object::new(ObjectKind::Device, view.device.unwrap_or_default(), &view.desired.device_name);
    Trouble::from_text(on, &view.session.refused)
}

fn device(view: &View<'_>) -> DeviceStatus {
    let state = if view.going_down {
        DeviceState::Rebooting
    } else if view.desired.maintenance {
        DeviceState::Maintenance
    } else if view.update.busy() {
        DeviceState::Updating
    } else if view.configured {
        DeviceState::Online
    } else {
        DeviceState::Booting
    };
    let (storage_bytes, _) = machine::storage(&view.paths.data);
    let trust = trust::status(view.boot, &view.identity.strength(), view.vault, view.pcrs.clone());
    let slots = view.update.slots();
    DeviceStatus {
        state,
        storage_bytes,
        last_reboot: view.last_reboot.clone(),
        troubles: device_troubles(&trust, &slots, &view.session.attestation_error),
        trust,
        slots,
        attestation: view.session.attestation,
        maintenance: if view.desired.maintenance { "ordered by the controller".into() } else { String::new() },
        reboot_counter: view.reboot_counter,
        shutdown_counter: view.shutdown_counter,
        config_revision: view.desired.revision.clone(),
        ..machine_status(view.boot, view.device)
    }
}

/// What is wrong with parts of the device.
#[must_use]
pub fn device_troubles(trust: &TrustStatus, slots: &[SlotStatus], attestation_error: &str) -> Vec<Trouble> {
    let attestation = Trouble::from_text(Object::new(ObjectKind::Attestation, "", "attestation"), attestation_error);
    attestation.into_iter().chain(trust.trouble()).chain(slots.iter().filter_map(SlotStatus::trouble)).collect()
}

/// What can be said of the device without its vault.
#[must_use]
pub fn machine_status(boot: &Boot, device: Option<Uuid>) -> DeviceStatus {
    let (memory_bytes, _) = machine::memory();
    DeviceStatus {
        id: device.unwrap_or_default(),
        architecture: std::env::consts::ARCH.to_owned(),
        host_name: device.map_or_else(|| "holdfast".to_owned(), |id| id.to_string()),
        manufacturer: machine::dmi("sys_vendor"),
        product: machine::dmi("product_name"),
        serial: boot.site.as_ref().and_then(|s| s.serial.clone()).unwrap_or_else(|| machine::dmi("product_serial")),
        bios_version: machine::dmi("bios_version"),
        cpus: machine::cpus(),
        memory_bytes,
        boot_time_seconds: machine::boot_time_seconds(),
        boot_count: boot.facts.boot_count,
        ..DeviceStatus::default()
    }
}

fn volume(view: &View<'_>, wanted: &holdfast_model::storage::Volume) -> VolumeStatus {
    let file = volumes::file_of(&view.paths.data("volumes"), wanted.id, wanted.generation);
    let content = match wanted.origin {
        VolumeOrigin::Content(id) => view.contents.by_id.get(&id).map(|c| &c.status),
        VolumeOrigin::Blank => None,
    };
    let there = file.exists();
    // A volume of an image is there once the image is: its writable layer is made at the first start.
    let on = Object::new(ObjectKind::Volume, wanted.id, &wanted.name);
    let (state, progress, troubles) = match (wanted.origin, content) {
        (VolumeOrigin::Content(_), Some(c)) if c.state == LoadState::Loaded => {
            (LoadState::VolumeCreated, Tens::down(100), Vec::new())
        }
        (VolumeOrigin::Content(id), Some(c)) => {
            let cause = Object::new(ObjectKind::Content, id, &c.name);
            let of_volume = |t: &Trouble| Trouble { on: on.clone(), ..t.clone() }.caused_by(cause.clone());
            (c.state, c.progress, c.troubles.iter().map(of_volume).collect())
        }
        (VolumeOrigin::Content(id), None) => {
            let text = format!("volume {}: expected content {id} in the config, found none", wanted.name);
            (LoadState::Error, Tens::default(), vec![Trouble::error(on, text)])
        }
        (VolumeOrigin::Blank, _) if there => (LoadState::VolumeCreated, Tens::down(100), Vec::new()),
        (VolumeOrigin::Blank, _) => (LoadState::Initial, Tens::default(), Vec::new()),
    };
    VolumeStatus {
        id: wanted.id,
        name: wanted.name.clone(),
        state,
        progress,
        content: content.map(|c| c.id),
        max_size_bytes: if wanted.max_size_bytes > 0 { wanted.max_size_bytes } else { volumes::DEFAULT_LAYER_BYTES },
        generation: wanted.generation,
        troubles,
    }
}

fn apps(view: &View<'_>) -> Vec<AppStatus> {
    let mut list = Vec::new();
    for app in &view.desired.apps {
        let (state, error) = view.verdicts.get(&app.id).cloned().unwrap_or_default();
        let runtime = view.runtimes.get(&app.id);
        let running = runtime.is_some_and(|r| matches!(r.vm, Vm::Running { .. }));
        let boot_time_seconds = match runtime.map(|r| &r.vm) {
            Some(Vm::Running { since, .. }) if machine::boot_time_seconds() > 0 => {
                machine::boot_time_seconds() + i64::try_from(since.as_secs()).unwrap_or(0)
            }
            _ => 0,
        };
        list.push(AppStatus {
            id: app.id,
            version: app.version.clone(),
            name: app.name.clone(),
            state,
            activated: running,
            boot_time_seconds,
            interfaces: view.network.app_interfaces(app),
            troubles: Trouble::from_text(Object::new(ObjectKind::App, app.id, &app.name), &error).into_iter().collect(),
            starts: runtime.map_or(0, |r| r.starts),
            memory_bytes: app.memory_bytes,
            volumes: app.volumes.iter().map(|v| v.volume).collect(),
        });
    }
    list
}
