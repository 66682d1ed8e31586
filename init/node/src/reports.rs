//! From everything the agent knows to one `Observed`, of which info and metrics are made.

use crate::boot::{Boot, Paths};
use crate::machine;
use crate::network::Network;
use crate::parts::app::decide::{Runtime, Vm};
use crate::parts::app::vm as vms;
use crate::parts::content::state::Contents;
use crate::parts::volume::files as volumes;
use crate::session::Status;
use crate::trust;
use crate::trust::VaultState;
use crate::update::Update;
use holdfast_identity::Identity;
use holdfast_model::desired::Desired;
use holdfast_model::observed::{
    AppInterfaceStatus, AppState, AppStatus, DeviceState, DeviceStatus, DiskCounters, LoadState, Observed,
    RebootRecord, VolumeStatus,
};
use holdfast_model::storage::VolumeOrigin;
use holdfast_supervise::cgroup_path;
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
        ports: view.network.ports(view.desired),
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
        faults: view.desired.faults.clone(),
    }
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
    let (storage_bytes, storage_used_bytes) = machine::storage(&view.paths.data);
    DeviceStatus {
        state,
        storage_bytes,
        storage_used_bytes,
        last_reboot: view.last_reboot.clone(),
        trust: trust::status(view.boot, &view.identity.strength(), view.vault, view.pcrs.clone()),
        slots: view.update.slots(),
        attestation: view.session.attestation,
        attestation_error: view.session.attestation_error.clone(),
        maintenance: if view.desired.maintenance { "ordered by the controller".into() } else { String::new() },
        reboot_counter: view.reboot_counter,
        shutdown_counter: view.shutdown_counter,
        config_revision: view.desired.revision.clone(),
        ..machine_status(view.boot, view.device)
    }
}

/// What can be said of the device without its vault.
#[must_use]
pub fn machine_status(boot: &Boot, device: Option<Uuid>) -> DeviceStatus {
    let (memory_bytes, memory_used_bytes) = machine::memory();
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
        memory_used_bytes,
        boot_time_seconds: machine::boot_time_seconds(),
        uptime_seconds: machine::now().as_secs(),
        cpu_total_ns: machine::cpu_total_ns(),
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
    let (state, progress, error) = match (wanted.origin, content) {
        (VolumeOrigin::Content(_), Some(c)) if c.state == LoadState::Loaded => {
            (LoadState::VolumeCreated, 100, String::new())
        }
        (VolumeOrigin::Content(_), Some(c)) => (c.state, c.progress, c.error.clone()),
        (VolumeOrigin::Content(id), None) => {
            (LoadState::Error, 0, format!("volume {}: expected content {id} in the config, found none", wanted.name))
        }
        (VolumeOrigin::Blank, _) if there => (LoadState::VolumeCreated, 100, String::new()),
        (VolumeOrigin::Blank, _) => (LoadState::Initial, 0, String::new()),
    };
    VolumeStatus {
        id: wanted.id,
        name: wanted.name.clone(),
        state,
        progress,
        used_bytes: volumes::used_bytes(&file) + content.map_or(0, |c| c.size_bytes),
        max_size_bytes: if wanted.max_size_bytes > 0 { wanted.max_size_bytes } else { volumes::DEFAULT_LAYER_BYTES },
        generation: wanted.generation,
        // Known by the VM that uses it: asked when metrics are due.
        counters: DiskCounters::default(),
        error,
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
        let (memory_used_bytes, cpu_total_ns) =
            if running { machine::cgroup_usage(&cgroup_path(&vms::unit_of(app.id))) } else { (0, 0) };
        let interfaces = view
            .network
            .app_interfaces(app)
            .into_iter()
            .map(|i| AppInterfaceStatus { counters: machine::counters(&i.tap).from_the_other_end(), ..i })
            .collect();
        list.push(AppStatus {
            id: app.id,
            version: app.version.clone(),
            name: app.name.clone(),
            state,
            activated: running,
            boot_time_seconds,
            interfaces,
            error,
            starts: runtime.map_or(0, |r| r.starts),
            memory_bytes: app.memory_bytes,
            memory_used_bytes,
            cpu_total_ns,
            volumes: app.volumes.iter().map(|v| v.volume).collect(),
        });
    }
    list
}
