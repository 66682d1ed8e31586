//! STATE and the boot variables, as operations.

use crate::boot::Boot;
use crate::trust;
use crate::world::Local;
use anyhow::{Context, Result};
use holdfast_format::gpt;
use holdfast_identity::Identity;
use holdfast_model::observed::BootReason;
use holdfast_slots::firmware::EfiBoot;
use holdfast_slots::run::{RebootDue, no_epoch, run};
use holdfast_slots::{Event, Image, Phase, Record};
use std::fs::{File, OpenOptions};
use std::sync::{Arc, Mutex, PoisonError};

/// How events were followed.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The record as it is on STATE now, whatever failed.
    pub record: Record,
    /// The reboot that is due, if one is; or what failed.
    pub result: Result<Option<(BootReason, String)>, String>,
}

/// The slots of this machine.
pub trait Slots {
    /// Sends events through the rules and carries out what follows, in order, up to the first that fails.
    fn send(&self, events: Vec<Event>) -> Local<Sent>;
    /// Makes the TPM refuse images with an epoch below this one.
    fn commit_epoch(&self, epoch: u32) -> Local<Result<(), String>>;
}

/// The real ones. Each operation runs on a thread that may block: the TPM alone takes up to seconds.
pub struct Machine {
    inner: Arc<Mutex<Inner>>,
    identity: Arc<dyn Identity>,
}

struct Inner {
    record: Record,
    state: File,
    firmware: EfiBoot,
}

impl Machine {
    /// Opens STATE and the boot variables.
    ///
    /// # Errors
    /// When STATE cannot be read: PID 1 writes the first record, so it must exist.
    pub fn open(boot: &Boot, identity: Arc<dyn Identity>) -> Result<Self> {
        let inner = Arc::new(Mutex::new(Inner::open(boot)?));
        Ok(Self { inner, identity })
    }

    /// The record as it is on STATE.
    #[must_use]
    pub fn record(&self) -> Record {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).record.clone()
    }
}

/// Ends a trial that cannot go on, before there is an agent; nothing outside of one.
///
/// # Errors
/// When STATE cannot be read or written.
pub fn give_up_trial(boot: &Boot, why: &str) -> Result<Option<RebootDue>> {
    let mut inner = Inner::open(boot)?;
    if !matches!(inner.record.phase, Phase::Trial { .. }) {
        return Ok(None);
    }
    let event = Event::TrialFailed(why.to_owned());
    Ok(run(&mut inner.record, event, &mut inner.state, &mut inner.firmware, &mut no_epoch)?)
}

impl Inner {
    fn open(boot: &Boot) -> Result<Self> {
        let facts = &boot.facts;
        let path = &facts.partitions.state;
        let state = OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("STATE ({path})"))?;
        let image = Image { version: facts.version.clone(), epoch: facts.epoch };
        let record = Record::load(&state)?.unwrap_or_else(|| Record::initial(facts.slot, image));
        let disk = File::open(&facts.partitions.disk).with_context(|| facts.partitions.disk.clone())?;
        let (table, _) = gpt::Table::read(&disk, trust::device_bytes(&facts.partitions.disk)?)
            .with_context(|| facts.partitions.disk.clone())?;
        Ok(Self { record, state, firmware: EfiBoot::new(&table)? })
    }

    fn send(&mut self, events: Vec<Event>, identity: &dyn Identity) -> Sent {
        let mut commit = |epoch: u32| identity.commit_epoch(epoch).map_err(|e| e.to_string());
        let mut result = Ok(None);
        for event in events {
            match run(&mut self.record, event, &mut self.state, &mut self.firmware, &mut commit) {
                Ok(due) => result = Ok(due.map(|d| (d.reason, d.text))),
                Err(e) => {
                    result = Err(e.to_string());
                    break;
                }
            }
        }
        Sent { record: self.record.clone(), result }
    }
}

impl Slots for Machine {
    fn send(&self, events: Vec<Event>) -> Local<Sent> {
        let (inner, identity, before) = (self.inner.clone(), self.identity.clone(), self.record());
        Box::pin(async move {
            let run = move || inner.lock().unwrap_or_else(PoisonError::into_inner).send(events, identity.as_ref());
            let ended = tokio::task::spawn_blocking(run).await;
            ended.unwrap_or_else(|e| Sent { record: before, result: Err(e.to_string()) })
        })
    }

    fn commit_epoch(&self, epoch: u32) -> Local<Result<(), String>> {
        let identity = self.identity.clone();
        Box::pin(async move {
            let run = move || identity.commit_epoch(epoch).map_err(|e| e.to_string());
            tokio::task::spawn_blocking(run).await.unwrap_or_else(|e| Err(e.to_string()))
        })
    }
}
