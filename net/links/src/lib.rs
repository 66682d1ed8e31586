//! Virtual cables: what joins a VM's network card with a network, seen from the VM's end.
//!
//! Principles:
//! 1. A cable's two sides are separate: the network side is planned in `net/plan` and created by `net/kernel`; here is only the VM's side.
//! 2. The VMM gets descriptors, never names or privileges: [`tap::attach`] runs in its parent, or before its jail closes.
//! 3. A cable outlives the VM and this process: attaching again after a crash gives the same network.
//! 4. Frames go straight between the kernel and the memory they are kept in ([`Buffer`]): no copy of ours, no allocation.
//! 5. A new kind of cable is a new implementation of [`Link`], nothing else. What a kind cannot do is in its
//!    [`Link::offloads`], not in special cases of its users.
//!
//! Reading order: [`Link`], [`Offloads`], [`buffer`] (memory of a frame), [`tap`] (an interface of the host), [`unix`]
//! (a cable to another VM, without the host's network), [`path`] (the same for two that know only a path), `sys` (system
//! calls).
#![deny(unsafe_code)]

pub mod buffer;
pub mod path;
#[allow(unsafe_code)] // The system calls themselves.
mod sys;
pub mod tap;
pub mod unix;

pub use buffer::Buffer;
pub use path::PathLink;
pub use tap::Tap;
pub use unix::UnixLink;

use std::fmt;
use std::io;
use std::os::fd::RawFd;

/// Bytes of the header in front of each frame: `virtio_net_hdr` with its number of buffers (virtio 1.3 §5.1.6).
pub const HEADER: usize = 12;
/// Longest frame, header included: a 64 KiB segment with Ethernet header and VLAN tag.
pub const MAX_FRAME: usize = HEADER + 18 + 65_535;
/// Most buffers that one frame can be spread over (`UIO_MAXIOV`).
pub const MAX_BUFFERS: usize = 1024;

/// One queue pair's end of a cable. Carries Ethernet frames, each behind a header of [`HEADER`] bytes that says what
/// is left to do on it (checksum, segmentation). Never blocks.
pub trait Link: Send + fmt::Debug {
    /// Readable when a frame waits, writable when one may be sent; fit for edge-triggered epoll. Stays the same for life.
    fn fd(&self) -> RawFd;

    /// Work that this cable can leave to the other side, in both directions: none, where a kind of cable does not say.
    fn offloads(&self) -> Offloads {
        Offloads::NONE
    }

    /// What this end takes over from now on: a subset of [`Link::offloads`]. On a cable with several pairs, for all of
    /// them.
    ///
    /// # Errors
    /// When the kernel refuses; `Unsupported` for anything on a cable without offloads.
    fn set_offloads(&self, accepted: Offloads) -> io::Result<()> {
        if accepted == Offloads::NONE { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Whether frames may come and go here: pairs that the guest does not use are disabled, so that no frame waits where
    /// nobody looks. Asking for what is so already changes nothing; a cable of one pair need not do anything.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_enabled(&mut self, _enabled: bool) -> io::Result<()> {
        Ok(())
    }

    /// Takes one frame with its header into `buffers`, which together hold at least [`HEADER`] bytes and are at most
    /// [`MAX_BUFFERS`]. Returns its bytes, header included, at most what fits: give a byte too many to see that it does.
    ///
    /// # Errors
    /// `WouldBlock` when none waits; others when none will come for now.
    fn receive(&self, buffers: &mut [Buffer]) -> io::Result<usize>;

    /// Sends one frame with its header out of `buffers`; sizes as for [`Link::receive`].
    ///
    /// # Errors
    /// `WouldBlock` when the cable is full; others when this frame is lost.
    fn transmit(&self, buffers: &mut [Buffer]) -> io::Result<usize>;
}

/// Work on frames that one side may leave to the other (`TUN_F_*` of `linux/if_tun.h`, virtio 1.3 §5.1.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames without their checksum.
    pub checksum: bool,
    /// TCP over IPv4 in large segments.
    pub tso4: bool,
    /// TCP over IPv6 in large segments.
    pub tso6: bool,
    /// Large TCP segments with ECN.
    pub ecn: bool,
    /// UDP over IPv4 and IPv6 in large segments.
    pub uso: bool,
}

impl Offloads {
    /// Nothing: frames are complete and no longer than the MTU.
    pub const NONE: Offloads = Offloads { checksum: false, tso4: false, tso6: false, ecn: false, uso: false };
}
