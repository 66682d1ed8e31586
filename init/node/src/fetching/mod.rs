//! Fetching for whoever wants bytes from a server.
//!
//! One `fetch` unit of PID 1 for each job. [`source`] says where from; here is what a part asks for; [`units`] does it, and
//! [`reports`] reads what jobs report.

pub mod jobs;
pub mod reports;
pub mod source;
pub mod units;

use crate::world::Local;
use holdfast_model::contract::fetch::{Report, Server};
use holdfast_supervise::UnitName;
use std::path::PathBuf;
use std::rc::Rc;

/// Begin of the names of fetch units.
pub const UNITS: &str = "fetch-";

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its unit; one job of a name at a time.
    pub unit: UnitName,
    /// What it is for, at most 256 bytes: the unit keeps it, so that the next agent knows whether it is still wanted.
    pub tag: String,
    /// Where from.
    pub server: Server,
    /// What, and where to.
    pub get: Get,
}

/// What a job fetches, and what it makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Get {
    /// A container image, flattened into one file.
    Image {
        /// Repository.
        repository: String,
        /// Tag or digest.
        reference: String,
        /// SHA-256 hex that the manifest must have; empty = not given.
        sha256: String,
        /// Cap in bytes; 0 = only the built-in one.
        max_bytes: u64,
        /// The file, emptied first.
        output: PathBuf,
        /// Folder for nameless files on the way.
        spool: PathBuf,
    },
    /// An update payload, streamed into a slot.
    Slot {
        /// Path on the server.
        path: String,
        /// SHA-256 hex of the payload; empty = not given.
        sha256: String,
        /// Cap in bytes; 0 = the slot's size.
        max_bytes: u64,
        /// Release public key, PEM.
        release_key_pem: String,
        /// Lowest security epoch accepted.
        min_epoch: u32,
        /// Version that it must carry.
        version: String,
        /// The slot's ESP.
        esp: PathBuf,
        /// The slot's OS partition.
        os: PathBuf,
    },
}

/// Runs jobs.
pub trait Fetching {
    /// Starts a job; its reports follow.
    fn start(&self, order: Order) -> Local<Result<Rc<dyn Reports>, String>>;
    /// The reports of a job that an agent before this one started, from their beginning.
    fn adopt(&self, unit: UnitName) -> Local<Result<Rc<dyn Reports>, String>>;
    /// Ends a job at once and drops its unit and its reports; one that does not exist is no error.
    fn stop(&self, unit: UnitName) -> Local<Result<(), String>>;
    /// Drops an ended job's unit and its reports; one that does not exist is no error.
    fn remove(&self, unit: UnitName) -> Local<Result<(), String>>;
}

/// The reports of one job, one at a time.
pub trait Reports {
    /// The next report; `None` when the job ended without a last one.
    fn next(&self) -> Local<Option<Report>>;
}
