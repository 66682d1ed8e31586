//! Volumes: the disks of apps, as files below `/data/volumes`.
//!
//! Principles:
//! 1. A volume is made when an app is about to start with it ([`WantedVolumes`]), from the seed, under another name first.
//! 2. A purge makes the new volume before the old one goes ([`Purges`]).
//! 3. Nothing is removed that somebody may still want; see [`state`].
//!
//! Reading order: [`facts`], [`state`] (what to do, pure), [`files`] (doing it).

pub mod facts;
pub mod files;
pub mod state;

use self::facts::{VolumeFact, Volumes};
use self::files::{Folder, Listing, VolumeStore};
use self::state::{Key, Make, State, Wanted, size_of};
use crate::keeper::Said;
use crate::part::{Event, Part, Turn};
use crate::parts::app::facts::{HeldVolumes, Purges, WantedVolumes};
use crate::parts::content::facts::{ImageFact, Images};
use crate::setup::Setup;
use crate::unsure::Unsure;
use holdfast_model::observed::{LoadState, Observed, Tens, VolumeStatus};
use holdfast_model::storage::{Volume, VolumeOrigin};
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use std::rc::Rc;
use std::time::Duration;

/// Between two tries of what has no deadline of its own: the first look, a removal.
const RETRY: Duration = Duration::from_secs(10);

/// The part.
pub struct VolumePart {
    store: Rc<dyn VolumeStore>,
    state: State,
    looking: bool,
    look_at: Duration,
    status: Vec<VolumeStatus>,
    said: Said,
}

/// The part on a real machine.
///
/// # Errors
/// Never.
pub fn new(setup: &Setup, _kept: Option<&[u8]>) -> anyhow::Result<Box<dyn Part>> {
    let store = Folder { path: setup.paths.data("volumes"), seed: setup.paths.seed() };
    Ok(Box::new(VolumePart::over(Rc::new(store))))
}

/// News: the folder was looked at.
struct Looked(Result<Listing, String>);

/// News: a volume was made, or not.
struct Made(Make, Result<u64, String>);

/// News: files were removed, or not.
struct Removed {
    keys: Vec<Key>,
    names: Vec<String>,
    result: Result<(), String>,
}

impl VolumePart {
    /// A part for the volumes of `store`.
    #[must_use]
    pub fn over(store: Rc<dyn VolumeStore>) -> Self {
        Self {
            store,
            state: State::default(),
            looking: false,
            look_at: Duration::ZERO,
            status: Vec::new(),
            said: Said::default(),
        }
    }

    fn look(&mut self, turn: &mut Turn<'_>) {
        if self.state.present.is_some() || self.looking {
            return;
        }
        if turn.now < self.look_at {
            return turn.wake(self.look_at);
        }
        self.looking = true;
        let look = self.store.look();
        turn.start("look at the volumes", async move { Looked(look.await.map_err(|e| e.to_string())) });
    }

    fn remove(&mut self, keys: Vec<Key>, names: Vec<String>, turn: &mut Turn<'_>) {
        self.state.removing = true;
        let remove = self.store.remove(names.clone());
        turn.start("remove volumes", async move {
            Removed { keys, names, result: remove.await.map_err(|e| e.to_string()) }
        });
    }

