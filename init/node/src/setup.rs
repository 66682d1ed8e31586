//! What parts are constructed from: this boot, and the real things that they act through.

use crate::boot::{Boot, Paths};
use crate::parts::logs::Shared;
use crate::parts::network::facts::Uplinks;
use holdfast_identity::Identity;
use holdfast_supervise::AsyncClient;
use serde::de::DeserializeOwned;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;

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
    /// The vault is open; recovery has none.
    pub vault_open: bool,
    /// Lines for the controller.
    pub logs: Shared,
    /// The ways to the controller, for the session.
    pub uplinks: watch::Sender<Uplinks>,
    /// Said by the device part while it is constructed: the last boot ended in a crash that its config may have caused.
    pub after_crash: Cell<bool>,
    /// What could not be read of the parts' files.
    pub lost: RefCell<Vec<String>>,
}

impl Setup {
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
