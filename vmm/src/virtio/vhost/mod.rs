//! vhost: the host's kernel works the rings of a device (`/dev/vhost-net`, `/dev/vhost-vsock`).
//!
//! [`Vhost`] is what all of them have in common, on an inherited descriptor (the `vhost` crate insists on opening the
//! device itself, which a jailed process cannot); [`rings`] runs the rings of an activated device. What only one kind
//! has (its back end, its identity) is in that device's folder.

pub mod rings;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};

use self::request::{
    VHOST_GET_FEATURES, VHOST_GET_VRING_BASE, VHOST_SET_FEATURES, VHOST_SET_MEM_TABLE, VHOST_SET_OWNER,
    VHOST_SET_VRING_ADDR, VHOST_SET_VRING_BASE, VHOST_SET_VRING_CALL, VHOST_SET_VRING_ERR, VHOST_SET_VRING_KICK,
    VHOST_SET_VRING_NUM,
};
use crate::memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRam, host_iovec};

/// `struct vhost_vring_state` (linux/vhost_types.h).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct VringState {
    index: u32,
    num: u32,
}

/// `struct vhost_vring_file`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct VringFile {
    /// Ring.
    pub index: u32,
    /// Descriptor, -1 for none.
    pub fd: i32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct VringAddr {
    index: u32,
    flags: u32,
    desc: u64,
    used: u64,
    avail: u64,
    log: u64,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct MemoryRegion {
    guest: u64,
    len: u64,
    host: u64,
    flags: u64,
}

/// `struct vhost_memory` with room for the two regions a guest can have.
#[repr(C)]
#[derive(Debug, Default)]
struct MemoryTable {
    count: u32,
    padding: u32,
    regions: [MemoryRegion; 2],
}

/// Request numbers (linux/vhost.h).
pub(super) mod request {
    #![allow(missing_docs, reason = "made by a macro, named as in the kernel's header")]
    use super::{VringAddr, VringFile, VringState};
    use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

    /// `VHOST_VIRTIO`, the type of every request.
    pub(in crate::virtio) const VHOST: u32 = 0xaf;
    // The size in the request number of VHOST_SET_MEM_TABLE is that of the header alone.
    ioctl_ior_nr!(VHOST_GET_FEATURES, VHOST, 0x00, u64);
    ioctl_iow_nr!(VHOST_SET_FEATURES, VHOST, 0x00, u64);
    ioctl_io_nr!(VHOST_SET_OWNER, VHOST, 0x01);
    ioctl_iow_nr!(VHOST_SET_MEM_TABLE, VHOST, 0x03, u64);
    ioctl_iow_nr!(VHOST_SET_VRING_NUM, VHOST, 0x10, VringState);
    ioctl_iow_nr!(VHOST_SET_VRING_ADDR, VHOST, 0x11, VringAddr);
    ioctl_iow_nr!(VHOST_SET_VRING_BASE, VHOST, 0x12, VringState);
    ioctl_iowr_nr!(VHOST_GET_VRING_BASE, VHOST, 0x12, VringState);
    ioctl_iow_nr!(VHOST_SET_VRING_KICK, VHOST, 0x20, VringFile);
    ioctl_iow_nr!(VHOST_SET_VRING_CALL, VHOST, 0x21, VringFile);
    ioctl_iow_nr!(VHOST_SET_VRING_ERR, VHOST, 0x22, VringFile);
}

/// Request numbers the device thread uses for every kind of vhost, for its seccomp filter. Feature query and ownership
/// come before the jail.
pub fn ioctl_numbers() -> [libc::c_ulong; 9] {
    [
        VHOST_SET_FEATURES(),
        VHOST_SET_MEM_TABLE(),
        VHOST_SET_VRING_NUM(),
        VHOST_SET_VRING_ADDR(),
        VHOST_SET_VRING_BASE(),
        VHOST_GET_VRING_BASE(),
        VHOST_SET_VRING_KICK(),
        VHOST_SET_VRING_CALL(),
        VHOST_SET_VRING_ERR(),
    ]
}

/// What [`rings`] asks of a vhost instance. A trait, so that tests see the requests without a kernel that takes them.
pub trait RingWorker {
    /// As [`Vhost::configure`].
    ///
    /// # Errors
    /// When the kernel refuses; so for all of these.
    fn configure(&self, features: u64, ram: &GuestRam) -> io::Result<()>;
    /// As [`Vhost::set_ring`].
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_ring(&self, index: u32, ring: &Queue, ram: &GuestRam, kick: RawFd, error: RawFd) -> io::Result<()>;
    /// As [`Vhost::set_call`].
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_call(&self, index: u32, call: RawFd) -> io::Result<()>;
    /// As [`Vhost::ring_base`].
    ///
    /// # Errors
    /// When the kernel refuses.
    fn ring_base(&self, index: u32) -> io::Result<u16>;
    /// As [`Vhost::set_ring_base`].
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_ring_base(&self, index: u32, base: u16) -> io::Result<()>;
}

impl RingWorker for Vhost {
    fn configure(&self, features: u64, ram: &GuestRam) -> io::Result<()> {
        self.configure(features, ram)
    }

    fn set_ring(&self, index: u32, ring: &Queue, ram: &GuestRam, kick: RawFd, error: RawFd) -> io::Result<()> {
        self.set_ring(index, ring, ram, kick, error)
    }

    fn set_call(&self, index: u32, call: RawFd) -> io::Result<()> {
        self.set_call(index, call)
    }

    fn ring_base(&self, index: u32) -> io::Result<u16> {
        self.ring_base(index)
    }

    fn set_ring_base(&self, index: u32, base: u16) -> io::Result<()> {
        self.set_ring_base(index, base)
    }
}

/// An owned vhost instance of any kind.
#[derive(Debug)]
pub struct Vhost {
    file: File,
    features: u64,
}

impl Vhost {
    /// Takes a vhost device and ties it to this process's memory: call it in the process that runs the VM.
    ///
    /// # Errors
    /// When it is not a vhost device, or owned already (`EBUSY`).
    pub fn new(file: File) -> io::Result<Self> {
        let mut features = 0u64;
        // SAFETY: the kernel writes one u64.
        check(unsafe { ioctl_with_mut_ref(&file, VHOST_GET_FEATURES(), &mut features) })?;
        // SAFETY: no argument.
        check(unsafe { ioctl(&file, VHOST_SET_OWNER()) })?;
        Ok(Self { file, features })
    }

    /// Feature bits the kernel knows.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Sets negotiated features and the guest's memory.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn configure(&self, features: u64, ram: &GuestRam) -> io::Result<()> {
        let features = features & self.features;
        // SAFETY: the kernel reads one u64.
        check(unsafe { ioctl_with_ref(&self.file, VHOST_SET_FEATURES(), &features) })?;
        let mut table = MemoryTable::default();
        for (slot, region) in table.regions.iter_mut().zip(ram.iter()) {
            *slot = MemoryRegion {
                guest: region.start_addr().raw_value(),
                len: region.len(),
                host: region.as_ptr() as u64,
                flags: 0,
            };
            table.count += 1;
        }
        // SAFETY: the table names `count` regions and has room for them; the mappings live as long as the VM.
        check(unsafe { ioctl_with_ptr(&self.file, VHOST_SET_MEM_TABLE(), &table) })
    }

    /// Describes ring `index`, its position and its eventfds. The ring must stand still, and does until its kind of
    /// vhost is started.
    ///
    /// # Errors
    /// When an address is not RAM (checked before) or the kernel refuses.
    pub fn set_ring(&self, index: u32, ring: &Queue, ram: &GuestRam, kick: RawFd, error: RawFd) -> io::Result<()> {
        let size = usize::from(ring.size());
        let host = |addr: u64, len: usize| {
            host_iovec(ram, GuestAddress(addr), len)
                .map(|iov| iov.iov_base as u64)
                .ok_or_else(|| io::Error::other("ring outside guest memory"))
        };
        let num = VringState { index, num: u32::from(ring.size()) };
        let addr = VringAddr {
            index,
            flags: 0,
            desc: host(ring.desc_table(), 16 * size)?,
            used: host(ring.used_ring(), 6 + 8 * size)?,
            avail: host(ring.avail_ring(), 6 + 2 * size)?,
            log: 0,
        };
        self.set_ring_base(index, ring.next_avail())?;
        // SAFETY: each call reads one structure; the addresses are guest memory that outlives the ring.
        unsafe {
            check(ioctl_with_ref(&self.file, VHOST_SET_VRING_NUM(), &num))?;
            check(ioctl_with_ref(&self.file, VHOST_SET_VRING_ADDR(), &addr))?;
            check(ioctl_with_ref(&self.file, VHOST_SET_VRING_ERR(), &VringFile { index, fd: error }))?;
            check(ioctl_with_ref(&self.file, VHOST_SET_VRING_KICK(), &VringFile { index, fd: kick }))
        }
    }

    /// Sets the eventfd that ring `index` signals.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_call(&self, index: u32, call: RawFd) -> io::Result<()> {
        // SAFETY: the kernel reads one structure.
        check(unsafe { ioctl_with_ref(&self.file, VHOST_SET_VRING_CALL(), &VringFile { index, fd: call }) })
    }

    /// Where ring `index` stands: the available index that the kernel would look at next. Only a ring that stands still
    /// has an answer that stays true.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ring_base(&self, index: u32) -> io::Result<u16> {
        let mut base = VringState { index, num: 0 };
        // SAFETY: the kernel reads and writes one structure.
        check(unsafe { ioctl_with_mut_ref(&self.file, VHOST_GET_VRING_BASE(), &mut base) })?;
        // The upper half is a packed ring's used index; ours are split (virtio 1.3 §2.7).
        Ok(base.num as u16)
    }

    /// Sets where ring `index` goes on. It must stand still.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_ring_base(&self, index: u32, base: u16) -> io::Result<()> {
        let base = VringState { index, num: u32::from(base) };
        // SAFETY: the kernel reads one structure.
        check(unsafe { ioctl_with_ref(&self.file, VHOST_SET_VRING_BASE(), &base) })
    }

    /// The device, for requests that only its kind has.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// The outcome of an ioctl.
pub(in crate::virtio) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden numbers out of linux/vhost.h.
    #[test]
    fn request_numbers_match_the_kernels() {
        assert_eq!(VHOST_GET_FEATURES(), 0x8008_af00);
        assert_eq!(VHOST_SET_OWNER(), 0xaf01);
        assert_eq!(VHOST_SET_MEM_TABLE(), 0x4008_af03);
        assert_eq!(VHOST_SET_VRING_ADDR(), 0x4028_af11);
        assert_eq!(VHOST_SET_VRING_BASE(), 0x4008_af12);
        assert_eq!(VHOST_GET_VRING_BASE(), 0xc008_af12);
    }
}
