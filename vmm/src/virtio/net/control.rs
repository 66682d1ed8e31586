//! The control queue (virtio 1.3 §5.1.6.5): commands of the driver, each answered in a byte.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::virtio::chain::{Chain, copy_from, copy_to};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{DeviceFault, Progress};

/// Commands handled in one go before other devices have their turn.
const BUDGET: usize = 16;
/// Longest command known: class, command, and two bytes of data.
const LONGEST: usize = 4;

/// What a driver can want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Use the first so many pairs; not zero.
    SetPairs(u16),
}

/// A command out of its bytes: class @0, command @1, then its data. `None` for what is not known, too short or too long:
/// this card offers no class but [`VIRTIO_NET_CTRL_MQ`].
pub(super) fn parse(bytes: &[u8]) -> Option<Command> {
    match bytes {
        [class, command, low, high]
            if u32::from(*class) == VIRTIO_NET_CTRL_MQ && u32::from(*command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET =>
        {
            // §5.1.6.5.6.1: at least one.
            Some(u16::from_le_bytes([*low, *high])).filter(|pairs| *pairs > 0).map(Command::SetPairs)
        }
        _ => None,
    }
}

/// The queue of an activated card.
pub(super) struct ControlQueue {
    device: String,
    queue: VirtQueue,
    chain: Chain,
}

impl ControlQueue {
    pub(super) fn new(device: &str, queue: VirtQueue) -> Self {
        Self { device: device.to_string(), queue, chain: Chain::default() }
    }

    pub(super) fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// Answers waiting commands; `obey` says whether one was done.
    pub(super) fn run(
        &mut self,
        mut obey: impl FnMut(Command) -> Result<bool, DeviceFault>,
    ) -> Result<Progress, DeviceFault> {
        let fault = DeviceFault::ring(&self.device, self.queue.index);
        let mut progress = Progress::Again;
        for _ in 0..BUDGET {
            if !self.queue.pop(&mut self.chain).map_err(&fault)? {
                if self.queue.enable_kicks() {
                    continue;
                }
                progress = Progress::Drained;
                break;
            }
            if self.chain.writable_len() == 0 {
                return Err(fault(self.chain.shape_fault("a command ends with a byte for the answer")));
            }
            // One byte more than the longest, so that a longer one is seen as such.
            let mut bytes = [0u8; LONGEST + 1];
            let len = copy_from(self.queue.ram(), &self.chain.readable, &mut bytes);
            let done = match parse(&bytes[..len]) {
                Some(command) => obey(command)?,
                None => false,
            };
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            copy_to(self.queue.ram(), &self.chain.writable, &[answer as u8]);
            self.queue.push(self.chain.head, 1);
        }
        self.queue.notify();
        Ok(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_a_whole_and_known_command_is_one() {
        assert_eq!(parse(&[4, 0, 2, 0]), Some(Command::SetPairs(2)));
        assert_eq!(parse(&[4, 0, 0, 0x80]), Some(Command::SetPairs(0x8000)));
        // Zero pairs; short; long; RSS; receive mode, MAC, VLAN, announce, offloads: never offered.
        for bytes in
            [&[4, 0, 0, 0][..], &[4, 0, 1], &[4, 0], &[4], &[], &[4, 0, 1, 0, 0], &[4, 1, 1, 0], &[0, 0, 1], &[3, 0]]
        {
            assert_eq!(parse(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn no_bytes_make_zero_pairs(bytes in proptest::collection::vec(0u8..6, 0..6)) {
            if let Some(Command::SetPairs(pairs)) = parse(&bytes) {
                prop_assert!(pairs > 0 && bytes.len() == 4);
            }
        }
    }
}
