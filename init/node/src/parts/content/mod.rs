//! Contents: images that apps start from, as files below `/data/images`.
//!
//! Principles:
//! 1. What is complete is recalled after a restart of the agent, and a job that runs goes on; only a reboot makes it begin again.
//! 2. A file is removed only when the config is known, no content of it needs the file, and none with a fault may.
//! 3. The outcome of a job counts for what was asked when it began, and for nothing else.
//!
//! Reading order: [`facts`], [`state`] (what is known of each, pure), [`kept`], [`images`] (the folder), `jobs`.

pub mod facts;
pub mod images;
mod jobs;
pub mod kept;
pub mod state;

use self::facts::{ImageFact, Images};
use self::images::{Folder, ImageStore, content_of_partial, name_of, partial_name};
use self::jobs::Began;
use self::kept::Kept;
use self::state::Contents;
use crate::fetching::source::{Fetch, What, plan};
use crate::fetching::units::Units;
use crate::fetching::{Fetching, Get, Order, UNITS};
use crate::keeper::{Keeper, Said};
use crate::part::{Event, Part, Turn};
use crate::setup::Setup;
use crate::unsure::Unsure;
use holdfast_model::contract::fetch::FailureClass;
use holdfast_model::desired::Desired;
use holdfast_model::observed::{LoadState, Observed};
use holdfast_model::storage::{ContentTree, ImageFormat};
use holdfast_model::trouble::{self, ObjectKind};
use holdfast_supervise::{UnitName, UnitState, UnitStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// File of the part below the data folder.
pub const FILE: &str = "status/content.json";
/// Time that a job takes to end once it is killed.
const JOB_END: Duration = Duration::from_secs(2);
/// Between two tries of what has no deadline of its own: the first look, a removal.
const RETRY: Duration = Duration::from_secs(10);

/// What the part acts through.
pub struct Means {
    /// Runs jobs.
    pub fetching: Rc<dyn Fetching>,
    /// The folder of images.
    pub images: Rc<dyn ImageStore>,
    /// Certificate authorities of the site, PEM, trusted beside those of a datastore.
    pub roots_pem: Vec<String>,
}

/// The part on a real machine.
///
/// # Errors
/// Never.
pub fn new(setup: &Setup, kept: Option<&[u8]>) -> anyhow::Result<Box<dyn Part>> {
    let means = Means {
        fetching: Rc::new(Units { supervisor: setup.supervisor.clone(), reports: setup.job_reports() }),
        images: Rc::new(Folder(setup.paths.data("images"))),
        roots_pem: setup.roots_pem(),
    };
    Ok(Box::new(ContentPart::over(means, setup.kept(FILE, kept))))
}

/// The part.
pub struct ContentPart {
    means: Means,
    kept: Kept,
    keeper: Keeper<Kept>,
    contents: Contents,
    /// The config that `contents` were taken from.
    taken: Option<Rc<Desired>>,
    /// Jobs that an agent before this one started, with their tags, until a config says whether they are wanted; `None` until
    /// PID 1 has said what runs.
    found: Option<BTreeMap<Uuid, String>>,
    /// Names of files in the folder; `None` before the first look.
    present: Option<BTreeSet<String>>,
    looking: bool,
    look_at: Duration,
    removing: bool,
    remove_at: Duration,
    jobs: u64,
    /// Units that could not be ended or dropped, and when that is tried again.
    left: BTreeMap<Uuid, Duration>,
    said: Said,
}

/// News: the folder was looked at.
struct Looked(Result<Vec<String>, String>);

/// News: files were removed, or not.
struct Removed(Vec<String>, Result<(), String>);

/// News: the unit of a content's job was ended or dropped; what is wrong with that, if anything.
struct Dropped(Uuid, Result<(), String>);

impl ContentPart {
    /// A part that goes on from what was kept.
    #[must_use]
    pub fn over(means: Means, kept: Kept) -> Self {
        Self {
            means,
            keeper: Keeper::new(FILE, kept.clone()),
            kept,
            contents: Contents::default(),
            taken: None,
            found: None,
            present: None,
            looking: false,
            look_at: Duration::ZERO,
            removing: false,
            remove_at: Duration::ZERO,
            jobs: 0,
            left: BTreeMap::new(),
            said: Said::default(),
        }
    }

    fn look(&mut self, turn: &mut Turn<'_>) {
        if self.present.is_some() || self.looking {
            return;
        }
        if turn.now < self.look_at {
            return turn.wake(self.look_at);
        }
        self.looking = true;
        let look = self.means.images.look();
        turn.start("look at the images", async move { Looked(look.await.map_err(|e| e.to_string())) });
    }

    /// Takes a new config in.
    fn take(&mut self, turn: &mut Turn<'_>) {
        let (Some(desired), Some(present)) = (turn.config.cloned(), &self.present) else { return };
        if self.taken.as_ref().is_some_and(|t| Rc::ptr_eq(t, &desired)) {
            return;
        }
        let wanted: Vec<ContentTree> = images_of(&desired).cloned().collect();
        let stale = self.contents.want(&wanted, &self.kept.contents, &|k| present.contains(&name_of(&k.sha256)));
        for id in stale {
            self.stop(id, turn);
            // The next job can start once this one has ended.
            if let Some(content) = self.contents.by_id.get_mut(&id) {
                content.retry_at = turn.now + JOB_END;
            }
        }
        let unsure = Unsure::of(&desired, ObjectKind::Content);
        self.kept.contents.retain(|id, _| wanted.iter().any(|c| c.id == *id) || unsure.may_want(id));
        self.taken = Some(desired);
    }

    fn stop(&self, id: Uuid, turn: &mut Turn<'_>) {
        let stop = self.means.fetching.stop(unit_of(id));
        turn.start(format!("stop the job of {id}"), async move { Dropped(id, stop.await) });
    }

    /// Tries again to end and drop units, unless another job has their name by now.
    fn stop_what_is_left(&mut self, turn: &mut Turn<'_>) {
        let contents = &self.contents;
        self.left.retain(|id, _| !contents.by_id.get(id).is_some_and(|c| c.busy));
        let due: Vec<Uuid> = self.left.extract_if(.., |_, at| *at <= turn.now).map(|(id, _)| id).collect();
        due.into_iter().for_each(|id| self.stop(id, turn));
        self.left.values().for_each(|at| turn.wake(*at));
    }

    /// Goes on with the jobs of a former agent that are for what is wanted; ends the others.
    fn adopt(&mut self, turn: &mut Turn<'_>) {
        if self.taken.is_none() {
            return;
        }
        for (id, tag) in std::mem::take(self.found.get_or_insert_default()) {
            match self.contents.by_id.get_mut(&id) {
                Some(content) if content.due(turn.now) && state::tag(&content.asked) == tag => {
                    self.jobs += 1;
                    let job = (id, self.jobs);
                    content.begin(self.jobs);
                    let adopt = self.means.fetching.adopt(unit_of(id));
                    turn.start(format!("go on with {id}"), async move { Began(job, adopt.await) });
                }
                _ => self.stop(id, turn),
            }
        }
    }

    fn fetch_what_is_due(&mut self, turn: &mut Turn<'_>) {
        let Some(desired) = self.taken.clone() else { return };
        let due: Vec<Uuid> = self.contents.by_id.iter().filter(|(_, c)| c.due(turn.now)).map(|(id, _)| *id).collect();
        for id in due {
            let (Some(tree), Some(content)) =
                (desired.contents.iter().find(|c| c.id == id), self.contents.by_id.get_mut(&id))
            else {
                continue;
            };
            let fetch = plan(tree, &desired.datastores, &self.means.roots_pem, content.failures)
                .and_then(|fetch| self.means.order(fetch, tree));
            match fetch {
                Ok(order) => {
                    self.jobs += 1;
                    let job = (id, self.jobs);
                    content.begin(self.jobs);
                    self.present.get_or_insert_default().insert(partial_name(id));
                    let begin = self.means.fetching.start(order);
                    turn.start(format!("fetch {}", tree.name), async move { Began(job, begin.await) });
                }
                Err(text) => {
                    content.failed(turn.now, FailureClass::Refused, &text, retry(&desired));
                    let text = trouble::texts(&content.status.troubles);
                    self.said.once(turn, "error", &text);
                }
            }
        }
        let now = turn.now;
        self.contents.by_id.values().filter(|c| c.retry_at > now).for_each(|c| turn.wake(c.retry_at));
    }

    /// Removes image files that nothing needs; a running virtual machine keeps its open file.
    fn collect(&mut self, turn: &mut Turn<'_>) {
        let (Some(_), Some(_), Some(present)) = (&self.taken, &self.found, &self.present) else { return };
        if self.removing || turn.now < self.remove_at {
            return;
        }
        let needed: BTreeSet<String> = self.kept.contents.values().map(|k| name_of(&k.sha256)).collect();
        let comes = |name: &str| {
            content_of_partial(name).is_some_and(|id| self.contents.by_id.get(&id).is_some_and(|c| c.busy))
        };
        let names: Vec<String> = present.difference(&needed).filter(|name| !comes(name)).cloned().collect();
        if !names.is_empty() {
            self.removing = true;
            self.remove(names, turn);
        }
    }

    fn remove(&self, names: Vec<String>, turn: &mut Turn<'_>) {
        let remove = self.means.images.remove(names.clone());
        turn.start("remove images", async move { Removed(names, remove.await.map_err(|e| e.to_string())) });
    }

    fn removed(&mut self, names: &[String], result: &Result<(), String>, turn: &mut Turn<'_>) {
        self.removing = false;
        match (result, &mut self.present) {
            (Ok(()), Some(present)) => present.retain(|name| !names.contains(name)),
            (Err(e), _) => {
                self.remove_at = turn.now + RETRY;
                self.said.once(turn, "warning", &format!("old images stay: {e}; tried again"));
            }
            (Ok(()), None) => {}
        }
    }

    /// All that PID 1 knows: jobs that are not of this agent are of one before it.
    fn units(&mut self, list: &[UnitStatus]) {
        let found = self.found.get_or_insert_default();
        for status in list {
            let Some(id) = content_of(&status.name) else { continue };
            if !self.contents.by_id.get(&id).is_some_and(|c| c.busy) {
                found.insert(id, status.spec.as_ref().map(|s| s.tag.clone()).unwrap_or_default());
            }
        }
    }

    /// PID 1's table is for units that somebody may ask for: an ended job is none, once its outcome is known.
    fn unit(&mut self, status: &UnitStatus, turn: &mut Turn<'_>) {
        let Some(id) = content_of(&status.name).filter(|_| matches!(status.state, UnitState::Ended)) else { return };
        let found = self.found.as_ref().is_some_and(|f| f.contains_key(&id));
        match self.contents.by_id.get_mut(&id) {
            Some(content) if content.busy => {
                let end = status.end.as_ref().filter(|end| end.class.is_failure());
                content.words = end.map(|end| end.reason.clone());
            }
            _ if !found => {
                self.left_half(id);
                self.drop_unit(id, turn);
            }
            _ => {}
        }
    }

    fn publish(&self, turn: &mut Turn<'_>) {
        let images = self.contents.by_id.iter().map(|(id, c)| {
            let loaded = c.status.state == LoadState::Loaded;
            let fact = ImageFact {
                name: c.status.name.clone(),
                state: c.status.state,
                progress: c.status.progress,
                sha256: c.status.sha256.clone(),
                size_bytes: c.status.size_bytes,
                file: if loaded { self.means.images.file(&c.status.sha256) } else { PathBuf::new() },
                image: c.image.clone(),
                error: trouble::texts(&c.status.troubles),
            };
            (*id, fact)
        });
        turn.facts.publish(Images(images.collect::<BTreeMap<_, _>>()));
    }
}

impl Means {
    /// The job for a fetch.
    fn order(&self, fetch: Fetch, tree: &ContentTree) -> Result<Order, String> {
        let (What::Oci { repository, reference }, ImageFormat::Container) = (fetch.what, tree.format) else {
            return Err(format!(
                "expected a container image (format 8), found {:?}: other formats need firmware, which this version does not have",
                tree.format
            ));
        };
        Ok(Order {
            unit: unit_of(fetch.id),
            tag: state::tag(&state::asked(tree)),
            server: fetch.server,
            get: Get::Image {
                repository,
                reference,
                sha256: fetch.sha256,
                max_bytes: fetch.max_bytes,
                output: self.images.partial(fetch.id),
                spool: self.images.spool(),
            },
        })
    }
}

/// The contents that are images: the base OS payload streams into the other slot.
fn images_of(desired: &Desired) -> impl Iterator<Item = &ContentTree> {
    desired.contents.iter().filter(|c| desired.base_os.as_ref().is_none_or(|b| b.content != c.id))
}

fn retry(desired: &Desired) -> Duration {
    Duration::from_secs(desired.properties.download_retry_seconds.into())
}

/// Unit of a content's job.
///
/// # Panics
/// Never: a UUID is a valid part of a unit name.
fn unit_of(content: Uuid) -> UnitName {
    UnitName::new(format!("{UNITS}{content}")).expect("a UUID has only characters that unit names allow")
}

fn content_of(unit: &UnitName) -> Option<Uuid> {
    unit.as_str().strip_prefix(UNITS).and_then(|id| id.parse().ok())
}

impl Part for ContentPart {
    fn name(&self) -> &'static str {
        "content"
    }

    fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        self.keeper.event(event, turn);
        match event {
            Event::Units(list) => self.units(list),
            Event::Unit(status) => self.unit(status, turn),
            _ => {}
        }
        self.job_event(event, turn);
        if let Some(Looked(result)) = event.news() {
            self.looking = false;
            match result {
                Ok(names) => self.present = Some(names.iter().cloned().collect()),
                Err(e) => {
                    self.look_at = turn.now + RETRY;
                    self.said.once(turn, "error", &format!("images cannot be listed: {e}; tried again"));
                }
            }
        } else if let Some(Removed(names, result)) = event.news() {
            self.removed(names, result, turn);
        } else if let Some(Dropped(id, Err(e))) = event.news() {
            self.left.insert(*id, turn.now + RETRY);
            self.said.once(turn, "warning", &format!("{e}; tried again"));
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) {
        self.look(turn);
        self.take(turn);
        if self.found.is_some() {
            self.adopt(turn);
            self.fetch_what_is_due(turn);
        }
        self.stop_what_is_left(turn);
        self.keeper.keep(&self.kept, turn);
        self.collect(turn);
        self.publish(turn);
    }

    fn observe(&self, observed: &mut Observed) {
        observed.contents.extend(self.contents.by_id.values().map(|c| c.status.clone()));
    }
}

#[cfg(test)]
pub(crate) mod tests;
