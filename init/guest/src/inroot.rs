//! Files and folders inside the app's root, reached from outside it.
//!
//! The image may hold any symbolic links (`/etc -> /usr/etc`, `resolv.conf -> ../run/...`). `openat2` with `RESOLVE_IN_ROOT` follows them
//! as the app would, and never out of its root.

use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::unlinkat;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Largest file read from an image (`/etc/passwd`, `/etc/group`).
const READ_LIMIT_BYTES: u64 = 4 << 20;

fn open(root: &OwnedFd, path: &str, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(openat2(root, path, how)?)
}

/// The root folder itself, to be given to the other functions.
///
/// # Errors
/// When it cannot be opened.
pub fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens the folder `path`, making it and its parents (mode 0755) where they are missing.
///
/// # Errors
/// When a component is not a folder or cannot be made.
pub fn folder(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let mut so_far = String::from("/");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let mut current = open(root, &so_far, flags, Mode::empty())?;
    for component in path.split('/').filter(|c| !c.is_empty() && *c != ".") {
        if component == ".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path holds a .. component"));
        }
        so_far.push_str(component);
        current = match open(root, &so_far, flags, Mode::empty()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                mkdirat(&current, component, Mode::from_bits_truncate(0o755))?;
                open(root, &so_far, flags, Mode::empty())?
            }
            other => other?,
        };
        so_far.push('/');
    }
    Ok(current)
}

/// Reads the text file `path`; `None` when it does not exist. Bytes that are not UTF-8 are replaced.
///
/// # Errors
/// When it is there but cannot be read.
pub fn read(root: &OwnedFd, path: &str) -> io::Result<Option<String>> {
    // O_NONBLOCK: a FIFO in the image must not hold us up.
    let file = match open(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => File::from(other?),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(READ_LIMIT_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Replaces the file `name` in `folder` (a symbolic link is replaced, not followed) by `text`, atomically, mode 0644.
///
/// # Errors
/// When it cannot be written.
pub fn replace(root: &OwnedFd, folder_path: &str, name: &str, text: &str) -> io::Result<()> {
    let folder = folder(root, folder_path)?;
    let temporary = format!(".{name}.holdfast");
    match unlinkat(&folder, temporary.as_str(), nix::unistd::UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let mut file = File::from(open(&folder, &temporary, flags, Mode::from_bits_truncate(0o644))?);
    file.write_all(text.as_bytes())?;
    drop(file);
    nix::fcntl::renameat(&folder, temporary.as_str(), &folder, name)?;
    Ok(())
}

/// A path by which other system calls (mount) reach an open folder. Valid while `fd` lives and `/proc` is mounted.
pub fn magic_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Makes a symbolic link unless something is there already.
///
/// # Errors
/// When it cannot be made.
pub fn link(folder: &OwnedFd, name: &str, target: &str) -> io::Result<()> {
    match nix::unistd::symlinkat(target, folder, name) {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Whether `name` in `folder` exists, links not followed.
pub fn exists(folder: &OwnedFd, name: &str) -> bool {
    nix::sys::stat::fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn image() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = root(dir.path()).unwrap();
        (dir, fd)
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let (dir, fd) = image();
        fs::create_dir_all(dir.path().join("usr/etc")).unwrap();
        symlink("/usr/etc", dir.path().join("etc")).unwrap();
        symlink("../../../../../../etc/passwd", dir.path().join("usr/etc/outside")).unwrap();
        fs::write(dir.path().join("usr/etc/passwd"), "inside").unwrap();
        assert_eq!(read(&fd, "/etc/passwd").unwrap().as_deref(), Some("inside"));
        assert_eq!(read(&fd, "/etc/outside").unwrap().as_deref(), Some("inside"));
        assert_eq!(read(&fd, "/etc/none").unwrap(), None);
    }

    #[test]
    fn a_dangling_link_is_replaced_by_a_file() {
        let (dir, fd) = image();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", dir.path().join("etc/resolv.conf")).unwrap();
        replace(&fd, "/etc", "resolv.conf", "nameserver 10.0.0.1\n").unwrap();
        replace(&fd, "/etc", "resolv.conf", "nameserver 10.0.0.2\n").unwrap();
        let path = dir.path().join("etc/resolv.conf");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_to_string(path).unwrap(), "nameserver 10.0.0.2\n");
        assert_eq!(fs::read_dir(dir.path().join("etc")).unwrap().count(), 1);
    }

    #[test]
    fn missing_folders_are_made_and_parent_steps_refused() {
        let (dir, fd) = image();
        folder(&fd, "/var/lib/app/").unwrap();
        folder(&fd, "/var/lib/app").unwrap();
        assert!(dir.path().join("var/lib/app").is_dir());
        assert!(folder(&fd, "/var/../../x").is_err());
    }

    #[test]
    fn a_fifo_or_folder_in_place_of_a_file_is_no_file() {
        let (dir, fd) = image();
        nix::unistd::mkfifo(&dir.path().join("passwd"), Mode::from_bits_truncate(0o600)).unwrap();
        fs::create_dir(dir.path().join("group")).unwrap();
        assert_eq!(read(&fd, "/passwd").unwrap(), None);
        assert_eq!(read(&fd, "/group").unwrap(), None);
    }
}
