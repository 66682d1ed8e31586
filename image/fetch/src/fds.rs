//! Descriptors named by number in the job, taken into ownership; nameless spool files.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use crate::failure::Failure;

/// Takes an inherited descriptor. Each number may be taken once; standard streams are refused.
///
/// # Errors
/// When it is not open.
pub fn take(fd: RawFd, what: &str) -> Result<File, Failure> {
    holdfast_unit::fds::adopt(fd, what).map(File::from).map_err(|e| Failure::local(e.to_string()))
}

/// A file without a name in the directory `dir`: gone with the process.
///
/// # Errors
/// [`Failure`] of class Local.
pub fn spool(dir: &File) -> Result<File, Failure> {
    let here: &CStr = c".";
    // SAFETY: the path is NUL-terminated, the descriptor open; the result is checked before it is owned.
    let fd = unsafe {
        libc::openat(dir.as_raw_fd(), here.as_ptr(), libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC, 0o600)
    };
    if fd < 0 {
        return Err(Failure::file("spool file")(io::Error::last_os_error()));
    }
    // SAFETY: just opened, owned by nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Zeroes a range of a file or block device, by the device itself where it can.
///
/// # Errors
/// The disk's.
pub fn zero_range(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let as_off = |n: u64| libc::off_t::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: numbers and an open descriptor.
    if unsafe { libc::fallocate(file.as_raw_fd(), mode, as_off(offset)?, as_off(length)?) } == 0 {
        return Ok(());
    }
    let zeros = vec![0; 128 << 10];
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let part = zeros.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        file.write_all_at(&zeros[..part], at)?;
        at += part as u64;
    }
    Ok(())
}

/// Writes everything back and drops it from the page cache, so that the next read comes from the disk.
///
/// # Errors
/// The disk's.
pub fn sync_and_drop_cache(file: &File) -> io::Result<()> {
    file.sync_all()?;
    // SAFETY: numbers and an open descriptor. It is advice: a failure changes nothing.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}
