//! A tap interface of the host (`Documentation/networking/tuntap.rst`): make, attach, and carry frames. The only place for
//! its ioctls.

use crate::{Buffer, HEADER, Link, Offloads, sys};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use thiserror::Error;

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Most queues of one tap (`MAX_TAP_QUEUES` of the kernel is 256; 16 is what a card here can use).
pub const MAX_QUEUES: u16 = 16;

/// A tap cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// No interface has the name.
    #[error("interface {name} does not exist")]
    Absent {
        /// The name.
        name: String,
    },
    /// Another interface has the name, or one queue was asked of a multi-queue tap, or the other way round.
    #[error("tap {name}: an interface of another kind has the name")]
    Kind {
        /// The name.
        name: String,
    },
    /// Somebody else is attached.
    #[error("tap {name}: another program is attached to it")]
    Busy {
        /// The name.
        name: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// The object and what was tried.
        what: String,
        /// How it failed.
        source: io::Error,
    },
}

impl TapError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| TapError::Io { what, source }
    }
}

/// Makes a persistent tap that `uid` may attach to; `multi_queue` for more than one queue. Nothing of the name may exist.
///
/// # Errors
/// [`TapError`].
pub fn create(name: &str, uid: u32, multi_queue: bool) -> Result<(), TapError> {
    let fd = open_queue(name, multi_queue)?;
    sys::tun_set_owner(&fd, uid).map_err(TapError::io(format!("tap {name}: set its owner")))?;
    sys::tun_persist(&fd).map_err(TapError::io(format!("tap {name}: keep it")))
}

/// MTU in bytes of an existing tap, in the network namespace of the calling thread.
///
/// # Errors
/// [`TapError::Absent`] or [`TapError::Io`].
pub fn mtu(name: &str) -> Result<u32, TapError> {
    sys::interface_mtu(name).map_err(|source| match source.raw_os_error() {
        Some(libc::ENODEV) => TapError::Absent { name: name.into() },
        _ => TapError::Io { what: format!("tap {name}: ask for its MTU"), source },
    })
}

/// Descriptors for the frames of an existing tap, one for each of 1 to [`MAX_QUEUES`] queue pairs: non-blocking, header
/// of [`HEADER`] bytes, no offloads (the VMM sets those that its guest accepts). Another holder of a tap of one queue makes
/// it an error; a multi-queue tap takes more. System calls only, no message to wait for.
///
/// # Errors
/// [`TapError`].
pub fn attach(name: &str, queues: u16) -> Result<Vec<OwnedFd>, TapError> {
    // Attaching would make a fresh one: check first.
    mtu(name)?;
    (0..queues.clamp(1, MAX_QUEUES)).map(|_| open_queue(name, queues > 1)).collect()
}

fn open_queue(name: &str, multi_queue: bool) -> Result<OwnedFd, TapError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(TapError::io("open /dev/net/tun"))?;
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | if multi_queue { IFF_MULTI_QUEUE } else { 0 };
    sys::tun_attach(&file, name, flags).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => TapError::Kind { name: name.into() },
        Some(libc::EBUSY) => TapError::Busy { name: name.into() },
        _ => TapError::Io { what: format!("attach to tap {name}"), source },
    })?;
    sys::tun_set_header_size(&file, HEADER as i32)
        .map_err(TapError::io(format!("tap {name}: set the size of its header")))?;
    Ok(file.into())
}

/// Requests that a [`Tap`] makes after it was adopted, for a seccomp filter, with their reasons.
#[must_use]
pub fn ioctl_numbers() -> [(u64, &'static str); 2] {
    let number = |request: libc::Ioctl| u64::from(request as u32);
    [(number(sys::TUNSETOFFLOAD), "the driver chose its offloads"), (number(sys::TUNSETQUEUE), "queue pairs in use")]
}

/// One attached queue of a tap.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    offloads: Offloads,
    multi_queue: bool,
    enabled: bool,
}

