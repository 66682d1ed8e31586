//! A tap device: attach by name, header size, offloads, frames.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};

use self::request::{TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ};

/// Bytes of `virtio_net_hdr_mrg_rxbuf`, in front of each frame (virtio 1.3 §5.1.6).
pub const HEADER: usize = 12;

/// Request numbers (linux/if_tun.h).
mod request {
    #![allow(missing_docs, reason = "made by a macro, named as in the kernel's header")]
    use vmm_sys_util::ioctl_iow_nr;

    const TUN: u32 = b'T' as u32;
    ioctl_iow_nr!(TUNSETIFF, TUN, 202, libc::c_int);
    ioctl_iow_nr!(TUNSETOFFLOAD, TUN, 208, libc::c_uint);
    ioctl_iow_nr!(TUNSETVNETHDRSZ, TUN, 216, libc::c_int);
}

/// Request numbers the device thread may use, for its seccomp filter.
pub fn ioctl_numbers() -> [libc::c_ulong; 2] {
    [TUNSETOFFLOAD(), TUNSETVNETHDRSZ()]
}

/// What the reader of the tap can take over from the kernel (`TUN_F_*` of `linux/if_tun.h`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames without checksum.
    pub checksum: bool,
    /// TCP over IPv4 in large segments.
    pub tso4: bool,
    /// TCP over IPv6 in large segments.
    pub tso6: bool,
    /// Segments with ECN.
    pub ecn: bool,
}

impl Offloads {
    fn bits(self) -> libc::c_ulong {
        let bit = |on: bool, value: libc::c_ulong| if on { value } else { 0 };
        bit(self.checksum, 1) | bit(self.tso4, 2) | bit(self.tso6, 4) | bit(self.ecn, 8)
    }
}

/// An attached tap queue (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`), non-blocking.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// False for the socket that stands in for a tap in tests.
    real: bool,
}

impl Tap {
    /// Attaches to interface `name`, making it when it does not exist (needs CAP_NET_ADMIN).
    ///
    /// # Errors
    /// From opening `/dev/net/tun` or attaching.
    pub fn attach(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open("/dev/net/tun")?;
        // struct ifreq: name[16], flags u16, padding to 40 bytes.
        #[repr(C)]
        struct Request {
            name: [u8; 16],
            flags: u16,
            rest: [u8; 22],
        }
        let mut request = Request {
            name: [0; 16],
            flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16,
            rest: [0; 22],
        };
        let len = name.len().min(15);
        request.name[..len].copy_from_slice(&name.as_bytes()[..len]);
        // SAFETY: the kernel reads and writes at most the 40 bytes of `ifreq`.
        if unsafe { ioctl_with_ref(&file, TUNSETIFF(), &request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Self::adopt(file)
    }

    /// Takes an attached descriptor.
    ///
    /// # Errors
    /// When it is no tap with `IFF_VNET_HDR`.
    pub fn adopt(file: File) -> io::Result<Self> {
        let size = HEADER as libc::c_int;
        // SAFETY: the kernel reads one int.
        if unsafe { ioctl_with_ref(&file, TUNSETVNETHDRSZ(), &size) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: plain flag changes on a descriptor we own.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        // SAFETY: as above.
        if flags < 0 || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { file, real: true })
    }

    /// A descriptor that needs no set-up: for tests and fuzzing.
    #[doc(hidden)]
    pub fn from_prepared(file: File) -> Self {
        Self { file, real: false }
    }

    /// Tells the kernel what the guest can take over.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        if !self.real {
            return Ok(());
        }
        // SAFETY: passes a number only.
        if unsafe { ioctl_with_val(&self.file, TUNSETOFFLOAD(), offloads.bits()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The descriptor.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// One frame with its header into guest buffers; the bytes read.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn receive(&self, buffers: &[libc::iovec]) -> io::Result<usize> {
        let count = buffers.len().min(1024) as libc::c_int;
        // SAFETY: the buffers are guest memory that outlives the call.
        let got = unsafe { libc::readv(self.fd(), buffers.as_ptr(), count) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// One frame with its header out of guest buffers.
    ///
    /// # Errors
    /// `WouldBlock` when the interface's queue is full; others when the frame is refused.
    pub fn send(&self, buffers: &[libc::iovec]) -> io::Result<usize> {
        let count = buffers.len().min(1024) as libc::c_int;
        // SAFETY: the buffers are guest memory that outlives the call.
        let sent = unsafe { libc::writev(self.fd(), buffers.as_ptr(), count) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}
