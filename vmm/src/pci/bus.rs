//! PCI bus 0: configuration through ports 0xCF8/0xCFC and ECAM, memory through BARs.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::config::{ConfigSpace, Identity};
use crate::bus::BusDevice;
use crate::exit::End;
use crate::memory::PCI_WINDOW;

/// Device numbers of a bus.
pub const SLOTS: usize = 32;
/// "No BAR": above every address of the window.
const UNMAPPED: u64 = u64::MAX;

/// One PCI function. Called with its lock held, on vCPU threads.
pub trait Function: Send {
    /// Configuration read; `offset` + length is at most 256.
    ///
    /// # Errors
    /// [`End`] when the VM cannot go on.
    fn config_read(&mut self, offset: usize, data: &mut [u8]) -> Result<(), End>;
    /// Configuration write.
    ///
    /// # Errors
    /// [`End`] when the VM cannot go on.
    fn config_write(&mut self, offset: usize, data: &[u8]) -> Result<(), End>;
    /// Address and size of BAR 0 while it is mapped.
    fn bar(&self) -> Option<(u64, u64)>;
    /// Memory read at `offset` of BAR 0.
    ///
    /// # Errors
    /// [`End`] when the VM cannot go on.
    fn bar_read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), End>;
    /// Memory write at `offset` of BAR 0.
    ///
    /// # Errors
    /// [`End`] when the VM cannot go on.
    fn bar_write(&mut self, offset: u64, data: &[u8]) -> Result<(), End>;
}

struct Slot {
    /// Copy of [`Function::bar`], so that finding the right function takes no lock.
    bar: AtomicU64,
    size: AtomicU64,
    function: Mutex<Box<dyn Function>>,
}

/// The bus. Functions are fixed before the VM starts.
#[derive(Default)]
pub struct PciBus {
    slots: Vec<Slot>,
    config_address: AtomicU32,
}

impl PciBus {
    /// A bus with only its host bridge, device 0.
    pub fn new() -> Self {
        let mut bus = Self::default();
        bus.add(Box::new(HostBridge::new()));
        bus
    }

    /// Plugs a function into the next device number, which is returned.
    ///
    /// # Panics
    /// When the bus is full; the configuration was checked before.
    pub fn add(&mut self, function: Box<dyn Function>) -> usize {
        assert!(self.slots.len() < SLOTS, "PCI bus is full");
        self.slots.push(Slot {
            bar: AtomicU64::new(UNMAPPED),
            size: AtomicU64::new(0),
            function: Mutex::new(function),
        });
        self.slots.len() - 1
    }

    /// Configuration access. `address` is bus, device, function and register as in ECAM (12 bits of register).
    fn config(&self, address: u64, access: Access<'_>) -> Result<(), End> {
        let offset = (address & 0xfff) as usize;
        let function = (address >> 12) & 7;
        let device = (address >> 15) & 0x1f;
        let bus = address >> 20;
        let slot = self.slots.get(device as usize).filter(|_| bus == 0 && function == 0);
        match (slot, access) {
            (None, Access::Read(data)) => data.fill(0xff),
            (None, Access::Write(_)) => {}
            // Extended configuration space is empty.
            (Some(_), Access::Read(data)) if offset + data.len() > 256 => data.fill(0),
            (Some(_), Access::Write(data)) if offset + data.len() > 256 => {}
            (Some(slot), Access::Read(data)) => lock(slot).config_read(offset, data)?,
            (Some(slot), Access::Write(data)) => {
                let mut function = lock(slot);
                function.config_write(offset, data)?;
                let (bar, size) = function.bar().unwrap_or((UNMAPPED, 0));
                slot.size.store(size, Ordering::Release);
                slot.bar.store(bar, Ordering::Release);
            }
        }
        Ok(())
    }

    fn memory(&self, address: u64, access: Access<'_>) -> Result<(), End> {
        let hit = self.slots.iter().find_map(|slot| {
            let offset = address.checked_sub(slot.bar.load(Ordering::Acquire))?;
            (offset < slot.size.load(Ordering::Acquire)).then_some((slot, offset))
        });
        match (hit, access) {
            (Some((slot, offset)), Access::Read(data)) => lock(slot).bar_read(offset, data),
            (Some((slot, offset)), Access::Write(data)) => lock(slot).bar_write(offset, data),
            (None, Access::Read(data)) => {
                data.fill(0xff);
                Ok(())
            }
            (None, Access::Write(_)) => Ok(()),
        }
    }
}

