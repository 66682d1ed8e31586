//! What the agent acts on, behind traits: the real machine, or a simulated one with virtual time (`tests/`).
//!
//! Real things in [`machine`](crate::machine) and beside the parts that own them; each trait is what one kind of operation needs.

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

/// Files below the data folder. Nothing here blocks the loop.
pub trait Files {
    /// Replaces a file durably: after a power cut it is the old one or the new one.
    fn replace(&self, path: PathBuf, content: Vec<u8>) -> Local<io::Result<()>>;
    /// Reads a file; `None` when it is missing.
    fn read(&self, path: PathBuf) -> Local<io::Result<Option<Vec<u8>>>>;
    /// Removes a file; one that is missing is no error.
    fn remove(&self, path: PathBuf) -> Local<io::Result<()>>;
    /// Names in a folder; empty when it is missing.
    fn list(&self, path: PathBuf) -> Local<io::Result<Vec<String>>>;
}

/// Runs what may block on a thread that may; what it returns comes back to the agent's own.
pub fn blocking<T: Send + 'static>(run: impl FnOnce() -> io::Result<T> + Send + 'static) -> Local<io::Result<T>> {
    Box::pin(async move { tokio::task::spawn_blocking(run).await.unwrap_or_else(|e| Err(io::Error::other(e))) })
}
