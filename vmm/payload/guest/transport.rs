//! Virtio over PCI, the driver's side (virtio 1.3 §3.1, §4.1).

use crate::cpu;
use crate::pci::Function;
use crate::ring::{MAX_SIZE, Ring};

pub const NET: u16 = 1;
pub const BLOCK: u16 = 2;
pub const CONSOLE: u16 = 3;
pub const RNG: u16 = 4;

const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;

// Registers of the common configuration (§4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
pub const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
pub const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESCRIPTORS: u64 = 0x20;
const QUEUE_AVAILABLE: u64 = 0x28;
const QUEUE_USED: u64 = 0x30;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// Stub of the next queue that wants interrupts; stub 0 is the power button's.
static mut NEXT_STUB: usize = 1;

/// A device with its features settled.
pub struct Device {
    pub common: u64,
    notify: (u64, u32),
    /// Device configuration.
    pub config: u64,
    msix_table: u64,
    event_index: bool,
}

impl Device {
    /// Finds the `nth` device of a type, resets it and settles features: `wanted` where offered, and the event index
    /// unless `plain`.
    ///
    /// # Panics
    /// When the device lacks a register block or refuses its own features.
    pub fn open(kind: u16, nth: usize, wanted: u64, plain: bool) -> Option<Self> {
        let function = Function::find(kind, nth)?;
        let mut device = Self { common: 0, notify: (0, 0), config: 0, msix_table: 0, event_index: false };
        for capability in function.virtio_capabilities() {
            match capability.kind {
                1 => device.common = capability.address,
                2 => device.notify = (capability.address, capability.multiplier),
                4 => device.config = capability.address,
                _ => {}
            }
        }
        assert!(device.common != 0 && device.notify.0 != 0, "device lacks register blocks");
        device.msix_table = function.enable_msix().expect("device lacks MSI-X");
        device.set_status(0);
        device.set_status(ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            cpu::write32(device.common + DEVICE_FEATURE_SELECT, half);
            offered |= u64::from(cpu::read32(device.common + DEVICE_FEATURE)) << (32 * half);
        }
        let events = if plain { 0 } else { F_EVENT_IDX };
        let features = offered & (wanted | events) | F_VERSION_1;
        for half in 0..2 {
            cpu::write32(device.common + DRIVER_FEATURE_SELECT, half);
            cpu::write32(device.common + DRIVER_FEATURE, (features >> (32 * half)) as u32);
        }
        device.event_index = features & F_EVENT_IDX != 0;
        device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert!(cpu::read8(device.common + STATUS) & FEATURES_OK != 0, "device refuses its own features");
        Some(device)
    }

    /// Sets up queue `index`; with `interrupts` also the stub that counts them.
    pub fn queue(&self, index: u16, interrupts: bool) -> (Ring, usize) {
        let common = self.common;
        cpu::write16(common + QUEUE_SELECT, index);
        let size = cpu::read16(common + QUEUE_SIZE).min(MAX_SIZE);
        assert!(size > 0, "device lacks a queue");
        cpu::write16(common + QUEUE_SIZE, size);
        let doorbell = self.notify.0 + u64::from(self.notify.1) * u64::from(cpu::read16(common + QUEUE_NOTIFY_OFF));
        let ring = Ring::new(index, size, doorbell, self.event_index);
        let mut stub = 0;
        if interrupts {
            // SAFETY: one processor, and stubs do not touch it.
            stub = unsafe { NEXT_STUB };
            assert!(stub < cpu::VECTORS, "out of vectors");
            // SAFETY: as above.
            unsafe { NEXT_STUB += 1 };
            // Vector n of the device serves queue n.
            let entry = self.msix_table + 16 * u64::from(index);
            cpu::write32(entry, 0xfee0_0000);
            cpu::write32(entry + 4, 0);
            cpu::write32(entry + 8, (cpu::FIRST_VECTOR + stub) as u32);
            cpu::write32(entry + 12, 0);
            cpu::write16(common + QUEUE_VECTOR, index);
        }
        for (register, value) in
            [(QUEUE_DESCRIPTORS, ring.descriptors), (QUEUE_AVAILABLE, ring.available), (QUEUE_USED, ring.used)]
        {
            cpu::write32(common + register, value as u32);
            cpu::write32(common + register + 4, (value >> 32) as u32);
        }
        cpu::write16(common + QUEUE_ENABLE, 1);
        (ring, stub)
    }

    /// All queues are set up: the device may start.
    pub fn start(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    fn set_status(&self, status: u8) {
        cpu::write8(self.common + STATUS, status);
    }
}
