//! What an app needs before it can start, from the config and from what other parts say. Pure.

use super::decide::Readiness;
use super::vm::{Disk, Nic, Plan};
use crate::parts::content::facts::{ImageFact, Images};
use crate::parts::volume::facts::Volumes;
use holdfast_model::app::{App, VolumeRef};
use holdfast_model::desired::Desired;
use holdfast_model::observed::{AppState, LoadState};
use holdfast_model::storage::{Volume, VolumeOrigin};
use std::path::PathBuf;
use uuid::Uuid;

/// Where a volume is mounted that names no place.
const MOUNT: &str = "/mnt";

/// What is known.
pub struct Known<'a> {
    /// The config.
    pub desired: &'a Desired,
    /// Images.
    pub images: &'a Images,
    /// Volumes.
    pub volumes: &'a Volumes,
    /// The app's NICs; none while the network part has not planned for it.
    pub nics: Option<&'a Result<Vec<Nic>, Readiness>>,
}

/// What an app starts with.
#[derive(Debug)]
pub struct Needs {
    /// Generations of volumes; empty until the image is loaded.
    pub volumes: Vec<(Uuid, i64)>,
    /// All of it, or what is missing.
    pub plan: Result<Plan, Readiness>,
}

/// The needs of one app. Volumes that do not exist are waited for only when it `may_start`: nobody makes them before.
#[must_use]
pub fn of(app: &App, number: u32, known: &Known<'_>, may_start: bool) -> Needs {
    let disks = match disks(app, known) {
        Ok(disks) => disks,
        Err(readiness) => return Needs { volumes: Vec::new(), plan: Err(readiness) },
    };
    let volumes: Vec<(Uuid, i64)> = app.volumes.iter().map(|v| (v.volume, v.generation)).collect();
    let made = if may_start { ready(app, &volumes, known) } else { Ok(()) };
    let plan = made.and_then(|()| nics(app, known)).map(|nics| Plan { app: app.clone(), number, disks, nics });
    Needs { volumes, plan }
}

fn nics(app: &App, known: &Known<'_>) -> Result<Vec<Nic>, Readiness> {
    match known.nics {
        Some(nics) => nics.clone(),
        None if app.interfaces.is_empty() => Ok(Vec::new()),
        None => Err(Readiness::Coming(AppState::AwaitNetworkInstance)),
    }
}

fn failed(app: &App, text: &str) -> Readiness {
    Readiness::Failed(format!("app {}: {text}", app.name))
}

fn ready(app: &App, volumes: &[(Uuid, i64)], known: &Known<'_>) -> Result<(), Readiness> {
    for key in volumes {
        match known.volumes.0.get(key) {
            Some(fact) if fact.ready => {}
            Some(fact) if !fact.error.is_empty() => return Err(failed(app, &fact.error)),
            _ => return Err(Readiness::Coming(AppState::CreatingVolume)),
        }
    }
    Ok(())
}

fn disks(app: &App, known: &Known<'_>) -> Result<Vec<Disk>, Readiness> {
    let mut disks = Vec::new();
    for (n, wanted) in app.volumes.iter().enumerate() {
        disks.push(disk(app, n, wanted, known)?);
    }
    if disks.is_empty() { Err(failed(app, "expected a volume, found none")) } else { Ok(disks) }
}

fn disk(app: &App, n: usize, wanted: &VolumeRef, known: &Known<'_>) -> Result<Disk, Readiness> {
    let failed = |text: String| failed(app, &text);
    let Some(volume) = known.desired.volumes.iter().find(|v| v.id == wanted.volume) else {
        return Err(failed(format!("expected volume {} in the config, found none", wanted.volume)));
    };
    let name = &volume.name;
    if volume.generation != wanted.generation {
        return Err(failed(format!(
            "volume {name}: expected generation {}, found {}",
            wanted.generation, volume.generation
        )));
    }
    match volume.origin {
        VolumeOrigin::Blank if n > 0 => {
            let mount = if wanted.mount_dir.is_empty() { MOUNT.to_owned() } else { wanted.mount_dir.clone() };
            Ok(Disk::Volume { file: file_of(volume, known), mount, read_only: volume.read_only })
        }
        VolumeOrigin::Content(id) if n == 0 => match known.images.0.get(&id) {
            Some(image) => container(app, image, file_of(volume, known)),
            // The content part has not looked yet.
            None if known.desired.contents.iter().any(|c| c.id == id) => Err(Readiness::Coming(AppState::Initial)),
            None => Err(failed(format!("volume {name}: expected content {id} in the config, found none"))),
        },
        VolumeOrigin::Blank => {
            Err(failed(format!("volume {name}: expected an image as first volume, found a blank one")))
        }
        VolumeOrigin::Content(_) => {
            Err(failed(format!("volume {name}: expected a blank volume behind the first, found an image")))
        }
    }
}

fn file_of(volume: &Volume, known: &Known<'_>) -> PathBuf {
    known.volumes.0.get(&(volume.id, volume.generation)).map(|f| f.file.clone()).unwrap_or_default()
}

fn container(app: &App, found: &ImageFact, layer: PathBuf) -> Result<Disk, Readiness> {
    match (found.state, &found.image) {
        (LoadState::Loaded, Some(image)) => {
            Ok(Disk::Container { rootfs: found.file.clone(), layer, image: image.clone() })
        }
        (LoadState::Loaded, None) => Err(failed(
            app,
            &format!("content {}: expected a container image, found none of its configuration", found.name),
        )),
        (LoadState::Error, _) => Err(failed(app, &found.error)),
        _ if !found.error.is_empty() => Err(failed(app, &found.error)),
        (LoadState::Initial, _) => Err(Readiness::Coming(AppState::Initial)),
        _ => Err(Readiness::Coming(AppState::Downloading)),
    }
}
