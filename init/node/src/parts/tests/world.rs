//! A world for contents, volumes and apps where anything may fail.

use crate::fetching::{Fetching, Order, Reports};
use crate::parts::app::machines::Machines;
use crate::parts::app::tests::{VOLUME, WEB};
use crate::parts::app::vm::{Plan, unit_of};
use crate::parts::content::images::{self, ImageStore};
use crate::parts::content::tests::done;
use crate::parts::volume::files::{self, Listing, VolumeStore};
use crate::world::Local;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::fetch::{FailureClass, Report};
use holdfast_supervise::{UnitName, UnitSpec, UnitState, UnitStatus};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use uuid::Uuid;

/// Everything but the agent.
#[derive(Default)]
pub(super) struct World {
    pub(super) now_ms: Cell<u64>,
    /// The VM's unit, with its tag.
    pub(super) vm: RefCell<Option<(UnitStatus, String)>>,
    pub(super) events: RefCell<Vec<UnitStatus>>,
    /// Volumes; true when an app has written to it.
    volumes: RefCell<BTreeMap<(Uuid, i64), bool>>,
    pub(super) images: RefCell<Vec<String>>,
    pub(super) no_space: Cell<bool>,
    pub(super) no_server: Cell<bool>,
    pub(super) no_vm: Cell<bool>,
    pub(super) stops: Cell<usize>,
    pub(super) lost: Cell<usize>,
}

impl World {
    fn unit(&self, state: UnitState, end: Option<End>, tag: &str) {
        let mut spec = UnitSpec::new(unit_of(WEB), "/bin/vmm", 0);
        spec.tag = tag.into();
        let status = UnitStatus {
            name: unit_of(WEB),
            state,
            since_ms: self.now_ms.get(),
            restarts: 0,
            exit: None,
            end,
            spec: Some(Box::new(spec)),
        };
        self.events.borrow_mut().push(UnitStatus { spec: None, ..status.clone() });
        *self.vm.borrow_mut() = Some((status, tag.into()));
    }

    pub(super) fn running(&self) -> bool {
        self.vm.borrow().as_ref().is_some_and(|(status, _)| matches!(status.state, UnitState::Running { .. }))
    }

    pub(super) fn end(&self, class: ExitClass) {
        if self.running() {
            let tag = self.vm.borrow().as_ref().map(|(_, tag)| tag.clone()).unwrap_or_default();
            self.unit(UnitState::Ended, Some(End::new(class, "ended")), &tag);
        }
    }
}

/// The world as the parts see it. Effects happen when an operation runs, not when it is asked for.
#[derive(Clone)]
pub(super) struct Seen(pub(super) Rc<World>);

struct One(RefCell<Option<Report>>);

impl Reports for One {
    fn next(&self) -> Local<Option<Report>> {
        let report = self.0.borrow_mut().take();
        Box::pin(async move { report })
    }
}

impl Machines for Seen {
    fn start(&self, plan: Plan) -> Local<Result<(), String>> {
        let world = self.0.clone();
        Box::pin(async move {
            assert!(!world.running(), "PID 1 is asked for a VM that runs");
            assert!(world.volumes.borrow().contains_key(&(VOLUME, 0)), "a VM starts without its volume");
            if world.no_vm.get() {
                return Err("app web: no tap".into());
            }
            world.volumes.borrow_mut().insert((VOLUME, 0), true);
            world.unit(UnitState::Running { pid: 1 }, None, &plan.tag());
            Ok(())
        })
    }
    fn stop(&self, _: Uuid) -> Local<Result<bool, String>> {
        let world = self.0.clone();
        Box::pin(async move {
            let runs = world.running();
            world.stops.set(world.stops.get() + usize::from(runs));
            world.end(ExitClass::Stopped);
            Ok(runs)
        })
    }
    fn remove(&self, _: Uuid) -> Local<Result<(), String>> {
        let world = self.0.clone();
        Box::pin(async move {
            assert!(!world.running(), "a VM that runs is dropped");
            *world.vm.borrow_mut() = None;
            Ok(())
        })
    }
}

impl VolumeStore for Seen {
    fn file(&self, volume: Uuid, generation: i64) -> PathBuf {
        files::file_of(Path::new("/data/volumes"), volume, generation)
    }
    fn look(&self) -> Local<io::Result<Listing>> {
        let world = self.0.clone();
        Box::pin(async move {
            let volumes = world.volumes.borrow().keys().map(|key| (*key, 4096)).collect();
            Ok(Listing { volumes, strays: vec![] })
        })
    }
    fn make(&self, volume: Uuid, generation: i64, _: u64) -> Local<io::Result<u64>> {
        let world = self.0.clone();
        Box::pin(async move {
            if world.no_space.get() {
                return Err(io::Error::other("no space"));
            }
            assert!(!world.running(), "a volume is replaced under its VM");
            if world.volumes.borrow_mut().insert((volume, generation), false) == Some(true) {
                world.lost.set(world.lost.get() + 1);
            }
            Ok(4096)
        })
    }
    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>> {
        let world = self.0.clone();
        Box::pin(async move {
            for key in names.iter().filter_map(|name| files::key_of(name)) {
                let written = world.volumes.borrow_mut().remove(&key) == Some(true);
                world.lost.set(world.lost.get() + usize::from(written));
            }
            Ok(())
        })
    }
}

impl ImageStore for Seen {
    fn file(&self, sha256: &str) -> PathBuf {
        Path::new("/data/images").join(images::name_of(sha256))
    }
    fn partial(&self, content: Uuid) -> PathBuf {
        Path::new("/data/images").join(images::partial_name(content))
    }
    fn spool(&self) -> PathBuf {
        "/data/images/spool".into()
    }
    fn look(&self) -> Local<io::Result<Vec<String>>> {
        let world = self.0.clone();
        Box::pin(async move { Ok(world.images.borrow().clone()) })
    }
    fn keep(&self, _: Uuid, sha256: String) -> Local<io::Result<()>> {
        let world = self.0.clone();
        Box::pin(async move {
            world.images.borrow_mut().push(images::name_of(&sha256));
            Ok(())
        })
    }
    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>> {
        let world = self.0.clone();
        Box::pin(async move {
            world.images.borrow_mut().retain(|name| !names.contains(name));
            Ok(())
        })
    }
}

impl Fetching for Seen {
    fn start(&self, _: Order) -> Local<Result<Rc<dyn Reports>, String>> {
        let world = self.0.clone();
        Box::pin(async move {
            let cut = Report::Failed { class: FailureClass::Transport, text: "cut".into() };
            let report = if world.no_server.get() { cut } else { done("aa") };
            Ok(Rc::new(One(RefCell::new(Some(report)))) as Rc<dyn Reports>)
        })
    }
    fn adopt(&self, _: UnitName) -> Local<Result<Rc<dyn Reports>, String>> {
        Box::pin(async { Err("no reports".into()) })
    }
    fn stop(&self, _: UnitName) -> Local<Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
    fn remove(&self, _: UnitName) -> Local<Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}
