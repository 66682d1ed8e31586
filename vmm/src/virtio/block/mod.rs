//! virtio block device (virtio 1.3 §5.2).
//!
//! Two concerns kept apart: the [`format`] says where a guest byte lives in the image file, the [`engine`] moves bytes
//! between the file and guest memory. A flush completes only when the host's storage has confirmed it.

mod active;
mod device;
pub mod engine;
pub mod format;
mod request;
#[cfg(test)]
mod tests;

pub use device::Block;

/// Fuzz entry: a hostile driver against a small image.
#[doc(hidden)]
pub fn fuzz_block(data: &[u8]) {
    // SAFETY: a new anonymous file; the name is a constant.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return;
    }
    // SAFETY: just created, owned by nobody else.
    let file = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    if file.set_len(64 * 512).is_err() {
        return;
    }
    if let Ok(block) = Block::new("disk", file, false) {
        super::fuzzing::drive(Box::new(block), data);
    }
}
