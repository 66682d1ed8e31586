//! Locks on images: one writer, or any number of readers.
//!
//! Open-file-description locks (fcntl(2), `F_OFD_SETLK`) belong to the open file and not to the process, so they hold for
//! inherited descriptors and across the fork into a pid namespace, and end with the last duplicate of the descriptor, however the
//! process ends. They bind only programs that take them; two VMs whose disks are duplicates of one descriptor are not kept apart.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long a lock is waited for: when a process ends, the kernel lets go of its rings, and with them of the images, a little
/// later. A VM that is started again at once must not find itself in the way.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Locks all of `file`: shared when `read_only`, else for itself alone.
///
/// # Errors
/// `WouldBlock` when somebody else holds it after `patience`; otherwise what the file system says.
pub fn lock(file: &File, read_only: bool, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match try_lock(file, read_only) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
}

fn try_lock(file: &File, read_only: bool) -> io::Result<()> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let request = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        // From the start to whatever the end will be.
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: reads one structure.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) } < 0 {
        return Err(match io::Error::last_os_error() {
            // Either number means that it is taken (POSIX fcntl).
            e if e.raw_os_error() == Some(libc::EACCES) => io::ErrorKind::WouldBlock.into(),
            e => e,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(named.path()).unwrap();
        let at_once = Duration::ZERO;
        let (first, second) = (open(), open());
        lock(&first, true, at_once).unwrap();
        lock(&second, true, at_once).unwrap();
        let writer = open();
        assert_eq!(lock(&writer, false, at_once).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop((first, second));
        lock(&writer, false, at_once).unwrap();
        assert_eq!(lock(&open(), true, at_once).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn lock_ends_with_the_last_duplicate() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(named.path()).unwrap();
        let first = open();
        lock(&first, false, Duration::ZERO).unwrap();
        let duplicate = first.try_clone().unwrap();
        drop(first);
        assert!(lock(&open(), false, Duration::ZERO).is_err());
        drop(duplicate);
        lock(&open(), false, Duration::ZERO).unwrap();
    }

    #[test]
    fn lock_is_waited_for() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(named.path()).unwrap();
        let first = open();
        lock(&first, false, Duration::ZERO).unwrap();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(first);
        });
        lock(&open(), false, Duration::from_secs(60)).unwrap();
        holder.join().unwrap();
    }
}
