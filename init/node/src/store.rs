//! Durable state of the agent: small JSON files, replaced atomically, on the encrypted data partition.

use crate::parts::app::decide::Acted;
use crate::parts::content::kept::KeptContent;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Everything kept in `/data/status/agent.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Persisted {
    /// The device's UUID once the controller gave it.
    pub device: Option<Uuid>,
    /// Counters acted on, by app.
    pub acted: BTreeMap<Uuid, Acted>,
    /// Small numbers of apps, for uids.
    pub numbers: BTreeMap<Uuid, u32>,
    /// Addresses given out.
    pub addresses: holdfast_plan::Allocations,
    /// Hash of the config whose ports last led to the controller; see [`crate::ports`].
    pub ports_worked: Option<String>,
    /// Contents that are complete, by id.
    pub contents: BTreeMap<Uuid, KeptContent>,
    /// Device command counters acted on; `None` before the first config.
    pub reboot_counter: Option<u32>,
    /// Shutdown counter acted on, as above.
    pub shutdown_counter: Option<u32>,
    /// The boot in which all apps were shut down by order: none starts again before the next one.
    pub shut_down_in_boot: Option<u64>,
    /// Class and text of a reboot ordered by this agent, read and cleared by the next boot.
    pub ordered_reboot: Option<holdfast_model::observed::RebootRecord>,
    /// The report of the last reboot, kept so that a restarted agent says the same.
    pub last_reboot: Option<(u64, holdfast_model::observed::RebootRecord)>,
    /// Debugging orders that were followed, by property; see [`crate::debug`].
    pub debug: BTreeMap<String, String>,
}

impl Persisted {
    /// The smallest number no other app has, kept for this app.
    pub fn number_of(&mut self, app: Uuid) -> u32 {
        if let Some(n) = self.numbers.get(&app) {
            return *n;
        }
        let used: std::collections::BTreeSet<u32> = self.numbers.values().copied().collect();
        let free = (0..).find(|n| !used.contains(n)).unwrap_or(0);
        self.numbers.insert(app, free);
        free
    }
}

/// Reads a JSON file; a missing or unreadable one gives the default, with the reason.
pub fn read_json<T: DeserializeOwned + Default>(path: &Path) -> (T, Option<String>) {
    match fs::read(path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => (value, None),
            Err(e) => (
                T::default(),
                Some(format!("{}: expected the agent's own JSON, found {e}; starting afresh", path.display())),
            ),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => (T::default(), None),
        Err(e) => (T::default(), Some(format!("{}: {e}; starting afresh", path.display()))),
    }
}

/// Replaces a file so that a power cut leaves the old content or the new (write, fsync, rename, fsync directory).
///
/// # Errors
/// Whatever the file system says; the old content stays.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::other(format!("{} has no directory", path.display())))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = directory.join(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

/// The agent's state file, written only when it changed.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    written: Persisted,
    /// The state; change it, then call [`Store::save`].
    pub now: Persisted,
}

impl Store {
    /// Loads it; the text says what was lost, if anything.
    #[must_use]
    pub fn load(path: PathBuf) -> (Self, Option<String>) {
        let (now, lost) = read_json::<Persisted>(&path);
        (Self { path, written: now.clone(), now }, lost)
    }

    /// Writes it if it changed.
    ///
    /// # Errors
    /// As [`replace`].
    pub fn save(&mut self) -> io::Result<()> {
        if self.now != self.written {
            let bytes = serde_json::to_vec_pretty(&self.now).map_err(io::Error::other)?;
            replace(&self.path, &bytes, 0o600)?;
            self.written = self.now.clone();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.json");
        let (mut store, lost) = Store::load(path.clone());
        assert_eq!(lost, None);
        let id = Uuid::from_u128(9);
        assert_eq!(store.now.number_of(id), 0);
        assert_eq!(store.now.number_of(Uuid::from_u128(10)), 1);
        store.now.acted.insert(id, Acted { restart: 1, purge: 2 });
        store.save().unwrap();
        assert_eq!(Store::load(path).0.now, store.now);
    }

    #[test]
    fn a_damaged_file_is_named_and_does_not_stop_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.json");
        fs::write(&path, b"{").unwrap();
        let (store, lost) = Store::load(path);
        assert_eq!(store.now, Persisted::default());
        assert!(lost.unwrap().contains("agent.json"));
    }

    #[test]
    fn numbers_of_forgotten_apps_are_used_again() {
        let mut p = Persisted::default();
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        p.number_of(a);
        p.number_of(b);
        p.numbers.remove(&a);
        assert_eq!(p.number_of(Uuid::from_u128(3)), 0);
    }
}
