//! Clock and files of a real machine.

use super::{Clock, Files, Local, blocking};
use crate::machine;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// The clocks of the kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelClock;

impl Clock for KernelClock {
    fn now(&self) -> Duration {
        machine::now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Files below one folder; only the device's own processes may read them.
#[derive(Debug, Clone)]
pub struct DataFolder {
    root: PathBuf,
}

impl DataFolder {
    /// Files below `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

impl Files for DataFolder {
    fn replace(&self, path: PathBuf, content: Vec<u8>) -> Local<io::Result<()>> {
        let path = self.root.join(path);
        blocking(move || holdfast_unit::durable::replace(&path, &content, 0o600).map_err(io::Error::other))
    }
}
