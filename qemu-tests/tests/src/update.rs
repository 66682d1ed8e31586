//! The base OS as the controller orders and sees it.

use crate::{Artefacts, World, artefacts};
use anyhow::{Context, Result, bail};
use holdfast_api::proto::info::{BaseOsStatus, BaseOsSubStatus, ZInfoDevSw};
use holdfast_test_controller::config::{BaseOs, Datastore, DatastoreKind, Image};
use std::time::Duration;

/// Name of the datastore that is the controller's file server.
pub const FILES: &str = "files";

/// A slot as the device reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotView {
    /// `IMGA` or `IMGB`.
    pub label: String,
    /// Version text.
    pub version: String,
    /// `active`, `inprogress`, `unused`, `updating`.
    pub state: String,
    /// `UPDATED`, `FALLBACK`, ... without prefix words; see `BaseOsStatus` of the API.
    pub status: String,
    /// `UPDATE_TESTING`, ...; see `BaseOsSubStatus` of the API.
    pub sub_status: String,
    /// Seconds left of a trial.
    pub seconds_left: u32,
    /// Words about it: progress, why it failed.
    pub text: String,
    /// Error, if any.
    pub error: String,
}

impl SlotView {
    fn of(sw: &ZInfoDevSw) -> Self {
        Self {
            label: sw.partition_label.clone(),
            version: sw.short_version.clone(),
            state: sw.partition_state.clone(),
            status: BaseOsStatus::try_from(sw.user_status).map_or("?", |s| s.as_str_name()).to_owned(),
            sub_status: BaseOsSubStatus::try_from(sw.sub_status).map_or("?", |s| s.as_str_name()).to_owned(),
            seconds_left: sw.sub_status_progress,
            text: sw.sub_status_str.clone(),
            error: sw.sw_err.as_ref().map(|e| e.description.clone()).unwrap_or_default(),
        }
    }
}

impl World {
    /// Orders a version by BaseOsConfig: the payload is served, the configuration names it. Returns at once.
    ///
    /// The trial is as short as EVE's ranges allow unless the properties were set before: 30 s of test window, 60 s without controller.
    ///
    /// # Errors
    /// When the payload cannot be served.
    pub fn update_to(&mut self, version: &Artefacts) -> Result<()> {
        let file = version.update.file_name().context("the payload has a name")?.to_string_lossy().into_owned();
        let served = self.files()?.join(&file);
        if !served.exists() && std::fs::hard_link(&version.update, &served).is_err() {
            std::fs::copy(&version.update, &served)?;
        }
        let (sha256, bytes) = artefacts::sha256(&served)?;
        self.update_to_file(&file, &version.version, &sha256, bytes)
    }

    /// [`World::update_to`] with a file that is in [`World::files`] already and whatever version, digest and size it is said to have.
    ///
    /// # Errors
    /// When the controller cannot keep the document.
    pub fn update_to_file(&mut self, file: &str, version: &str, sha256: &str, bytes: u64) -> Result<()> {
        let host = self.artifact_host();
        let roots = [self.controller().root_pem()];
        let name = format!("base-os-{version}");
        self.configure(|config| {
            if !config.datastores.iter().any(|d| d.name == FILES) {
                let mut store = Datastore::new(FILES, DatastoreKind::Https, &host, &roots);
                store.path = "files".into();
                config.datastores.push(store);
            }
            config.images.retain(|i| !i.name.starts_with("base-os-"));
            config.images.push(Image::file(&name, FILES, file, sha256, bytes));
            let retry = config.base_os.as_ref().map_or(0, |b| b.retry);
            config.base_os = Some(BaseOs { image: name, version: version.to_owned(), activate: true, retry });
            for (key, value) in [("timer.test.baseimage.update", "30"), ("timer.update.fallback.no.network", "60")] {
                config.properties.entry(key.to_owned()).or_insert_with(|| value.to_owned());
            }
        })
    }

    /// Both slots as last reported, the running one first; empty before the first device info.
    ///
    /// # Errors
    /// When the device has not registered.
    pub fn slots(&self) -> Result<Vec<SlotView>> {
        Ok(self.device_info()?.map(|d| d.sw_list.iter().map(SlotView::of).collect()).unwrap_or_default())
    }

    /// Waits until a slot is reported that fits; gives it.
    ///
    /// # Errors
    /// At the deadline, with the slots as last reported.
    pub fn wait_slot(&mut self, what: &str, limit: Duration, fits: impl Fn(&SlotView) -> bool) -> Result<SlotView> {
        let found =
            self.until(&format!("a slot {what}"), limit, |world| Ok(world.slots()?.into_iter().find(|s| fits(s))));
        found.with_context(|| format!("slots as last reported: {:?}", self.slots().unwrap_or_default()))
    }

    /// Collects what is reported of a version, each different report once and in order, until `last` fits.
    ///
    /// # Errors
    /// At the deadline, with what was collected.
    pub fn follow_version(
        &mut self,
        version: &str,
        limit: Duration,
        last: impl Fn(&SlotView) -> bool,
    ) -> Result<Vec<SlotView>> {
        let mut seen: Vec<SlotView> = Vec::new();
        let end = self.until(&format!("the last report of version {version}"), limit, |world| {
            if let Some(slot) = world.slots()?.into_iter().find(|s| s.version == version)
                && seen.last() != Some(&slot)
            {
                seen.push(slot);
            }
            Ok(seen.last().is_some_and(&last).then_some(()))
        });
        end.with_context(|| format!("reports so far: {seen:#?}"))?;
        Ok(seen)
    }

    /// Raises the counter that lets a failed version be tried again.
    ///
    /// # Errors
    /// When the controller cannot keep the document.
    pub fn retry_update(&mut self) -> Result<()> {
        self.configure(|config| {
            if let Some(base_os) = &mut config.base_os {
                base_os.retry += 1;
            }
        })
    }

    /// Waits until this version runs and is committed.
    ///
    /// # Errors
    /// At the deadline, or as soon as the device reports that the update failed.
    pub fn wait_committed(&mut self, version: &str, limit: Duration) -> Result<()> {
        self.until(&format!("version {version} to be committed"), limit, |world| {
            let slots = world.slots()?;
            if let Some(bad) = slots.iter().find(|s| s.version == version && s.status.contains("FAIL")) {
                bail!("the update failed: {bad:?}");
            }
            Ok(slots.first().is_some_and(|s| s.version == version && s.state == "active").then_some(()))
        })
    }
}
