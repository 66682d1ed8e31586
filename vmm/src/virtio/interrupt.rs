//! How a device interrupts its driver: MSI-X through per-vector eventfds, or the level-triggered INTx line.
//!
//! A masked MSI-X vector keeps its eventfd; only KVM stops listening to it. So a pending interrupt is simply an eventfd
//! that was written and not read, and KVM delivers it when the vector is unmasked.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// virtio's "no vector".
pub const NO_VECTOR: u16 = 0xffff;
/// ISR bit: a queue has used buffers.
pub const ISR_QUEUE: u8 = 1;
/// ISR bit: device configuration changed.
pub const ISR_CONFIG: u8 = 2;

/// A level-triggered line that several devices may share.
pub trait IrqLine: Send + Sync + std::fmt::Debug {
    /// Asserts or releases this device's share of the line.
    fn set(&self, asserted: bool);
}

/// One device's interrupts. Registers live with the vCPU threads, triggers with the device thread, hence atomics.
#[derive(Debug)]
pub struct Interrupts {
    vectors: Vec<Arc<EventFd>>,
    msix_enabled: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    isr: AtomicU8,
    line: Option<Arc<dyn IrqLine>>,
}

impl Interrupts {
    /// For a device with these MSI-X `vectors`, `queues` queues and perhaps an INTx line.
    pub fn new(vectors: Vec<Arc<EventFd>>, queues: usize, line: Option<Arc<dyn IrqLine>>) -> Self {
        Self {
            vectors,
            msix_enabled: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            line,
        }
    }

    /// Tells the driver that queue `index` has used buffers.
    pub fn queue(&self, index: u16) {
        let vector = self.queue_vectors.get(usize::from(index)).map_or(NO_VECTOR, |v| v.load(Ordering::Acquire));
        self.raise(vector, ISR_QUEUE);
    }

    /// Tells the driver that the configuration changed.
    pub fn config(&self) {
        self.raise(self.config_vector.load(Ordering::Acquire), ISR_CONFIG);
    }

    /// The eventfd that a kernel back end may signal for queue `index` itself; `None` when the interrupt is INTx.
    pub fn queue_eventfd(&self, index: u16) -> Option<RawFd> {
        if !self.msix_enabled.load(Ordering::Acquire) {
            return None;
        }
        let vector = self.queue_vectors.get(usize::from(index))?.load(Ordering::Acquire);
        self.vectors.get(usize::from(vector)).map(|fd| fd.as_raw_fd())
    }

    /// Follows the MSI-X enable bit.
    pub fn set_msix_enabled(&self, enabled: bool) {
        self.msix_enabled.store(enabled, Ordering::Release);
    }

    /// Sets the configuration vector; an unknown one becomes [`NO_VECTOR`] (virtio 1.3 §4.1.5.1.2.1).
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.known(vector), Ordering::Release);
    }

    /// The configuration vector.
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Sets a queue's vector; an unknown one becomes [`NO_VECTOR`].
    pub fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(index)) {
            slot.store(self.known(vector), Ordering::Release);
        }
    }

    /// A queue's vector.
    pub fn queue_vector(&self, index: u16) -> u16 {
        self.queue_vectors.get(usize::from(index)).map_or(NO_VECTOR, |v| v.load(Ordering::Acquire))
    }

    /// Reads and clears the ISR byte, and with it the INTx line (virtio 1.3 §4.1.4.5).
    pub fn take_isr(&self) -> u8 {
        if let Some(line) = &self.line {
            line.set(false);
        }
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// Device reset: no vectors, nothing pending.
    pub fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.take_isr();
    }

    fn known(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() { vector } else { NO_VECTOR }
    }

    fn raise(&self, vector: u16, isr: u8) {
        if self.msix_enabled.load(Ordering::Acquire) {
            if let Some(fd) = self.vectors.get(usize::from(vector)) {
                // Full (EAGAIN) means 2^64-2 unseen interrupts: one more changes nothing.
                let _ = fd.write(1);
            }
            return;
        }
        self.isr.fetch_or(isr, Ordering::AcqRel);
        if let Some(line) = &self.line {
            line.set(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interrupts(vectors: usize) -> (Interrupts, Vec<Arc<EventFd>>) {
        let fds: Vec<_> = (0..vectors).map(|_| Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())).collect();
        (Interrupts::new(fds.clone(), 1, None), fds)
    }

    #[test]
    fn msix_interrupt_writes_the_vectors_eventfd() {
        let (irq, fds) = interrupts(2);
        irq.set_queue_vector(0, 1);
        irq.set_msix_enabled(true);
        irq.queue(0);
        assert_eq!(fds[1].read().unwrap(), 1);
        assert!(fds[0].read().is_err());
        assert_eq!(irq.take_isr(), 0, "MSI-X leaves the ISR byte alone");
    }

    #[test]
    fn without_msix_the_isr_byte_is_set_and_cleared_by_reading() {
        let (irq, _) = interrupts(1);
        irq.queue(0);
        irq.config();
        assert_eq!(irq.take_isr(), ISR_QUEUE | ISR_CONFIG);
        assert_eq!(irq.take_isr(), 0);
    }

    #[test]
    fn unknown_vector_reads_back_as_no_vector() {
        let (irq, _) = interrupts(2);
        irq.set_queue_vector(0, 2);
        irq.set_config_vector(7);
        assert_eq!((irq.queue_vector(0), irq.config_vector()), (NO_VECTOR, NO_VECTOR));
    }
}
