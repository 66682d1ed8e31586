//! The part's turn on a bench, over a folder in memory and jobs that report what a test lets them.

use super::images::partial_name;
use super::jobs::Reported;
use super::*;
use crate::fetching::Reports;
use crate::testing::Bench;
use crate::world::Local;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::fetch::{ImageConfig, Outcome, Phase, Report};
use holdfast_model::storage::{Datastore, DatastoreKind};
use holdfast_model::trouble::{self, Object, Trouble};
use holdfast_supervise::UnitSpec;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{pending, ready};
use std::io;
use std::path::Path;

#[derive(Default)]
pub(crate) struct World {
    pub(crate) names: RefCell<BTreeSet<String>>,
    pub(crate) began: RefCell<Vec<UnitName>>,
    pub(crate) stopped: RefCell<Vec<UnitName>>,
    removed: RefCell<Vec<UnitName>>,
    adopted: RefCell<Vec<UnitName>>,
    /// What the next jobs report, each ending with the end of its list.
    pub(crate) reports: RefCell<VecDeque<Vec<Report>>>,
}

struct Script(RefCell<VecDeque<Report>>, bool);

impl Reports for Script {
    fn next(&self) -> Local<Option<Report>> {
        match self.0.borrow_mut().pop_front() {
            None if self.1 => Box::pin(pending()),
            report => Box::pin(ready(report)),
        }
    }
}

impl Fetching for World {
    fn start(&self, order: Order) -> Local<Result<Rc<dyn Reports>, String>> {
        self.began.borrow_mut().push(order.unit);
        let list = self.reports.borrow_mut().pop_front();
        // Without a script it goes on for ever.
        let script = Script(RefCell::new(list.clone().unwrap_or_default().into()), list.is_none());
        Box::pin(ready(Ok(Rc::new(script) as Rc<dyn Reports>)))
    }
    fn adopt(&self, unit: UnitName) -> Local<Result<Rc<dyn Reports>, String>> {
        self.adopted.borrow_mut().push(unit);
        let list = self.reports.borrow_mut().pop_front();
        let script = Script(RefCell::new(list.clone().unwrap_or_default().into()), list.is_none());
        Box::pin(ready(Ok(Rc::new(script) as Rc<dyn Reports>)))
    }
    fn stop(&self, unit: UnitName) -> Local<Result<(), String>> {
        self.stopped.borrow_mut().push(unit);
        Box::pin(ready(Ok(())))
    }
    fn remove(&self, unit: UnitName) -> Local<Result<(), String>> {
        self.removed.borrow_mut().push(unit);
        Box::pin(ready(Ok(())))
    }
}

impl ImageStore for World {
    fn file(&self, sha256: &str) -> PathBuf {
        Path::new("/data/images").join(name_of(sha256))
    }
    fn partial(&self, content: Uuid) -> PathBuf {
        Path::new("/data/images").join(partial_name(content))
    }
    fn spool(&self) -> PathBuf {
        "/data/images/spool".into()
    }
    fn look(&self) -> Local<io::Result<Vec<String>>> {
        Box::pin(ready(Ok(self.names.borrow().iter().cloned().collect())))
    }
    fn keep(&self, _: Uuid, sha256: String) -> Local<io::Result<()>> {
        self.names.borrow_mut().insert(name_of(&sha256));
        Box::pin(ready(Ok(())))
    }
    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>> {
        self.names.borrow_mut().retain(|n| !names.contains(n));
        Box::pin(ready(Ok(())))
    }
}

pub(crate) fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub(crate) fn desired(contents: &[(u128, &str)]) -> Desired {
    let tree = |(n, path): &(u128, &str)| ContentTree {
        id: id(*n),
        name: format!("c{n}"),
        datastores: vec![id(99)],
        path: (*path).into(),
        format: ImageFormat::Container,
        sha256: String::new(),
        max_size_bytes: 0,
        generation: 0,
    };
    let store = Datastore {
        id: id(99),
        kind: DatastoreKind::ContainerRegistry,
        host: "reg".into(),
        path: String::new(),
        user: String::new(),
        password: String::new(),
        ca_pem: vec![],
    };
    let mut desired =
        Desired { contents: contents.iter().map(tree).collect(), datastores: vec![store], ..Desired::default() };
    desired.properties.download_retry_seconds = 600;
    desired
}

pub(crate) fn done(sha256: &str) -> Report {
    let config = ImageConfig { cmd: vec!["/web".into()], ..ImageConfig::default() };
    Report::Done(Outcome::Oci { manifest_sha256: sha256.into(), size_bytes: 7, config })
}