impl Tap {
    /// Takes an attached descriptor ([`attach`]) and finds out what its kernel can do. With `multi_queue` it must be one of
    /// several.
    ///
    /// # Errors
    /// When it is no tap, or attached with other flags than needed.
    pub fn adopt(fd: OwnedFd, multi_queue: bool) -> io::Result<Self> {
        let flags = sys::tun_flags(&fd)?;
        let wanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | if multi_queue { IFF_MULTI_QUEUE } else { 0 };
        if flags & wanted != wanted {
            let text = format!("attached with flags {flags:#06x}, expected {wanted:#06x}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        sys::tun_set_header_size(&fd, HEADER as i32)?;
        sys::set_nonblocking(&fd)?;
        let tcp = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: false };
        let all = Offloads { uso: true, ..tcp };
        // Kernels before 6.2 do not know UDP segmentation and refuse the bits.
        let offloads = if sys::tun_set_offloads(&fd, bits(all)).is_ok() { all } else { tcp };
        sys::tun_set_offloads(&fd, 0)?;
        Ok(Self { fd, offloads, multi_queue: flags & IFF_MULTI_QUEUE != 0, enabled: true })
    }
}

/// `TUN_F_*` of linux/if_tun.h: CSUM 1, TSO4 2, TSO6 4, TSO_ECN 8, USO4 0x20, USO6 0x40.
fn bits(offloads: Offloads) -> libc::c_ulong {
    let bit = |on: bool, value: libc::c_ulong| if on { value } else { 0 };
    bit(offloads.checksum, 1)
        | bit(offloads.tso4, 2)
        | bit(offloads.tso6, 4)
        | bit(offloads.ecn, 8)
        // Only both together are known to the kernel.
        | bit(offloads.uso, 0x60)
}

impl Link for Tap {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&self, accepted: Offloads) -> io::Result<()> {
        sys::tun_set_offloads(&self.fd, bits(accepted))
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        // The only queue of a tap cannot be detached; nobody looks for frames then, and the kernel drops them.
        if self.multi_queue && enabled != self.enabled {
            sys::tun_set_queue(&self.fd, if enabled { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE })?;
        }
        self.enabled = enabled;
        Ok(())
    }

    fn receive(&self, buffers: &mut [Buffer]) -> io::Result<usize> {
        sys::read(self.fd(), buffers)
    }

    fn transmit(&self, buffers: &mut [Buffer]) -> io::Result<usize> {
        sys::write(self.fd(), buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offload_bits_are_those_of_the_kernels_header() {
        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };
        assert_eq!((bits(Offloads::NONE), bits(all)), (0, 0x6f));
        assert_eq!(bits(Offloads { tso6: true, ..Offloads::NONE }), 4);
        assert_eq!(ioctl_numbers().map(|(number, _)| number), [0x4004_54d0, 0x4004_54d9]);
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Tap::adopt(file.into(), false).is_err());
    }

    /// Needs a network namespace and `/dev/net/tun`; says so where they are not to be had.
    #[test]
    fn a_tap_is_attached_once_at_a_time_and_again_after_its_vm_is_gone() {
        if let Err(e) = sys::unshare_network() {
            println!("not run: a network namespace needs root ({e})");
            return;
        }
        if let Err(e) = std::fs::File::open("/dev/net/tun") {
            println!("not run: /dev/net/tun: {e}");
            return;
        }
        let refusal = |queues| attach("tap-x", queues).unwrap_err().to_string();
        assert_eq!(refusal(1), "interface tap-x does not exist");
        create("tap-x", 2001, false).unwrap();
        for _ in 0..2 {
            let held = attach("tap-x", 1).unwrap();
            assert_eq!((held.len(), mtu("tap-x").unwrap()), (1, 1500));
            assert_eq!(refusal(1), "tap tap-x: another program is attached to it");
        }
        assert_eq!(refusal(2), "tap tap-x: an interface of another kind has the name");
        assert_eq!(attach("lo", 1).unwrap_err().to_string(), "tap lo: an interface of another kind has the name");
    }

    #[test]
    fn queues_of_a_multi_queue_tap_come_and_go() {
        if sys::unshare_network().is_err() || std::fs::File::open("/dev/net/tun").is_err() {
            println!("not run: needs root and /dev/net/tun");
            return;
        }
        create("tap-m", 2001, true).unwrap();
        let fds = attach("tap-m", 2).unwrap();
        let mut taps: Vec<Tap> = fds.into_iter().map(|fd| Tap::adopt(fd, true).unwrap()).collect();
        assert!(taps[0].offloads().checksum && taps[0].offloads().tso4);
        for enabled in [false, false, true, true] {
            taps[1].set_enabled(enabled).unwrap();
            // The kernel refuses to do what is done already.
            let again = if enabled { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
            assert!(sys::tun_set_queue(&taps[1].fd, again).is_err(), "{enabled}");
        }
        taps[0].set_offloads(taps[0].offloads()).unwrap();
        let single = attach("tap-m", 1).unwrap_err().to_string();
        assert!(single.contains("another kind"), "{single}");
    }
}
