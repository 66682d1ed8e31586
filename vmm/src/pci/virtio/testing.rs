//! A machine without KVM, for tests and fuzzing.

use super::*;
use crate::irq::{Gsi, MsiMessage};
use crate::memory::GuestAddress;
use crate::virtio::balloon::Balloon;
use crate::virtio::console::{Console, Port};
use crate::virtio::net::{Lane, Net, NetOptions};
use crate::virtio::rng::Rng;
use crate::virtio::{block, vsock};
use holdfast_links::{UnixLink, unix};
use holdfast_model::contract::vm::{BalloonConfig, MacAddress};
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

/// How many [`any_device`] makes.
pub(super) const DEVICES: u8 = 6;

/// One of each kind, of one to eight queues.
pub(super) fn any_device(which: u8) -> Option<Box<dyn Device>> {
    let terminal = crate::terminal::Terminal::new("console", None, None);
    let port = |name: Option<&str>| Port::new(name.map(str::to_string), terminal.clone()).ok();
    Some(match which % DEVICES {
        0 => Box::new(Rng::new("rng".into())),
        1 => Box::new(Balloon::new("balloon".into(), &BalloonConfig::default(), 64)),
        2 => Box::new(Console::new("console".into(), vec![port(None)?, port(Some("a"))?, port(Some("b"))?])),
        3 => {
            let lane = |_| Some(Lane::User(Box::new(UnixLink::adopt(unix::pair().ok()?.0).ok()?)));
            let lanes = (0..2).map(lane).collect::<Option<_>>()?;
            Box::new(Net::new(lanes, NetOptions::new("net0", MacAddress([2, 0, 0, 0, 0, 1]))))
        }
        4 => Box::new(block::small_disk()?),
        _ => Box::new(vsock::testing::vsock(3)?.0),
    })
}

/// Which function, then accesses of 12 bytes: way, offset (2), width, value (8).
pub(super) fn drive(data: &[u8]) {
    let Some((which, steps)) = data.split_first() else {
        return;
    };
    let Some((mut function, _)) = any_device(*which).and_then(|device| function_of(&*device)) else {
        return;
    };
    for step in steps.chunks(12) {
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