fn part(world: &Rc<World>, kept: Kept) -> ContentPart {
    ContentPart::over(Means { fetching: world.clone(), images: world.clone(), roots_pem: vec![] }, kept)
}

fn kept(bench: &Bench) -> Kept {
    serde_json::from_slice(&bench.files[Path::new(FILE)]).unwrap()
}

fn unit(id: Uuid, state: UnitState) -> UnitStatus {
    UnitStatus { name: unit_of(id), state, since_ms: 0, restarts: 0, exit: None, end: None, spec: None }
}

#[test]
fn an_image_is_fetched_kept_and_recalled_by_the_next_agent() {
    let world = Rc::new(World::default());
    let progress = Report::Progress { phase: Phase::Downloading, bytes: 1, total: 2 };
    world.reports.borrow_mut().push_back(vec![progress, done("aa")]);
    let (mut first, mut bench) = (part(&world, Kept::default()), Bench::default());
    bench.event(&mut first, &Event::Units(Rc::new([])));
    bench.config(&mut first, desired(&[(1, "web:1")]));
    let image = bench.facts.get::<Images>().unwrap().0[&id(1)].clone();
    assert_eq!((image.state, image.file), (LoadState::Loaded, "/data/images/aa.erofs".into()));
    assert_eq!(bench.said("content c1: complete, sha256 aa"), 1);

    let (mut second, mut again) = (part(&world, kept(&bench)), Bench::default());
    again.event(&mut second, &Event::Units(Rc::new([])));
    again.config(&mut second, desired(&[(1, "web:1")]));
    assert_eq!(again.facts.get::<Images>().unwrap().0[&id(1)].image.as_ref().unwrap().cmd, ["/web"]);
    assert_eq!(world.began.borrow().len(), 1, "nothing is fetched again");
}

#[test]
fn a_job_that_dies_is_tried_again_and_its_half_removed() {
    let world = Rc::new(World::default());
    world.reports.borrow_mut().push_back(vec![]);
    world.reports.borrow_mut().push_back(vec![done("aa")]);
    let (mut part, mut bench) = (part(&world, Kept::default()), Bench::default());
    bench.event(&mut part, &Event::Units(Rc::new([])));
    bench.config(&mut part, desired(&[(1, "web:1")]));
    let mut observed = Observed::default();
    part.observe(&mut observed);
    assert!(
        trouble::texts(&observed.contents[0].troubles).contains("content c1: the download job ended without a result")
    );
    bench.at(&mut part, 9);
    assert_eq!(world.began.borrow().len(), 1);
    bench.at(&mut part, 10);
    assert_eq!(bench.facts.get::<Images>().unwrap().0[&id(1)].state, LoadState::Loaded);
}

#[test]
fn a_job_that_dies_leaves_its_last_words() {
    let world = Rc::new(World::default());
    let (mut part, mut bench) = (part(&world, Kept::default()), Bench::default());
    bench.event(&mut part, &Event::Units(Rc::new([])));
    bench.config(&mut part, desired(&[(1, "web:1")]));
    let end = Some(End::new(ExitClass::OutOfMemory, "its memory limit of 192 MiB was reached"));
    bench.event(&mut part, &Event::Unit(Rc::new(UnitStatus { end, ..unit(id(1), UnitState::Ended) })));
    assert!(world.removed.borrow().is_empty(), "its outcome is not known yet");
    let none = Reported((id(1), 1), Rc::new(Script(RefCell::default(), true)), None);
    bench.event(&mut part, &Event::News(Rc::new(none)));
    let text = bench.facts.get::<Images>().unwrap().0[&id(1)].error.clone();
    assert!(text.contains("without a result: its memory limit of 192 MiB was reached"), "{text}");
}

#[test]
fn a_change_while_a_job_runs_ends_it_and_its_outcome_counts_for_nothing() {
    let world = Rc::new(World::default());
    let (mut part, mut bench) = (part(&world, Kept::default()), Bench::default());
    bench.event(&mut part, &Event::Units(Rc::new([])));
    bench.config(&mut part, desired(&[(1, "web:1")]));
    assert_eq!(world.began.borrow().len(), 1);
    bench.config(&mut part, desired(&[(1, "web:2")]));
    assert_eq!(*world.stopped.borrow(), [unit_of(id(1))]);
    let late = Reported((id(1), 1), Rc::new(Script(RefCell::default(), true)), Some(done("old")));
    bench.event(&mut part, &Event::News(Rc::new(late)));
    assert!(world.names.borrow().is_empty(), "the image of the former tag is not kept");
    bench.at(&mut part, 2);
    assert_eq!(world.began.borrow().len(), 2, "once the former job has ended");
}

