//! A hostile driver for fuzzing: arbitrary bytes become rings, descriptors and buffers of a device.
//!
//! Memory is made of the input's pages of 4 KiB, over and over, so that the first page of an input lies under the areas of
//! the queues, whatever is added to or cut from its end:
//!
//! ```text
//!  page of a queue:  0x000 descriptors (16)   0x400 available ring   0x800 used ring
//!  the input's first page also:  0xff0 steps of the available indices between rounds (4)   0xff8 features not taken (8)
//! ```
//!
//! Where an input has zeros there, the driver takes every feature and adds nothing between rounds.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupts;
use super::queue::VirtQueue;
use super::{Activation, ActiveDevice, Device, F_EVENT_IDX, F_INDIRECT, F_VERSION_1, Progress};
use crate::memory::{Bytes, GuestAddress, GuestRam};

const RAM: usize = 0x4_0000;
const PAGE: usize = 0x1000;
const QUEUE_SIZE: u16 = 16;
const AVAILABLE: u32 = 0x400;
const USED: u32 = 0x800;
/// Calls of each source.
const ROUNDS: usize = 4;
/// In the input's first page.
const STEPS: usize = 0xff0;
const FEATURES: usize = 0xff8;

/// Bytes of one write to the configuration space, and how many such writes there are at the most.
const WRITE: usize = 9;
const WRITES: usize = 64;

/// Writes to a configuration space, made of the beginning of `data`: an offset (4 bytes, big-endian), then what is written.
pub(super) fn config_writes(data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    data.chunks(WRITE).take(WRITES).map(|step| {
        let (at, value) = step.split_at(step.len() / 2);
        (at.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)), value)
    })
}

/// Activates `device` on memory filled with `data` and lets it work. Faults are fine, panics are not.
pub(super) fn drive(device: Box<dyn Device>, data: &[u8]) {
    drive_with(device, data, |_| {});
}

/// The same, after `prepare` has had its way with the activated device.
pub(super) fn drive_with(device: Box<dyn Device>, data: &[u8], prepare: impl FnOnce(&mut dyn ActiveDevice)) {
    let Ok(ram) = GuestRam::from_ranges(&[(GuestAddress(0), RAM)]) else {
        return;
    };
    let ram = Arc::new(ram);
    for (at, page) in (0..RAM).step_by(PAGE).zip(data.chunks(PAGE).cycle()) {
        let _ = ram.write_slice(page, GuestAddress(at as u64));
    }
    let byte = |at: usize| data.get(at).copied().unwrap_or(0);
    let left_out = u64::from_le_bytes(std::array::from_fn(|n| byte(FEATURES + n)));
    let features = device.features() & (!left_out | F_VERSION_1);
    let count = device.queue_sizes().len();
    let interrupts = Arc::new(Interrupts::new(Vec::new(), count, None));
    let (mut queues, mut bases) = (Vec::new(), Vec::new());
    for index in 0..u16::try_from(count).unwrap_or(0) {
        let (Ok(kick), Ok(mut queue)) = (EventFd::new(libc::EFD_NONBLOCK), Queue::new(QUEUE_SIZE)) else {
            return;
        };
        let base = PAGE as u32 * (u32::from(index) + 1);
        queue.set_desc_table_address(Some(base), Some(0));
        queue.set_avail_ring_address(Some(base + AVAILABLE), Some(0));
        queue.set_used_ring_address(Some(base + USED), Some(0));
        queue.set_event_idx(features & F_EVENT_IDX != 0);
        queue.set_ready(true);
        let Ok(queue) = VirtQueue::new(index, queue, ram.clone(), Arc::new(kick), interrupts.clone()) else {
            return;
        };
        queues.push(if features & F_INDIRECT != 0 { queue } else { queue.without_indirect() });
        bases.push(base);
    }
    let Ok(mut active) = device.activate(Activation { ram: ram.clone(), features, queues, interrupts }) else {
        return;
    };
    prepare(&mut *active);
    'drive: for round in 0..ROUNDS {
        for source in active.sources() {
            match active.ready(source.token) {
                Ok(Progress::Drained | Progress::Again) => {}
                Err(_) => break 'drive,
            }
        }
        // What the driver does meanwhile: forwards, far forwards, or backwards.
        let step = i16::from(byte(STEPS + round).cast_signed());
        for base in bases.iter().filter(|_| step != 0) {
            let index = GuestAddress(u64::from(base + AVAILABLE + 2));
            let now = ram.read_obj::<u16>(index).unwrap_or(0).wrapping_add_signed(step);
            let _ = ram.write_obj(now, index);
        }
    }
    let _ = active.deactivate();
}
