//! virtio network card (virtio 1.3 §5.1): one to sixteen queue pairs, each on its end of a virtual cable
//! ([`holdfast_links::Link`]). The kernel works the rings through vhost-net when its descriptors are given, else this
//! process does. Checksum and segmentation offloads as far as the cable has them, mergeable receive buffers, event
//! index, MTU, link status, and a control queue when there is more than one pair.
//!
//! Modules in reading order: [`device`] (inactive; what is offered), [`features`] (the table of bits and what they need),
//! [`active`] (activated: pairs in use, pause, control), [`control`] (commands of the driver), [`pair`] (one pair in
//! this process: [`turn`], [`receive`], [`transmit`], [`ahead`]), [`vhost_pair`] (one pair in the kernel), [`vhost`] (its ioctl).

mod active;
mod ahead;
mod control;
mod device;
mod features;
mod pair;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;
mod turn;
pub mod vhost;
mod vhost_pair;

pub use device::{Lane, MAX_PAIRS, Net, NetOptions};

/// Fuzz entry: a hostile driver against the control queue and two queue pairs of the user-space path.
#[doc(hidden)]
pub fn fuzz_net(data: &[u8]) {
    use holdfast_links::{Buffer, HEADER, Link, UnixLink, unix};
    let (mut peers, mut lanes) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let Ok((Ok(link), Ok(peer))) = unix::pair().map(|(a, b)| (UnixLink::adopt(a), UnixLink::adopt(b))) else {
            return;
        };
        // Something to receive.
        for len in [60, 1514, 9000] {
            let mut frame = vec![0; HEADER + len];
            // SAFETY: the frame lives until after the call, and only the buffer touches it meanwhile.
            let buffer = unsafe { Buffer::new(frame.as_mut_ptr(), frame.len()) };
            let _ = peer.transmit(&mut [buffer]);
        }
        peers.push(peer);
        lanes.push(Lane::User(Box::new(link) as Box<dyn Link>));
    }
    let mac = holdfast_model::contract::vm::MacAddress([2, 0, 0, 0, 0, 1]);
    super::fuzzing::drive(Box::new(Net::new(lanes, NetOptions::new("net0", mac))), data);
}
