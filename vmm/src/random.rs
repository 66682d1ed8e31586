//! The host kernel's random number generator.

use std::io::{self, Read};

/// The generator as a reader; needs no open file and never blocks once the host has booted.
pub struct KernelRandom;

impl Read for KernelRandom {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer is valid for writes of its length.
        let got = unsafe { libc::getrandom(buf.as_mut_ptr().cast(), buf.len(), 0) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }
}
