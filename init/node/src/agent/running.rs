//! Apps: what each one has, what is decided about it, and doing that.

use super::Agent;
use super::fetching::image_file;
use crate::machine;
use crate::parts::app::decide::{self as apps, Readiness, Step, Vm, World};
use crate::parts::app::vm::{self as vms, Disk, Nic, Plan};
use crate::parts::volume::files as volumes;
use anyhow::{Context, Result};
use holdfast_model::app::App;
use holdfast_model::observed::AppState;
use holdfast_model::storage::VolumeOrigin;
use holdfast_model::trouble::{self, ObjectKind, Severity};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

impl Agent {
    pub(super) fn turn_apps(&mut self) {
        let now = machine::now();
        let held = if let Some((record, _)) = &self.going_down {
            Some(format!("the device goes down: {}", record.text))
        } else if self.desired.maintenance {
            Some("maintenance mode".to_owned())
        } else if self.store.now.shut_down_in_boot == Some(self.boot.facts.boot_count) {
            Some("shut down by the controller; apps start again after a reboot of the device".to_owned())
        } else {
            None
        };
        // Before any config it is not known which apps are wanted: what runs goes on.
        if !self.configured {
            return;
        }
        let ids: BTreeSet<Uuid> = self.runtimes.keys().copied().chain(self.desired.apps.iter().map(|a| a.id)).collect();
        for id in ids {
            let app = self.desired.apps.iter().find(|a| a.id == id).cloned();
            let plan = app.as_ref().map(|a| self.plan_of(a));
            let (readiness, plan) = match plan {
                None => (Readiness::Ready, None),
                Some(Ok(plan)) => (Readiness::Ready, Some(plan)),
                Some(Err(readiness)) => (readiness, None),
            };
            let world = World {
                readiness,
                tag: plan.as_ref().map(Plan::tag).unwrap_or_default(),
                now,
                held: held.clone(),
                boot_retry: Duration::from_secs(self.desired.properties.boot_retry_seconds.into()),
            };
            let runtime = self.runtimes.entry(id).or_default();
            if runtime.acted.is_none() {
                runtime.acted = self.store.now.acted.get(&id).copied();
            }
            let verdict = apps::decide(app.as_ref(), runtime, &world);
            if !verdict.error.is_empty() && verdict.state == AppState::Error {
                self.say_once("error", &verdict.error);
            }
            self.verdicts.insert(id, (verdict.state, verdict.error));
            self.act(id, app.as_ref(), plan, verdict.step);
        }
    }

    pub(super) fn act(&mut self, id: Uuid, app: Option<&App>, plan: Option<Plan>, step: Step) {
        let now = machine::now();
        match step {
            Step::Wait => {}
            Step::Stop => {
                if self.supervisor.borrow_mut().stop(&vms::unit_of(id), None).is_ok()
                    && let Some(runtime) = self.runtimes.get_mut(&id)
                {
                    runtime.vm = Vm::Stopping;
                }
            }
            Step::NoteCounters | Step::Purge => {
                let Some(app) = app else { return };
                if step == Step::Purge
                    && let Some(first) = app.volumes.first()
                {
                    let file = volumes::file_of(&self.paths.data("volumes"), first.volume, first.generation);
                    if let Err(e) = fs::remove_file(&file)
                        && e.kind() != std::io::ErrorKind::NotFound
                    {
                        return self.say_once("error", &format!("app {}: purge: {}: {e}", app.name, file.display()));
                    }
                }
                if step == Step::Purge {
                    let folder = self.paths.data("volumes");
                    for volume in &app.volumes {
                        let removed = volumes::remove_other_generations(&folder, volume.volume, volume.generation);
                        if let Err(e) = removed {
                            self.say_once("warning", &format!("app {}: old volumes stay: {e}", app.name));
                        }
                    }
                }
                let acted = apps::Acted { restart: app.restart_counter, purge: app.purge_counter };
                self.store.now.acted.insert(id, acted);
                if let Some(runtime) = self.runtimes.get_mut(&id) {
                    runtime.acted = Some(acted);
                    runtime.restart_ordered();
                }
            }
            Step::Start => {
                let Some(plan) = plan else { return };
                let started = self.start_vm(&plan);
                let Some(runtime) = self.runtimes.get_mut(&id) else {
                    return;
                };
                match started {
                    Ok(()) => {
                        runtime.started(now, plan.tag());
                        self.say("info", &format!("app {}: VM started", plan.app.name));
                    }
                    Err(e) => {
                        runtime.start_failed(now, format!("{e:#}"));
                        self.say("error", &format!("{e:#}"));
                    }
                }
            }
            Step::Forget => {
                let _ = self.supervisor.borrow_mut().remove(&vms::unit_of(id));
                self.runtimes.remove(&id);
                self.leaving.remove(&id);
                self.verdicts.remove(&id);
                self.store.now.acted.remove(&id);
                self.store.now.numbers.remove(&id);
                self.logs.borrow_mut().apps.remove(&id);
                let wanted: Vec<(Uuid, i64)> = self.desired.volumes.iter().map(|v| (v.id, v.generation)).collect();
                // A volume that the config has with a fault is not in the list, and yet not to be lost.
                let sure = !self
                    .desired
                    .faults
                    .iter()
                    .any(|f| f.on.kind == ObjectKind::Volume && f.severity == Severity::Error);
                if sure
                    && let Ok(gone) = volumes::collect(&self.paths.data("volumes"), &wanted)
                    && !gone.is_empty()
                {
                    self.say("info", &format!("volumes removed: {}", gone.join(", ")));
                }
                let _ = fs::remove_file(self.paths.control().join(format!("{}.sock", vms::unit_of(id))));
            }
        }
    }

