//! Image files below `/data/images`, as operations.

use crate::world::{Local, blocking};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Begin of the names of files that are on their way.
const PARTIAL: &str = ".partial-";
/// Folder for nameless files of jobs.
const SPOOL: &str = ".partial-spool";

/// The folder of images.
pub trait ImageStore {
    /// Where the image of this digest is or will be.
    fn file(&self, sha256: &str) -> PathBuf;
    /// What a content's job writes to.
    fn partial(&self, content: Uuid) -> PathBuf;
    /// Folder for nameless files of jobs.
    fn spool(&self) -> PathBuf;
    /// Names of images and of files on their way.
    fn look(&self) -> Local<io::Result<Vec<String>>>;
    /// Gives a complete image its name, durably.
    fn keep(&self, content: Uuid, sha256: String) -> Local<io::Result<()>>;
    /// Removes files by name; one that is missing is no error.
    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>>;
}

/// Name of an image's file.
#[must_use]
pub fn name_of(sha256: &str) -> String {
    format!("{sha256}.erofs")
}

/// Name of the file that a content's job writes to.
#[must_use]
pub fn partial_name(content: Uuid) -> String {
    format!("{PARTIAL}{content}")
}

/// The content whose job writes to the file of this name.
#[must_use]
pub fn content_of_partial(name: &str) -> Option<Uuid> {
    name.strip_prefix(PARTIAL)?.parse().ok()
}

/// The real folder. Its operations run on threads that may block.
#[derive(Debug, Clone)]
pub struct Folder(pub PathBuf);

impl ImageStore for Folder {
    fn file(&self, sha256: &str) -> PathBuf {
        self.0.join(name_of(sha256))
    }

    fn partial(&self, content: Uuid) -> PathBuf {
        self.0.join(partial_name(content))
    }

    fn spool(&self) -> PathBuf {
        self.0.join(SPOOL)
    }

    fn look(&self) -> Local<io::Result<Vec<String>>> {
        let folder = self.0.clone();
        blocking(move || look(&folder))
    }

    fn keep(&self, content: Uuid, sha256: String) -> Local<io::Result<()>> {
        let (partial, file) = (self.partial(content), self.file(&sha256));
        blocking(move || keep(&partial, &file))
    }

    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>> {
        let folder = self.0.clone();
        blocking(move || names.iter().try_for_each(|name| remove(&folder.join(name))))
    }
}

fn look(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != SPOOL {
            names.push(name);
        }
    }
    Ok(names)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn keep(partial: &Path, file: &Path) -> io::Result<()> {
    File::open(partial)?.sync_all()?;
    fs::set_permissions(partial, fs::Permissions::from_mode(0o400))?;
    fs::rename(partial, file)?;
    File::open(file.parent().unwrap_or(file))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_shows_halves_and_an_image_that_is_kept_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        let id = Uuid::from_u128(1);
        fs::create_dir(folder.spool()).unwrap();
        for path in [folder.partial(id), folder.file("aa")] {
            fs::write(path, b"x").unwrap();
        }
        let mut names = look(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, [partial_name(id), name_of("aa")]);
        assert_eq!(names.iter().find_map(|n| content_of_partial(n)), Some(id));
        keep(&folder.partial(id), &folder.file("bb")).unwrap();
        assert_eq!(fs::read(folder.file("bb")).unwrap(), b"x");
        assert!(!folder.partial(id).exists());
    }
}
