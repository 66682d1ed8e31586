//! vhost-net: the back end of each ring is a tap.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;

use vmm_sys_util::ioctl::ioctl_with_ref;

use self::request::VHOST_NET_SET_BACKEND;
use crate::virtio::vhost::{Vhost, VringFile, check};

/// Request number (linux/vhost.h).
mod request {
    #![allow(missing_docs, reason = "made by a macro, named as in the kernel's header")]
    use crate::virtio::vhost::VringFile;
    use crate::virtio::vhost::request::VHOST;
    use vmm_sys_util::ioctl_iow_nr;

    ioctl_iow_nr!(VHOST_NET_SET_BACKEND, VHOST, 0x30, VringFile);
}

/// Request numbers the device thread uses beyond those of every vhost, for its seccomp filter.
pub fn ioctl_numbers() -> [libc::c_ulong; 1] {
    [VHOST_NET_SET_BACKEND()]
}

/// An owned vhost-net instance.
#[derive(Debug)]
pub struct VhostNet(Vhost);

impl VhostNet {
    /// Takes `/dev/vhost-net`; see [`Vhost::new`].
    ///
    /// # Errors
    /// When it is not vhost-net, or owned already (`EBUSY`).
    pub fn new(file: File) -> io::Result<Self> {
        Vhost::new(file).map(Self)
    }

    /// What it shares with every vhost.
    pub fn common(&self) -> &Vhost {
        &self.0
    }

    /// Starts ring `index` on `tap`, or stops it with `None`. When a stop returns, the ring is quiet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_backend(&self, index: u32, tap: Option<RawFd>) -> io::Result<()> {
        let file = VringFile { index, fd: tap.unwrap_or(-1) };
        // SAFETY: the kernel reads one structure.
        check(unsafe { ioctl_with_ref(self.0.file(), VHOST_NET_SET_BACKEND(), &file) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden number out of linux/vhost.h.
    #[test]
    fn request_number_matches_the_kernels() {
        assert_eq!(VHOST_NET_SET_BACKEND(), 0x4008_af30);
    }
}
