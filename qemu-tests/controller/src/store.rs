//! Durable state: a folder of small files, each replaced atomically, and log files that only grow.
//!
//! ```text
//! lock                          held by the controller that uses the folder
//! pki/                          certificates and keys (see `pki`)
//! onboarding/HASH.json          onboarding certificates with their serials
//! policy.json                   attestation policy
//! devices/UUID/device.json      identity, certificates, token, escrowed keys
//! devices/UUID/config.json      the configuration as it was set
//! devices/UUID/config.pb        EdgeDevConfig as it is served
//! devices/UUID/info/KEY.pb      last info message of each object
//! devices/UUID/metrics/N.pb     last metrics messages
//! devices/UUID/device.log       log lines, JSON; app-UUID.log for each app
//! requests.log                  every request, JSON lines
//! ```
//!
//! A growing file that passes its limit is renamed to `.1` and begun anew. A torn last line is ignored on load.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A growing file is renamed once it passes this size.
const MAX_LOG_FILE: u64 = 16 << 20;

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {action}: {cause}")]
pub struct StoreError {
    /// Which file.
    pub path: PathBuf,
    /// What was tried.
    pub action: &'static str,
    /// What the system or the parser said.
    pub cause: String,
}

fn fail(path: &Path, action: &'static str, cause: impl ToString) -> StoreError {
    StoreError { path: path.to_owned(), action, cause: cause.to_string() }
}

/// Takes a data folder for one controller; it is free again when the file is dropped.
pub fn lock(dir: &Path) -> Result<File, StoreError> {
    std::fs::create_dir_all(dir).map_err(|e| fail(dir, "create folder", e))?;
    let path = dir.join("lock");
    let file = File::create(&path).map_err(|e| fail(&path, "create", e))?;
    file.try_lock().map_err(|e| fail(&path, "lock", format!("{e}; does another controller use this folder?")))?;
    Ok(file)
}

/// Reads a file, `None` if there is none.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(path, "read", error)),
    }
}

/// Replaces a file: the old content or the new one is there, whatever happens. Folders are made as needed.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let dir = path.parent().ok_or_else(|| fail(path, "write", "no parent folder"))?;
    std::fs::create_dir_all(dir).map_err(|e| fail(dir, "create folder", e))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = dir.join(name);
    let write = || -> std::io::Result<()> {
        // Keys and tokens are among them: for the owner only.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_data()?;
        std::fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| fail(path, "replace", e))
}

/// Replaces a file by a value as JSON.
pub fn replace_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| fail(path, "encode", e))?;
    replace(path, &text)
}

/// Reads a JSON value, `None` if there is no file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    read_optional(path)?.map(|bytes| serde_json::from_slice(&bytes).map_err(|e| fail(path, "parse", e))).transpose()
}

/// Appends lines of JSON.
pub fn append<T: Serialize>(path: &Path, lines: &[T]) -> Result<(), StoreError> {
    let dir = path.parent().ok_or_else(|| fail(path, "append", "no parent folder"))?;
    std::fs::create_dir_all(dir).map_err(|e| fail(dir, "create folder", e))?;
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line).map_err(|e| fail(path, "encode", e))?;
        text.push(b'\n');
    }
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(|e| fail(path, "open", e))?;
    file.write_all(&text).map_err(|e| fail(path, "append", e))?;
    let size = file.metadata().map_err(|e| fail(path, "size", e))?.len();
    if size > MAX_LOG_FILE {
        let mut old = path.as_os_str().to_os_string();
        old.push(".1");
        std::fs::rename(path, old).map_err(|e| fail(path, "rotate", e))?;
    }
    Ok(())
}

/// Reads the last `count` lines of a growing file; lines that do not parse are left out.
pub fn tail<T: DeserializeOwned>(path: &Path, count: usize) -> Result<Vec<T>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(path, "open", error)),
    };
    let mut out = std::collections::VecDeque::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|e| fail(path, "read", e))?;
        if let Ok(value) = serde_json::from_slice(&line) {
            if out.len() == count {
                out.pop_front();
            }
            out.push_back(value);
        }
    }
    Ok(out.into())
}

/// Names of the files and folders below `dir`, sorted; empty if there is no such folder.
pub fn list(dir: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(dir, "list", error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| fail(dir, "list", e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // What `replace` had begun when the machine stopped.
        if !name.ends_with(".new") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a file; it is no error if there is none.
pub fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(fail(path, "remove", error)),
        _ => Ok(()),
    }
}

/// Removes a folder with all it holds; it is no error if there is none.
pub fn remove_dir(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(fail(path, "remove", error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_and_leftovers_ignored() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a/b.json");
        assert_eq!(read_json::<u32>(&path).expect("read"), None);
        replace_json(&path, &1).expect("write");
        replace_json(&path, &2).expect("write");
        std::fs::write(dir.path().join("a/c.json.new"), "torn").expect("write");
        assert_eq!(read_json::<u32>(&path).expect("read"), Some(2));
        assert_eq!(list(&dir.path().join("a")).expect("list"), ["b.json"]);
    }

    #[test]
    fn a_torn_line_is_left_out() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("x.log");
        append(&path, &[1, 2, 3]).expect("append");
        std::fs::OpenOptions::new().append(true).open(&path).and_then(|mut f| f.write_all(b"{\"to")).expect("append");
        assert_eq!(tail::<u32>(&path, 2).expect("tail"), [2, 3]);
    }
}
