//! Inherited descriptors: numbers in a document become owned files.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use thiserror::Error;

/// A number that names no usable descriptor.
#[derive(Debug, Error)]
#[error("{name}: inherited fd {fd}: {source}")]
pub struct FdError {
    /// What it should be, for people: "control socket".
    pub name: String,
    /// The number.
    pub fd: RawFd,
    /// What the kernel said.
    pub source: io::Error,
}

/// Takes over the inherited descriptor `fd`, called `name` in messages, and sets it close-on-exec.
///
/// The result owns the descriptor. A number is taken once: what the parent passed on is not close-on-exec, what was taken
/// or opened here is. Standard streams (0 to 2) are refused, because others in the process use them by number.
///
/// # Errors
/// [`FdError`] when the number names no open descriptor, or one that was taken already.
pub fn adopt(fd: RawFd, name: &str) -> Result<OwnedFd, FdError> {
    let fault = |source| FdError { name: name.to_owned(), fd, source };
    if fd < 3 {
        return Err(fault(io::Error::from_raw_os_error(libc::EBADF)));
    }
    // SAFETY: reads a flag of a number; fails for one that is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags & libc::FD_CLOEXEC != 0 && flags >= 0 {
        return Err(fault(io::Error::new(io::ErrorKind::InvalidInput, "it is named twice")));
    }
    // SAFETY: changes a flag of a number.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(fault(io::Error::last_os_error()));
    }
    // SAFETY: it is open, was inherited and not taken before, so nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::IntoRawFd as _;

    #[test]
    fn an_inherited_file_is_adopted_and_closed_on_exec() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"x").unwrap();
        file.rewind().unwrap();
        let number = file.into_raw_fd();
        // As it comes through execve.
        // SAFETY: changes a flag.
        unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
        let fd = adopt(number, "disk").unwrap();
        // SAFETY: reads a flag.
        assert_eq!(unsafe { libc::fcntl(number, libc::F_GETFD) }, libc::FD_CLOEXEC);
        let twice = adopt(number, "tap").unwrap_err().to_string();
        assert!(twice.starts_with("tap: ") && twice.ends_with("named twice"), "{twice}");
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_number_that_is_not_open_is_named_with_its_purpose() {
        for number in [-1, 2, 987] {
            let error = adopt(number, "control socket").unwrap_err().to_string();
            assert!(error.starts_with(&format!("control socket: inherited fd {number}: ")), "{error}");
        }
    }
}
