//! What the part does to the machine, as operations.

use crate::debug;
use crate::world::Local;
use holdfast_format::pcr::phase;
use holdfast_identity::Identity;
use holdfast_supervise::AsyncClient;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

/// The machine.
pub trait Machine {
    /// Measures that the agent has begun, once in a boot.
    fn ready(&self) -> Local<Result<(), String>>;
    /// Measures that the machine goes down, and asks PID 1 for an orderly reboot.
    fn reboot(&self, text: String) -> Local<Result<(), String>>;
    /// Follows a debugging order; the text is to be said.
    fn debug(&self, order: &'static str) -> Local<Result<String, String>>;
}

/// The real one.
pub struct ThisMachine {
    /// PID 1.
    pub supervisor: Rc<AsyncClient>,
    /// The TPM.
    pub identity: Arc<dyn Identity>,
    /// A file in memory that the first agent of a boot makes.
    pub mark: PathBuf,
}

impl Machine for ThisMachine {
    fn ready(&self) -> Local<Result<(), String>> {
        let (identity, mark) = (self.identity.clone(), self.mark.clone());
        off_the_loop(move || {
            // A restarted agent finds the mark that the first one left.
            if OpenOptions::new().write(true).create_new(true).open(&mark).is_err() {
                return Ok(());
            }
            identity.extend_phase(phase::READY).map_err(|e| e.to_string())
        })
    }

    fn reboot(&self, text: String) -> Local<Result<(), String>> {
        let (identity, supervisor) = (self.identity.clone(), self.supervisor.clone());
        let measure = off_the_loop(move || identity.extend_phase(phase::SHUTDOWN).map_err(|e| e.to_string()));
        Box::pin(async move {
            // A TPM that does not answer keeps no machine running.
            let _ = measure.await;
            supervisor.reboot(text).await.map_err(|e| e.to_string())
        })
    }

    fn debug(&self, order: &'static str) -> Local<Result<String, String>> {
        off_the_loop(move || match order {
            debug::ABORT => std::process::abort(),
            debug::RESOURCES => Ok(debug::resources()),
            _ => Ok(debug::memory()),
        })
    }
}

fn off_the_loop<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Local<Result<T, String>> {
    Box::pin(async move { tokio::task::spawn_blocking(run).await.unwrap_or_else(|e| Err(e.to_string())) })
}
