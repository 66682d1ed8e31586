//! What the agent acts on, behind traits: the real machine, or a simulated one with virtual time (`tests/world`).
//!
//! Here is what the kernel and several parts need. What one part alone acts through lies in its folder: machines of apps, the
//! kernel's network, folders of images and volumes, slots.
//!
//! Reading order: here, [`init`] (PID 1 apart from units), [`real`] (clock and files of a real machine).

pub mod init;
pub mod real;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

/// A future on the agent's own thread.
pub type Local<T> = Pin<Box<dyn Future<Output = T>>>;

/// The clocks. Waiting goes through tokio's timer, which tests pause.
pub trait Clock {
    /// Monotonic time since boot.
    fn now(&self) -> Duration;
    /// Wall time, for stamps.
    fn wall(&self) -> SystemTime;
}

/// Files below the data folder.
pub trait Files {
    /// Replaces a file durably: after a power cut it is the old one or the new one.
    fn replace(&self, path: PathBuf, content: Vec<u8>) -> Local<io::Result<()>>;
}

/// Runs what may block on a thread that may; what it returns comes back to the agent's own.
pub fn blocking<T: Send + 'static>(run: impl FnOnce() -> io::Result<T> + Send + 'static) -> Local<io::Result<T>> {
    Box::pin(async move { tokio::task::spawn_blocking(run).await.unwrap_or_else(|e| Err(io::Error::other(e))) })
}
