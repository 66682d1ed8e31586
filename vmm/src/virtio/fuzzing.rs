//! A hostile driver for fuzzing: arbitrary bytes become rings, descriptors and buffers of a device.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupts;
use super::queue::VirtQueue;
use super::{Activation, ActiveDevice, Device, Progress};
use crate::memory::{Bytes, GuestAddress, GuestRam};

const RAM: usize = 0x4_0000;
const QUEUE_SIZE: u16 = 16;

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
    // The queues' areas overlap the data, so that the bytes are at once descriptors, rings and buffers.
    for at in (0..RAM).step_by(data.len().max(256)) {
        let len = data.len().min(RAM - at);
        let _ = ram.write_slice(&data[..len], GuestAddress(at as u64));
    }
    let features = device.features();
    let count = device.queue_sizes().len();
    let interrupts = Arc::new(Interrupts::new(Vec::new(), count, None));
    let mut queues = Vec::new();
    for index in 0..u16::try_from(count).unwrap_or(0) {
        let (Ok(kick), Ok(mut queue)) = (EventFd::new(libc::EFD_NONBLOCK), Queue::new(QUEUE_SIZE)) else {
            return;
        };
        let base = 0x1000 * (u32::from(index) + 1);
        queue.set_desc_table_address(Some(base), Some(0));
        queue.set_avail_ring_address(Some(base + 0x400), Some(0));
        queue.set_used_ring_address(Some(base + 0x800), Some(0));
        queue.set_event_idx(data.first().is_some_and(|b| b & 1 != 0));
        queue.set_ready(true);
        let Ok(queue) = VirtQueue::new(index, queue, ram.clone(), Arc::new(kick), interrupts.clone()) else {
            return;
        };
        queues.push(queue);
    }
    let Ok(mut active) = device.activate(Activation { ram, features, queues, interrupts }) else {
        return;
    };
    prepare(&mut *active);
    'drive: for _ in 0..4 {
        for source in active.sources() {
            match active.ready(source.token) {
                Ok(Progress::Drained | Progress::Again) => {}
                Err(_) => break 'drive,
            }
        }
    }
    let _ = active.deactivate();
}
