//! Files that a power cut leaves old or new, never torn.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A step of [`replace`] that failed. The file is still the old one.
#[derive(Debug, Error)]
#[error("cannot {step} {}: {source}", path.display())]
pub struct DurableError {
    /// What was tried.
    pub step: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl From<DurableError> for io::Error {
    fn from(error: DurableError) -> Self {
        io::Error::new(error.source.kind(), error)
    }
}

/// Replaces `path` by a file with this content and these permission bits: writes `path.new` beside it, syncs it, renames
/// it, syncs the directory. The directory must exist. Two writers of one file must take turns.
///
/// # Errors
/// [`DurableError`] names the step and its object.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), DurableError> {
    fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DurableError {
        let path = path.to_owned();
        move |source| DurableError { step, path, source }
    }
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(at("replace", path)(io::ErrorKind::InvalidInput.into())),
    };
    let mut beside = OsString::from(path);
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // One that a power cut left here may have other permissions.
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at("remove", &beside)(e)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(at("create", &beside))?;
    file.write_all(content).map_err(at("write", &beside))?;
    file.sync_all().map_err(at("sync", &beside))?;
    fs::rename(&beside, path).map_err(at("rename into place", path))?;
    File::open(directory).and_then(|d| d.sync_all()).map_err(at("sync the directory", directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn replacing_leaves_one_file_with_the_new_content_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        replace(&path, b"one", 0o644).unwrap();
        // What a cut before the rename leaves.
        fs::write(dir.path().join("key.pem.new"), b"torn").unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_step_names_its_object_and_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/key.pem");
        let error = replace(&path, b"x", 0o600).unwrap_err().to_string();
        assert!(error.contains("create") && error.contains("missing/key.pem.new"), "{error}");
        // A directory of that name cannot be replaced by a file.
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = replace(&path, b"x", 0o600).unwrap_err();
        assert_eq!(error.step, "rename into place");
        assert!(path.is_dir());
    }
}