    fn name_of(&self, key: Key) -> String {
        self.store.file(key.0, key.1).file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn collect(&mut self, turn: &mut Turn<'_>) {
        if !self.state.strays.is_empty() && !self.state.removing && turn.now >= self.state.remove_at {
            let names = self.state.strays.clone();
            return self.remove(Vec::new(), names, turn);
        }
        let (Some(desired), Some(HeldVolumes(held))) = (turn.config.cloned(), turn.facts.get::<HeldVolumes>()) else {
            return;
        };
        let unsure = Unsure::of(&desired, ObjectKind::Volume);
        let keys = self.state.to_remove(&desired.volumes, &unsure, held, turn.now);
        if !keys.is_empty() {
            let names = keys.iter().map(|key| self.name_of(*key)).collect();
            self.remove(keys, names, turn);
        }
    }

    fn make(&mut self, make: Make, turn: &mut Turn<'_>) {
        self.state.begin(&make);
        let making = self.store.make(make.key.0, make.key.1, make.size_bytes);
        turn.start(format!("make volume {}", make.key.0), async move {
            let result = making.await.map_err(|e| e.to_string());
            Made(make, result)
        });
    }

    fn publish(&mut self, volumes: &[Volume], turn: &mut Turn<'_>) {
        let facts = volumes.iter().map(|v| {
            let key = (v.id, v.generation);
            let fact = VolumeFact {
                ready: self.state.has(&key) && !self.state.making.contains(&key),
                file: self.store.file(v.id, v.generation),
                purged: self.state.purged.get(&v.id).copied(),
                error: self.error(v),
            };
            (key, fact)
        });
        let facts = Volumes(facts.collect());
        let images = turn.facts.get::<Images>().cloned().unwrap_or_default();
        self.status = volumes.iter().map(|v| self.status_of(v, &images)).collect();
        turn.facts.publish(facts);
    }

    fn error(&self, volume: &Volume) -> String {
        let failed = self.state.failed.get(&(volume.id, volume.generation));
        failed.map(|f| format!("volume {}: {}; it is tried again", volume.name, f.text)).unwrap_or_default()
    }

    fn status_of(&self, volume: &Volume, Images(images): &Images) -> VolumeStatus {
        let key = (volume.id, volume.generation);
        let image = match volume.origin {
            VolumeOrigin::Content(id) => images.get(&id),
            VolumeOrigin::Blank => None,
        };
        let (state, progress, error) = match self.error(volume) {
            text if !text.is_empty() => (LoadState::Error, Tens::default(), text),
            _ => progress(volume, image, self.state.has(&key)),
        };
        VolumeStatus {
            id: volume.id,
            name: volume.name.clone(),
            state,
            progress,
            max_size_bytes: size_of(volume),
            generation: volume.generation,
            content: content_of(volume),
            troubles: troubles(volume, &error),
        }
    }
}

/// How far a volume is that did not fail itself. One of an image exists once the image does: its writable layer is made when the
/// first app starts with it.
fn progress(volume: &Volume, image: Option<&ImageFact>, exists: bool) -> (LoadState, Tens, String) {
    match (volume.origin, image) {
        (VolumeOrigin::Content(_), Some(i)) if i.state == LoadState::Loaded => {
            (LoadState::VolumeCreated, Tens::down(100), String::new())
        }
        (VolumeOrigin::Content(_), Some(i)) => (i.state, i.progress, i.error.clone()),
        (VolumeOrigin::Content(id), None) => (
            LoadState::Error,
            Tens::default(),
            format!("volume {}: expected content {id} in the config, found none", volume.name),
        ),
        (VolumeOrigin::Blank, _) if exists => (LoadState::VolumeCreated, Tens::down(100), String::new()),
        (VolumeOrigin::Blank, _) => (LoadState::Initial, Tens::default(), String::new()),
    }
}

fn content_of(volume: &Volume) -> Option<uuid::Uuid> {
    match volume.origin {
        VolumeOrigin::Content(id) => Some(id),
        VolumeOrigin::Blank => None,
    }
}

/// The text as trouble of the volume; that of an image causes its own.
fn troubles(volume: &Volume, text: &str) -> Vec<Trouble> {
    Trouble::from_text(Object::new(ObjectKind::Volume, volume.id, &volume.name), text).into_iter().collect()
}

impl Part for VolumePart {
    fn name(&self) -> &'static str {
        "volume"
    }

    fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        if let Some(Looked(result)) = event.news() {
            self.looking = false;
            match result {
                Ok(listing) => {
                    self.state.present = Some(listing.volumes.clone());
                    self.state.strays.clone_from(&listing.strays);
                }
                Err(e) => {
                    self.look_at = turn.now + RETRY;
                    self.said.once(turn, "error", &format!("volumes cannot be listed: {e}; tried again"));
                }
            }
        } else if let Some(Made(make, result)) = event.news() {
            self.state.made(make, turn.now, result.clone());
            if let Err(e) = result {
                let file = self.name_of(make.key);
                self.said.once(turn, "error", &format!("volume {file}: {e}; it is tried again"));
            }
        } else if let Some(removed) = event.news::<Removed>() {
            self.removed(removed, turn);
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) {
        self.look(turn);
        self.collect(turn);
        let Some(desired) = turn.config.cloned() else { return };
        let needed = turn.facts.get::<WantedVolumes>().cloned().unwrap_or_default();
        let purges = turn.facts.get::<Purges>().cloned().unwrap_or_default();
        let wanted = Wanted { volumes: &desired.volumes, needed: &needed.0, purges: &purges.0 };
        self.state.tidy(&wanted);
        for make in self.state.to_make(&wanted, turn.now) {
            self.make(make, turn);
        }
        if let Some(at) = self.state.next(turn.now) {
            turn.wake(at);
        }
        self.publish(&desired.volumes, turn);
    }

    fn observe(&self, observed: &mut Observed) {
        observed.volumes.extend(self.status.iter().cloned());
    }
}

impl VolumePart {
    fn removed(&mut self, Removed { keys, names, result }: &Removed, turn: &mut Turn<'_>) {
        self.state.removing = false;
        match result {
            Ok(()) => {
                if let Some(present) = &mut self.state.present {
                    present.retain(|key, _| !keys.contains(key));
                }
                self.state.strays.retain(|name| !names.contains(name));
                turn.say("info", format!("volumes removed: {}", names.join(", ")));
            }
            Err(e) => {
                self.state.remove_at = turn.now + RETRY;
                self.said.once(turn, "warning", &format!("old volumes stay: {e}; tried again"));
                // Strays that cannot be removed hold nobody up.
                self.state.strays.retain(|name| !names.contains(name));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
