//! A machine without KVM, for tests and fuzzing.

use super::*;
use crate::irq::{Gsi, MsiMessage};
use crate::memory::GuestAddress;
use crate::virtio::rng::Rng;
use std::sync::Mutex;

#[derive(Debug, Default)]
pub(in crate::pci) struct NoKvm {
    pub(super) connected: Mutex<Vec<u64>>,
    pub(super) activated: Mutex<Vec<(u64, usize)>>,
    pub(super) resets: Mutex<usize>,
}

impl MsiRouter for NoKvm {
    fn allocate(&self) -> Result<Gsi, IrqError> {
        Ok(24)
    }
    fn route(&self, _: Gsi, _: MsiMessage) -> Result<(), IrqError> {
        Ok(())
    }
    fn attach(&self, _: Gsi, _: &EventFd) -> Result<(), IrqError> {
        Ok(())
    }
    fn detach(&self, _: Gsi, _: &EventFd) -> Result<(), IrqError> {
        Ok(())
    }
}

impl Doorbells for NoKvm {
    fn connect(&self, address: u64, _: &EventFd) -> Result<(), IrqError> {
        let mut connected = self.connected.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if connected.contains(&address) {
            // As KVM answers.
            let source = std::io::Error::from_raw_os_error(libc::EEXIST);
            return Err(IrqError::Io { what: "connect a doorbell", source });
        }
        connected.push(address);
        Ok(())
    }
    fn disconnect(&self, address: u64, _: &EventFd) -> Result<(), IrqError> {
        if let Ok(mut connected) = self.connected.lock() {
            connected.retain(|a| *a != address);
        }
        Ok(())
    }
}

impl DeviceLoop for NoKvm {
    fn activate(&self, _: usize, activation: Activation) -> Result<(), End> {
        if let Ok(mut activated) = self.activated.lock() {
            activated.push((activation.features, activation.queues.len()));
        }
        Ok(())
    }
    fn reset(&self, _: usize) -> Result<(), End> {
        if let Ok(mut resets) = self.resets.lock() {
            *resets += 1;
        }
        Ok(())
    }
}

pub(in crate::pci) fn function() -> Option<(VirtioFunction, Arc<NoKvm>)> {
    function_of(&Rng::new("rng".into()))
}

pub(super) fn function_of(device: &dyn Device) -> Option<(VirtioFunction, Arc<NoKvm>)> {
    let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).ok()?);
    let host = Arc::new(NoKvm::default());
    let machine = Machine { ram, router: host.clone(), doorbells: host.clone(), devices: host.clone() };
    let function = VirtioFunction::new(0, device, 0xc000_0000, 16, None, machine).ok()?;
    Some((function, host))
}

pub(super) fn drive(data: &[u8]) {
    let Some((mut function, _)) = function() else {
        return;
    };
    for step in data.chunks(12) {
        let byte = |n: usize| step.get(n).copied().unwrap_or(0);
        let offset = u64::from(byte(1)) | u64::from(byte(2)) << 8;
        let len = 1usize << (byte(3) % 4);
        let mut value = [0u8; 8];
        for (n, slot) in value.iter_mut().enumerate() {
            *slot = byte(4 + n);
        }
        let done = match byte(0) % 4 {
            0 => function.config_read(usize::from(byte(1)), &mut value[..len]),
            1 => function.config_write(usize::from(byte(1)), &value[..len]),
            2 => function.bar_read(offset, &mut value[..len]),
            _ => function.bar_write(offset, &value[..len]),
        };
        if done.is_err() {
            return;
        }
    }
}
