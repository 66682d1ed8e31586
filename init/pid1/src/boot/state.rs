//! STATE: who boots, why the last boot ended. The rules are those of `holdfast_slots::step`; here is only the plumbing.
#![forbid(unsafe_code)]

use holdfast_model::slot::Slot;
use std::io;
use std::path::Path;

/// What the record says at the start of a boot.
#[derive(Debug, Default)]
pub struct Begin {
    /// The other slot must boot instead, BootNext is set; this is why.
    pub leave: Option<String>,
    /// Boots of this machine, this one included.
    pub boot_count: u64,
    /// This boot tries an image that is not committed.
    pub trial: bool,
    /// Why the boot before this one ended.
    pub previous_end: String,
    /// Why the other slot was given up.
    pub fallback_reason: String,
    /// What was repaired.
    pub notes: Vec<String>,
}

/// The open STATE partition.
#[derive(Debug)]
pub struct State {}

impl State {
    /// Opens the partition.
    pub fn open(_device: &Path) -> io::Result<State> {
        Ok(State {})
    }

    /// Records that this slot boots.
    pub fn begin(
        &mut self,
        _running: Slot,
        _version: &str,
        _kernel_log: &str,
    ) -> io::Result<Begin> {
        Ok(Begin::default())
    }

    /// The slot cannot be booted; the one that will be, if any.
    pub fn slot_failed(&mut self, _slot: Slot, _reason: &str) -> io::Result<Option<Slot>> {
        Ok(None)
    }

    /// The same for a slot that is running.
    pub fn running_slot_failed(&mut self, _reason: &str) -> io::Result<()> {
        Ok(())
    }

    /// An end of this boot is decided.
    pub fn going_down(&mut self, _reason: &str) -> io::Result<()> {
        Ok(())
    }

    /// Everything is stopped and written.
    pub fn ended(&mut self, _reason: &str) -> io::Result<()> {
        Ok(())
    }
}
