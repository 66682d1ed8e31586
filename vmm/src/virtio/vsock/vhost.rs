//! vhost-vsock: the back end is the host's own socket layer, found by context id.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;

use virtio_queue::Queue;
use vmm_sys_util::ioctl::ioctl_with_ref;

use self::request::{VHOST_VSOCK_SET_GUEST_CID, VHOST_VSOCK_SET_RUNNING};
use crate::memory::GuestRam;
use crate::virtio::vhost::{RingWorker, Vhost, check};

/// Request numbers (linux/vhost.h).
mod request {
    #![allow(missing_docs, reason = "made by a macro, named as in the kernel's header")]
    use crate::virtio::vhost::request::VHOST;
    use vmm_sys_util::ioctl_iow_nr;

    ioctl_iow_nr!(VHOST_VSOCK_SET_GUEST_CID, VHOST, 0x60, u64);
    ioctl_iow_nr!(VHOST_VSOCK_SET_RUNNING, VHOST, 0x61, libc::c_int);
}

/// Request numbers the device thread uses beyond those of every vhost, for its seccomp filter.
pub fn ioctl_numbers() -> [libc::c_ulong; 2] {
    [VHOST_VSOCK_SET_GUEST_CID(), VHOST_VSOCK_SET_RUNNING()]
}

/// What the device asks of the kernel.
pub(super) trait Kernel: RingWorker + Send {
    /// Feature bits the kernel knows.
    fn features(&self) -> u64;
    /// Makes the guest reachable at `cid`. May be called at any time.
    fn set_cid(&self, cid: u32) -> io::Result<()>;
    /// Starts or stops both rings. When a stop returns, they are quiet.
    fn set_running(&self, running: bool) -> io::Result<()>;
}

/// An owned vhost-vsock instance.
#[derive(Debug)]
pub struct VhostVsock(Vhost);

impl VhostVsock {
    /// Takes `/dev/vhost-vsock`; see [`Vhost::new`].
    ///
    /// # Errors
    /// When it is not vhost-vsock, or owned already (`EBUSY`).
    pub fn new(file: File) -> io::Result<Self> {
        Vhost::new(file).map(Self)
    }
}

impl Kernel for VhostVsock {
    fn features(&self) -> u64 {
        self.0.features()
    }

    fn set_cid(&self, cid: u32) -> io::Result<()> {
        // SAFETY: the kernel reads one u64.
        check(unsafe { ioctl_with_ref(self.0.file(), VHOST_VSOCK_SET_GUEST_CID(), &u64::from(cid)) })
    }

    fn set_running(&self, running: bool) -> io::Result<()> {
        // SAFETY: the kernel reads one int.
        check(unsafe { ioctl_with_ref(self.0.file(), VHOST_VSOCK_SET_RUNNING(), &libc::c_int::from(running)) })
    }
}

impl RingWorker for VhostVsock {
    fn configure(&self, features: u64, ram: &GuestRam) -> io::Result<()> {
        self.0.configure(features, ram)
    }

    fn set_ring(&self, index: u32, ring: &Queue, ram: &GuestRam, kick: RawFd, error: RawFd) -> io::Result<()> {
        self.0.set_ring(index, ring, ram, kick, error)
    }

    fn set_call(&self, index: u32, call: RawFd) -> io::Result<()> {
        self.0.set_call(index, call)
    }

    fn ring_base(&self, index: u32) -> io::Result<u16> {
        self.0.ring_base(index)
    }

    fn set_ring_base(&self, index: u32, base: u16) -> io::Result<()> {
        self.0.set_ring_base(index, base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden numbers out of linux/vhost.h.
    #[test]
    fn request_numbers_match_the_kernels() {
        assert_eq!(ioctl_numbers(), [0x4008_af60, 0x4004_af61]);
    }
}
