//! virtio socket device (virtio 1.3 §5.10): streams and sequenced packets between guest and host without a network,
//! addressed by context id. The host's kernel (vhost-vsock) works the receive and transmit rings; the event queue, on
//! which a driver hears that its address has changed and its connections are gone, is ours.
//!
//! When the process ends, the kernel resets the host's end of every connection of this guest. A driver that resets the
//! device and goes on (an unbind, a kexec) forgets its own ends only: a host's end that waits without a word learns of it
//! at its next byte, since the kernel has no way to reset them while the device stays open.

mod active;
mod device;
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod vhost;

pub use device::{Vsock, cid_refusal};

/// Fuzz entry: a hostile driver against the event queue and the configuration space, between changes of its address.
#[doc(hidden)]
pub fn fuzz_vsock(data: &[u8]) {
    testing::drive(data);
}
