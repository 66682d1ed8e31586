//! Configuration space that a guest reads without an exit: the ECAM pages of the functions present, as memory that KVM
//! maps read-only. A read is then an ordinary load; a write still exits, and what it changed is published here.
//!
//! ```text
//!  ECAM address  0x0000          0x1000 ...            0x8000          0x9000 ...
//!                device 0 fn 0 | fn 1-7: all ones    | device 1 fn 0 | fn 1-7: all ones | ...
//!  memfd page    7             | 0-6 (shared by all) | 8             | 0-6              |
//! ```
//!
//! Linux reads configuration space some 200 times per function while it boots, mostly to walk the capability list.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::config::SPACE;

/// Bytes of one function's configuration space in ECAM.
const PAGE: usize = 0x1000;
/// Functions of a device, of which ours have the first only.
const FUNCTIONS: usize = 8;
/// Bytes of one device's configuration space in ECAM.
const DEVICE: usize = PAGE * FUNCTIONS;
/// Pages of ones, for functions that are not there.
const ONES: usize = FUNCTIONS - 1;

/// The pages of devices 0 to `devices - 1`.
#[derive(Debug)]
pub struct ConfigPages {
    base: NonNull<u8>,
    devices: usize,
}

// SAFETY: the mapping belongs to this value alone and is only accessed through atomics.
unsafe impl Send for ConfigPages {}
// SAFETY: as above.
unsafe impl Sync for ConfigPages {}

impl ConfigPages {
    /// Pages for `devices` devices, each of which reads as zeros until it is published.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(devices: usize) -> io::Result<Self> {
        // SAFETY: a constant name; makes a descriptor or fails.
        let fd = unsafe { libc::memfd_create(c"pci-config".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: numbers only.
        if unsafe { libc::ftruncate(file.as_raw_fd(), ((ONES + devices) * PAGE) as libc::off_t) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new reservation at an address of the kernel's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), devices * DEVICE, libc::PROT_NONE, anonymous, -1, 0) };
        let base = NonNull::new(base.cast::<u8>()).filter(|base| base.as_ptr().cast() != libc::MAP_FAILED);
        let pages = Self { base: base.ok_or_else(io::Error::last_os_error)?, devices };
        let place = |at: usize, len: usize, page: usize| {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            // SAFETY: replaces a part of our own reservation: `at + len` is at most its size.
            let done = unsafe {
                let to = pages.base.as_ptr().add(at);
                libc::mmap(to.cast(), len, protection, flags, file.as_raw_fd(), (page * PAGE) as libc::off_t)
            };
            if done == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
        };
        for device in 0..devices {
            place(device * DEVICE, PAGE, ONES + device)?;
            place(device * DEVICE + PAGE, ONES * PAGE, 0)?;
        }
        if devices > 0 {
            pages.words(PAGE, ONES * PAGE).iter().for_each(|word| word.store(u32::MAX, Ordering::Relaxed));
        }
        Ok(pages)
    }

    /// Where the pages are in this process.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Bytes of all pages: what they cover of ECAM.
    pub fn len(&self) -> u64 {
        (self.devices * DEVICE) as u64
    }

    /// Whether there is no device.
    pub fn is_empty(&self) -> bool {
        self.devices == 0
    }

    /// Shows the guest a device's configuration space. A read at the same moment sees old or new words, never half of one.
    pub fn publish(&self, device: usize, space: &[u8; SPACE]) {
        if device >= self.devices {
            return;
        }
        for (shown, word) in self.words(device * DEVICE, SPACE).iter().zip(space.chunks_exact(4)) {
            let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            if shown.load(Ordering::Relaxed) != word {
                shown.store(word, Ordering::Release);
            }
        }
    }

    /// Whether the guest reads `space` at the addresses of `device`.
    pub fn shows(&self, device: usize, space: &[u8; SPACE]) -> bool {
        let expected = space.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        let shown = self.words(device * DEVICE, SPACE).iter().map(|word| word.load(Ordering::Relaxed));
        device < self.devices && shown.eq(expected)
    }

    /// What the guest reads at `at`.
    #[cfg(test)]
    pub(super) fn word(&self, at: usize) -> u32 {
        self.words(at, 4)[0].load(Ordering::Relaxed)
    }

    /// `len` bytes from `at`, both multiples of four and within the pages.
    fn words(&self, at: usize, len: usize) -> &[AtomicU32] {
        debug_assert!(at + len <= self.devices * DEVICE && at.is_multiple_of(4));
        // SAFETY: within the mapping, which lives as long as `self`, aligned, readable and writable; other users of the
        // memory are the guest, which only reads, and this process through the same atomics.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at).cast(), len / 4) }
    }
}

impl Drop for ConfigPages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of this size; nobody holds a reference into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.devices * DEVICE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_show_their_space_and_absent_functions_ones() {
        let pages = ConfigPages::new(3).unwrap();
        let mut space = [0; SPACE];
        space[..4].copy_from_slice(&[0xf4, 0x1a, 0x41, 0x10]);
        pages.publish(2, &space);
        assert_eq!(pages.word(2 * DEVICE), 0x1041_1af4);
        assert_eq!((pages.word(0), pages.word(DEVICE)), (0, 0), "not published");
        for device in 0..3 {
            for function in 1..FUNCTIONS {
                assert_eq!(pages.word(device * DEVICE + function * PAGE), u32::MAX);
                assert_eq!(pages.word(device * DEVICE + function * PAGE + PAGE - 4), u32::MAX);
            }
        }
        assert_eq!(pages.word(2 * DEVICE + SPACE), 0, "no extended capabilities");
        pages.publish(3, &space);
        assert_eq!(pages.len(), 0x1_8000);
    }

    #[test]
    fn what_is_published_later_replaces_what_was() {
        let pages = ConfigPages::new(1).unwrap();
        pages.publish(0, &[1; SPACE]);
        pages.publish(0, &[2; SPACE]);
        assert!(pages.words(0, SPACE).iter().all(|word| word.load(Ordering::Relaxed) == 0x0202_0202));
    }
}
