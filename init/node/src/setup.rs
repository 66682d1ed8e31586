//! What parts are constructed from: this boot, and the real things that they act through; and the kernel that runs them.
//!
//! The same for the agent and for recovery, which has a closed vault and fewer parts.

use crate::boot::{Boot, Paths};
use crate::kernel::{Kernel, Means};
use crate::part::{Event, Facts, Line};
use crate::parts;
use crate::parts::logs::{self, Shared};
use crate::parts::network::facts::Uplinks;
use crate::parts::vault::Opener;
use crate::trust::Device;
use crate::world::Clock;
use crate::world::init::{beat, watch as watch_init};
use crate::world::real::{DataFolder, KernelClock};
use anyhow::Result;
use holdfast_identity::Identity;
use holdfast_model::observed::Observed;
use holdfast_supervise::AsyncClient;
use serde::de::DeserializeOwned;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use tokio::sync::{mpsc, watch};

/// Everything that a part may need; each takes what it does.
pub struct Setup {
    /// This boot.
    pub boot: Boot,
    /// Where things are.
    pub paths: Paths,
    /// PID 1.
    pub supervisor: Rc<AsyncClient>,
    /// Keys and TPM.
    pub identity: Arc<dyn Identity>,
    /// The same, towards the controller.
    pub device: Arc<Device>,
    /// The vault is open; recovery has none.
    pub vault_open: bool,
    /// What opens the vault, and why it is closed; `None` while it is open.
    pub locked: Option<(Rc<dyn Opener>, String)>,
    /// Lines for the controller.
    pub logs: Shared,
    /// The ways to the controller, for the session.
    pub uplinks: watch::Sender<Uplinks>,
    /// Said by the device part while it is constructed: the last boot ended in a crash that its config may have caused.
    pub after_crash: Rc<Cell<bool>>,
    /// What could not be read of the parts' files.
    pub lost: RefCell<Vec<String>>,
    tasks: RefCell<Vec<Task>>,
}

/// What the tasks of parts are given.
pub struct Running {
    /// Where they send what they learn.
    pub events: mpsc::UnboundedSender<Event>,
    /// What is to be reported.
    pub report: watch::Receiver<Observed>,
}

type Task = Box<dyn FnOnce(&Running) -> Result<()>>;

impl Setup {
    /// For this boot; the vault is closed when there is something that opens it.
    #[must_use]
    pub fn new(
        boot: Boot,
        paths: Paths,
        device: Arc<Device>,
        logs: Shared,
        locked: Option<(Rc<dyn Opener>, String)>,
    ) -> Self {
        Self {
            supervisor: Rc::new(AsyncClient::new(paths.supervise())),
            identity: device.identity().clone(),
            vault_open: locked.is_none(),
            boot,
            paths,
            device,
            locked,
            logs,
            uplinks: watch::channel(Uplinks::default()).0,
            after_crash: Rc::default(),
            lost: RefCell::default(),
            tasks: RefCell::default(),
        }
    }

    /// Begins a long-running task of a part once all parts are constructed.
    pub fn task(&self, begin: impl FnOnce(&Running) -> Result<()> + 'static) {
        self.tasks.borrow_mut().push(Box::new(begin));
    }

    /// Runs the parts until `done`, inside a local task set.
    ///
    /// # Errors
    /// When a part cannot be constructed, or a task of it not begin.
    pub async fn run(self, done: impl Fn(&Facts) -> bool) -> Result<()> {
        let parts = parts::all(&self)?;
        for text in self.lost.take() {
            say(&self.logs, &Line { severity: "warning", text });
        }
        let logs = self.logs.clone();
        let means = Means {
            clock: Rc::new(KernelClock),
            files: Rc::new(DataFolder::new(&self.paths.data)),
            say: Box::new(move |line| say(&logs, line)),
        };
        let (mut kernel, report) = Kernel::new(parts, means);
        let running = Running { events: kernel.sender(), report };
        for begin in self.tasks.take() {
            begin(&running)?;
        }
        tokio::task::spawn_local(watch_init(self.paths.supervise(), self.supervisor.clone(), kernel.sender()));
        tokio::task::spawn_local(beat(Rc::new(self.supervisor.clone()), kernel.progress()));
        kernel.run(done).await;
        Ok(())
    }

    /// Reads a part's file field by field; what was lost is noted in [`Setup::lost`].
    #[must_use]
    pub fn kept<T: DeserializeOwned + Default>(&self, file: &str, bytes: Option<&[u8]>) -> T {
        let (kept, lost) = crate::kept::decode(file, bytes);
        self.lost.borrow_mut().extend(lost);
        kept
    }

    /// Certificate authorities of the site, PEM.
    #[must_use]
    pub fn roots_pem(&self) -> Vec<String> {
        self.boot.site.iter().map(|site| site.root_certs_pem.clone()).collect()
    }

    /// Folder of the reports of fetch jobs: in memory, so that it ends with the boot that they belong to.
    #[must_use]
    pub fn job_reports(&self) -> PathBuf {
        self.paths.run.join("jobs")
    }
}

/// Says a line on the console and queues it for the controller.
fn say(logs: &Shared, line: &Line) {
    eprintln!("{}", line.text);
    let at_ns = logs::nanoseconds(KernelClock.wall());
    logs.lock().unwrap_or_else(PoisonError::into_inner).device_line(line.severity, at_ns, &line.text);
}