enum Access<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

fn lock(slot: &Slot) -> std::sync::MutexGuard<'_, Box<dyn Function>> {
    slot.function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ports 0xCF8..=0xCFF (configuration mechanism 1).
pub struct ConfigPorts(pub Arc<PciBus>);

impl ConfigPorts {
    fn access(&self, offset: u64, access: Access<'_>) -> Result<(), End> {
        match (offset, access) {
            (0, Access::Read(data)) if data.len() == 4 => {
                data.copy_from_slice(&self.0.config_address.load(Ordering::Relaxed).to_le_bytes());
                Ok(())
            }
            (0, Access::Write(&[a, b, c, d])) => {
                self.0.config_address.store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed);
                Ok(())
            }
            (4..8, access) => {
                let address = self.0.config_address.load(Ordering::Relaxed);
                if address & 1 << 31 == 0 {
                    if let Access::Read(data) = access {
                        data.fill(0xff);
                    }
                    return Ok(());
                }
                let register = u64::from(address & 0xfc) + (offset - 4);
                self.0.config(u64::from(address >> 8 & 0xffff) << 12 | register, access)
            }
            (_, Access::Read(data)) => {
                data.fill(0xff);
                Ok(())
            }
            (_, Access::Write(_)) => Ok(()),
        }
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End> {
        self.access(offset, Access::Read(data))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), End> {
        self.access(offset, Access::Write(data))
    }
}

/// Enhanced configuration access.
pub struct Ecam(pub Arc<PciBus>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End> {
        self.0.config(offset, Access::Read(data))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), End> {
        self.0.config(offset, Access::Write(data))
    }
}

/// The memory window that BARs live in.
pub struct Window(pub Arc<PciBus>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End> {
        self.0.memory(PCI_WINDOW.0 + offset, Access::Read(data))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), End> {
        self.0.memory(PCI_WINDOW.0 + offset, Access::Write(data))
    }
}

/// Device 0: says that there is a bus.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        // Red Hat's generic PCIe host bridge: needs no driver.
        Self(ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0,
            subsystem: 0,
            interrupt_pin: 0,
            interrupt_line: 0,
        }))
    }
}

impl Function for HostBridge {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) -> Result<(), End> {
        self.0.read(offset, data);
        Ok(())
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) -> Result<(), End> {
        self.0.write(offset, data);
        Ok(())
    }

    fn bar(&self) -> Option<(u64, u64)> {
        None
    }

    fn bar_read(&mut self, _: u64, data: &mut [u8]) -> Result<(), End> {
        data.fill(0xff);
        Ok(())
    }

    fn bar_write(&mut self, _: u64, _: &[u8]) -> Result<(), End> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bridge_is_found_by_both_mechanisms() {
        let bus = Arc::new(PciBus::new());
        let (ports, ecam) = (ConfigPorts(bus.clone()), Ecam(bus));
        let mut id = [0; 4];
        ecam.read(0, &mut id).unwrap();
        assert_eq!(id, [0x36, 0x1b, 0x08, 0x00]);
        ports.write(0, &0x8000_0008u32.to_le_bytes()).unwrap();
        let mut class = [0; 2];
        ports.read(6, &mut class).unwrap();
        assert_eq!(class, [0x00, 0x06]);
    }

    #[test]
    fn absent_devices_functions_and_buses_read_as_ones() {
        let bus = Arc::new(PciBus::new());
        let (ports, ecam) = (ConfigPorts(bus.clone()), Ecam(bus));
        for address in [1u64 << 15, 1 << 12, 0xf_f000] {
            let mut id = [0; 4];
            ecam.read(address, &mut id).unwrap();
            assert_eq!(id, [0xff; 4], "{address:#x}");
        }
        ports.write(0, &0x8001_0000u32.to_le_bytes()).unwrap();
        let mut id = [0; 4];
        ports.read(4, &mut id).unwrap();
        assert_eq!(id, [0xff; 4]);
        ports.write(0, &0x0000_0000u32.to_le_bytes()).unwrap();
        ports.read(4, &mut id).unwrap();
        assert_eq!(id, [0xff; 4], "enable bit off");
    }
}
