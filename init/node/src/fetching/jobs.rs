//! What the units of `fetch` jobs are given.

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{OwnedFd, RawFd};

/// uid of `fetch` units.
pub const FETCH_UID: u32 = 1000;
/// Descriptors of a unit begin here: the job document, the reports, the job's files.
const FIRST_FD: RawFd = 3;

/// A memfd with these bytes, rewound.
///
/// # Errors
/// When the kernel has no memory for it.
pub fn memfd(name: &str, content: &[u8]) -> Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC).with_context(|| format!("memfd {name}"))?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Descriptor number of the n-th file of a job.
#[must_use]
pub fn task_fd(n: usize) -> RawFd {
    FIRST_FD + 2 + RawFd::try_from(n).unwrap_or(RawFd::MAX - 8)
}
