//! virtio network card (virtio 1.3 §5.1): one queue pair on a tap, through vhost-net when its descriptor is given, else
//! through this process. Checksum and segmentation offloads, mergeable receive buffers, event index either way.

mod active;
mod device;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod vhost;
mod vhost_active;

pub use device::{Net, NetOptions};

/// Fuzz entry: a hostile driver against both queues of the user-space path.
#[doc(hidden)]
pub fn fuzz_net(data: &[u8]) {
    use std::os::fd::FromRawFd;
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0, fds.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: fresh descriptors, owned by nobody else. A datagram socket keeps frames apart as a tap does.
    let (tap, _peer) = unsafe { (std::fs::File::from_raw_fd(fds[0]), std::fs::File::from_raw_fd(fds[1])) };
    let mac = crate::config::MacAddress([2, 0, 0, 0, 0, 1]);
    let net = Net::for_tests(tap::Tap::from_prepared(tap), NetOptions { name: "net0".into(), mac, mtu: None });
    super::fuzzing::drive(Box::new(net), data);
}
