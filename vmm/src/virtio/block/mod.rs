//! virtio block device (virtio 1.3 §5.2).
//!
//! Concerns kept apart: [`format`] says where a guest's byte lies in the image file and what the file can do, [`engine`]
//! moves bytes between the file and guest memory, [`lock`] keeps two VMs from one image. What the device guards:
//!
//! 1. A flush completes only when the host's storage has confirmed it; without VIRTIO_BLK_F_FLUSH each change does.
//! 2. A request's buffers outlive it, whatever becomes of the device: pause and reset wait for the host's storage, and when
//!    that does not answer the process ends with the memory still mapped.
//! 3. Discard and write-zeroes are offered when the file system can do them, which is found out when the image is opened.
//!
//! Not offered, and why: VIRTIO_BLK_F_CONFIG_WCE, because the cache mode is the host's to choose: always write-back with a
//! flush that means it, and a driver that does not negotiate the flush gets write-through. VIRTIO_BLK_F_MQ, because one
//! thread and one ring serve the disk in any case, so that more queues would cost memory and doorbells and bring no more
//! requests a second. Secure erase, lifetime and zones, because a file has none of them.

mod active;
mod device;
pub mod engine;
pub mod format;
pub mod lock;
mod request;
#[cfg(test)]
mod tests;

pub use device::{Block, BlockOptions};

/// A disk of 64 sectors, for fuzzing.
pub(crate) fn small_disk() -> Option<Block> {
    // SAFETY: a new anonymous file; the name is a constant.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: just created, owned by nobody else.
    let file = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    file.set_len(64 * 512).ok()?;
    Block::new(BlockOptions { id: "disk".into(), ..BlockOptions::default() }, file).ok()
}

/// Fuzz entry: a hostile driver against a small image.
#[doc(hidden)]
pub fn fuzz_block(data: &[u8]) {
    if let Some(block) = small_disk() {
        super::fuzzing::drive(Box::new(block), data);
    }
}