#[test]
fn a_content_with_a_fault_keeps_its_image_and_one_that_is_deleted_does_not() {
    let world = Rc::new(World::default());
    world.reports.borrow_mut().extend([vec![done("aa")], vec![done("bb")]]);
    let (mut part, mut bench) = (part(&world, Kept::default()), Bench::default());
    bench.event(&mut part, &Event::Units(Rc::new([])));
    bench.config(&mut part, desired(&[(1, "web:1"), (2, "db:1")]));
    let mut broken = desired(&[]);
    let text = "datastore: typo".to_owned();
    broken.faults.push(Trouble::error(Object::new(ObjectKind::Content, id(1), "c1"), text));
    bench.config(&mut part, broken);
    assert_eq!(*world.names.borrow(), [name_of("aa")].into());
    bench.config(&mut part, desired(&[(1, "web:1")]));
    assert_eq!(bench.facts.get::<Images>().unwrap().0[&id(1)].state, LoadState::Loaded);
    assert_eq!(world.began.borrow().len(), 2, "the repaired one is not fetched again");
}

#[test]
fn nothing_is_removed_before_a_config_is_known() {
    let world = Rc::new(World::default());
    world.names.borrow_mut().insert(name_of("aa"));
    let (mut part, mut bench) = (part(&world, Kept::default()), Bench::default());
    bench.event(&mut part, &Event::Units(Rc::new([])));
    assert_eq!(world.names.borrow().len(), 1);
    bench.config(&mut part, desired(&[]));
    assert!(world.names.borrow().is_empty());
}

/// A job of a former agent for a content of this path.
fn left_behind(path: &str, state: UnitState) -> Event {
    let asked = state::asked(&desired(&[(1, path)]).contents[0]);
    let mut spec = UnitSpec::new(unit_of(id(1)), "/bin/fetch", 1000);
    spec.tag = state::tag(&asked);
    Event::Units([UnitStatus { spec: Some(Box::new(spec)), ..unit(id(1), state) }].into())
}

#[test]
fn the_job_of_a_former_agent_goes_on_when_it_is_for_what_is_wanted() {
    for state in [UnitState::Running { pid: 5 }, UnitState::Ended] {
        let world = Rc::new(World::default());
        world.names.borrow_mut().insert(partial_name(id(1)));
        let (mut part, mut bench) = (part(&world, Kept::default()), Bench::default());
        bench.event(&mut part, &left_behind("web:1", state));
        assert!(world.adopted.borrow().is_empty(), "it is not known yet what is wanted");
        bench.config(&mut part, desired(&[(1, "web:1")]));
        assert_eq!((world.adopted.borrow().len(), world.began.borrow().len(), world.stopped.borrow().len()), (1, 0, 0));
        assert_eq!(world.names.borrow().len(), 1, "what it writes to stays");
        let done = Reported((id(1), 1), Rc::new(Script(RefCell::default(), true)), Some(done("aa")));
        bench.event(&mut part, &Event::News(Rc::new(done)));
        assert_eq!(bench.facts.get::<Images>().unwrap().0[&id(1)].state, LoadState::Loaded);
        assert_eq!(*world.removed.borrow(), [unit_of(id(1))], "its unit goes once its outcome is kept");
    }
}

#[test]
fn the_job_of_a_former_agent_ends_when_something_else_is_wanted() {
    let world = Rc::new(World::default());
    world.names.borrow_mut().insert(partial_name(id(1)));
    let (mut part, mut bench) = (part(&world, Kept::default()), Bench::default());
    bench.event(&mut part, &left_behind("web:1", UnitState::Running { pid: 5 }));
    bench.config(&mut part, desired(&[]));
    assert_eq!((world.adopted.borrow().len(), world.stopped.borrow().len()), (0, 1));
    assert!(world.names.borrow().is_empty(), "its half is removed");
}

#[test]
fn an_ended_job_leaves_the_table() {
    let world = Rc::new(World::default());
    let (mut part, mut bench) = (part(&world, Kept::default()), Bench::default());
    bench.event(&mut part, &Event::Unit(Rc::new(unit(id(1), UnitState::Ended))));
    assert_eq!(*world.removed.borrow(), [unit_of(id(1))]);
}
