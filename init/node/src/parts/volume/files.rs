//! Volume files: writable layers of container images and blank volumes, both begun as copies of the ext4 seed.

use crate::world::{Local, blocking};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Size of a container's writable layer when its volume names none.
pub const DEFAULT_LAYER_BYTES: u64 = 1 << 30;
/// The unit in which zero runs are looked for.
const BLOCK: usize = 64 * 1024;

/// File of a volume's generation: the writable layer of a container, or the whole of a blank volume.
#[must_use]
pub fn file_of(directory: &Path, volume: Uuid, generation: i64) -> PathBuf {
    directory.join(format!("{volume}.{generation}.ext4"))
}

/// The volume and generation of a file's name, if it is one's.
#[must_use]
pub fn key_of(name: &str) -> Option<(Uuid, i64)> {
    let (volume, generation) = name.strip_suffix(".ext4")?.split_once('.')?;
    let key = (Uuid::try_parse(volume).ok()?, generation.parse().ok()?);
    // Only the one way in which names are written: each generation has one file.
    (file_of(Path::new(""), key.0, key.1) == Path::new(name)).then_some(key)
}

/// Makes the file or replaces the present one: a sparse copy of the seed, of `size_bytes` (at least the seed's own).
/// The guest grows the file system to the size. A half-made file never gets the name, and what it replaces stays until then.
///
/// # Errors
/// No space, or a seed that cannot be read.
pub fn make(path: &Path, seed: &Path, size_bytes: u64) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let made = copy(&temporary, seed, size_bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(e) = made {
        // Its space is what others lack.
        let _ = fs::remove_file(&temporary);
        return Err(e);
    }
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn copy(target: &Path, seed: &Path, size_bytes: u64) -> io::Result<()> {
    let mut source = File::open(seed)?;
    let mut target = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(target)?;
    copy_sparse(&mut source, &mut target)?;
    let seed_bytes = source.metadata()?.len();
    target.set_len(size_bytes.max(seed_bytes).next_multiple_of(4096))?;
    target.sync_all()
}

/// Copies, leaving holes where the source is zero.
fn copy_sparse(source: &mut File, target: &mut File) -> io::Result<()> {
    let mut buffer = vec![0u8; BLOCK];
    let mut offset = 0u64;
    source.seek(SeekFrom::Start(0))?;
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            return target.flush();
        }
        if buffer[..n].iter().any(|b| *b != 0) {
            target.write_all_at(&buffer[..n], offset)?;
        }
        offset += n as u64;
    }
}

/// Bytes that a volume file really takes; 0 when it is not there.
#[must_use]
pub fn used_bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.blocks() * 512)
}

/// What lies in the folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Volumes, with the bytes that each really takes.
    pub volumes: BTreeMap<(Uuid, i64), u64>,
    /// Everything else.
    pub strays: Vec<String>,
}

/// The folder of volumes, as operations.
pub trait VolumeStore {
    /// Where the file of a generation is or will be.
    fn file(&self, volume: Uuid, generation: i64) -> PathBuf;
    /// What the folder holds.
    fn look(&self) -> Local<io::Result<Listing>>;
    /// Makes or replaces a volume, see [`make`]; returns the bytes that it takes.
    fn make(&self, volume: Uuid, generation: i64, size_bytes: u64) -> Local<io::Result<u64>>;
    /// Removes files by name; one that is missing is no error.
    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>>;
}

/// The real folder. Its operations run on threads that may block.
#[derive(Debug, Clone)]
pub struct Folder {
    /// `/data/volumes`.
    pub path: PathBuf,
    /// The ext4 seed.
    pub seed: PathBuf,
}

impl VolumeStore for Folder {
    fn file(&self, volume: Uuid, generation: i64) -> PathBuf {
        file_of(&self.path, volume, generation)
    }

    fn look(&self) -> Local<io::Result<Listing>> {
        let path = self.path.clone();
        blocking(move || list(&path))
    }

    fn make(&self, volume: Uuid, generation: i64, size_bytes: u64) -> Local<io::Result<u64>> {
        let (file, seed) = (self.file(volume, generation), self.seed.clone());
        blocking(move || {
            make(&file, &seed, size_bytes)?;
            Ok(used_bytes(&file))
        })
    }

    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>> {
        let path = self.path.clone();
        blocking(move || names.iter().try_for_each(|name| remove(&path.join(name))))
    }
}

fn list(folder: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        match key_of(&name) {
            Some(key) => drop(listing.volumes.insert(key, used_bytes(&folder.join(name)))),
            None => listing.strays.push(name),
        }
    }
    Ok(listing)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_sparse_copy_of_the_seed_at_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let seed = dir.path().join("seed");
        let mut content = vec![0u8; 1 << 20];
        content[5] = 1;
        content[900_000] = 2;
        fs::write(&seed, &content).unwrap();
        let volume = file_of(dir.path(), Uuid::from_u128(1), 0);
        make(&volume, &seed, 8 << 20).unwrap();
        let made = fs::read(&volume).unwrap();
        assert_eq!(made.len(), 8 << 20);
        assert_eq!(&made[..content.len()], &content[..]);
        assert!(used_bytes(&volume) < 1 << 20, "{}", used_bytes(&volume));
    }

    #[test]
    fn a_folder_is_listed_by_generation_and_what_is_no_volume_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for name in [format!("{a}.0.ext4"), format!("{b}.-3.ext4"), format!("{a}.0.new"), format!("{a}.+1.ext4")] {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        let Listing { volumes, mut strays } = list(dir.path()).unwrap();
        strays.sort();
        assert_eq!(volumes.into_keys().collect::<Vec<_>>(), [(a, 0), (b, -3)]);
        assert_eq!(strays, [format!("{a}.+1.ext4"), format!("{a}.0.new")]);
    }

    #[test]
    fn a_volume_that_cannot_be_replaced_stays_and_leaves_no_half() {
        let dir = tempfile::tempdir().unwrap();
        let volume = file_of(dir.path(), Uuid::from_u128(1), 0);
        fs::write(&volume, b"data of the app").unwrap();
        assert!(make(&volume, &dir.path().join("no seed"), 4096).is_err());
        assert_eq!(fs::read(&volume).unwrap(), b"data of the app");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