    pub(super) fn start_vm(&mut self, plan: &Plan) -> Result<()> {
        let folder = self.paths.data("volumes");
        let sizes: BTreeMap<PathBuf, u64> = self
            .desired
            .volumes
            .iter()
            .map(|v| (volumes::file_of(&folder, v.id, v.generation), v.max_size_bytes))
            .collect();
        make_volumes(plan, &self.paths.seed(), &|file| {
            sizes.get(file).copied().filter(|s| *s > 0).unwrap_or(volumes::DEFAULT_LAYER_BYTES)
        })?;
        let open_tap =
            |nic: &Nic| -> Result<Vec<OwnedFd>> { Ok(holdfast_links::tap::attach(&nic.tap, nic.queue_pairs)?) };
        let (spec, fds) = vms::unit::prepare(plan, &self.paths.control(), &open_tap)?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let name = &plan.app.name;
        self.supervisor.borrow_mut().start(&spec, &fds).with_context(|| format!("app {name}: unit {}", spec.name))?;
        Ok(())
    }

    /// What a start of the app would use, or what is missing.
    pub(super) fn plan_of(&self, app: &App) -> Result<Plan, Readiness> {
        let folder = self.paths.data("volumes");
        let failed = |text: String| Readiness::Failed(format!("app {}: {text}", app.name));
        let mut disks = Vec::new();
        for (n, wanted) in app.volumes.iter().enumerate() {
            let Some(volume) = self.desired.volumes.iter().find(|v| v.id == wanted.volume) else {
                return Err(failed(format!("expected volume {} in the config, found none", wanted.volume)));
            };
            if volume.generation != wanted.generation {
                return Err(failed(format!(
                    "volume {}: expected generation {}, found {}",
                    volume.name, wanted.generation, volume.generation
                )));
            }
            let file = volumes::file_of(&folder, volume.id, volume.generation);
            match volume.origin {
                VolumeOrigin::Blank if n > 0 => {
                    let mount = if wanted.mount_dir.is_empty() { "/mnt".to_owned() } else { wanted.mount_dir.clone() };
                    disks.push(Disk::Volume { file, mount, read_only: volume.read_only });
                }
                VolumeOrigin::Content(id) if n == 0 => {
                    let Some(content) = self.contents.by_id.get(&id) else {
                        return Err(failed(format!(
                            "volume {}: expected content {id} in the config, found none",
                            volume.name
                        )));
                    };
                    use holdfast_model::observed::LoadState;
                    match (content.status.state, &content.image) {
                        (LoadState::Loaded, Some(image)) => {
                            disks.push(Disk::Container {
                                rootfs: image_file(&self.paths, &content.status.sha256),
                                layer: file,
                                image: image.clone(),
                            });
                        }
                        (LoadState::Loaded, None) => {
                            return Err(failed(format!(
                                "content {}: expected a container image, found none of its configuration",
                                content.status.name
                            )));
                        }
                        (LoadState::Error, _) => return Err(failed(trouble::texts(&content.status.troubles))),
                        (_, _) if !content.status.troubles.is_empty() => {
                            return Err(failed(trouble::texts(&content.status.troubles)));
                        }
                        (LoadState::Initial, _) => {
                            return Err(Readiness::Coming(AppState::Initial));
                        }
                        _ => return Err(Readiness::Coming(AppState::Downloading)),
                    }
                }
                VolumeOrigin::Blank => {
                    return Err(failed(format!(
                        "volume {}: expected an image as first volume, found a blank one",
                        volume.name
                    )));
                }
                VolumeOrigin::Content(_) => {
                    return Err(failed(format!(
                        "volume {}: expected a blank volume behind the first, found an image",
                        volume.name
                    )));
                }
            }
        }
        if disks.is_empty() {
            return Err(failed("expected a volume, found none".into()));
        }
        let nics = self.network.nics(app)?;
        Ok(Plan { app: app.clone(), number: self.store.now.numbers.get(&app.id).copied().unwrap_or(0), disks, nics })
    }
}

/// Makes (or makes again) the writable layers and blank volumes that the plan names.
///
/// # Errors
/// No space, mostly.
fn make_volumes(plan: &Plan, seed: &Path, sizes: &dyn Fn(&Path) -> u64) -> Result<()> {
    for disk in &plan.disks {
        let file = match disk {
            Disk::Container { layer, .. } => layer,
            Disk::Volume { file, .. } => file,
        };
        volumes::ensure(file, seed, sizes(file))
            .with_context(|| format!("app {}: volume {}", plan.app.name, file.display()))?;
    }
    Ok(())
}
