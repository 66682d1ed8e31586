//! PCI: finding virtio functions on bus 0 through ECAM (PCI Express 5.0 §7.2.2), capabilities, MSI-X.

use crate::cpu;

const ECAM: u64 = 0xe000_0000;
const SLOTS: u64 = 32;
const VENDOR_VIRTIO: u16 = 0x1af4;
/// Modern device id of virtio type 0 (virtio 1.3 §4.1.2.1).
const DEVICE_VIRTIO: u16 = 0x1040;
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;

/// One function's configuration space.
#[derive(Clone, Copy)]
pub struct Function {
    config: u64,
}

/// A capability of virtio (virtio 1.3 §4.1.4): where one register block lies.
pub struct VirtioCapability {
    pub kind: u8,
    pub address: u64,
    /// `notify_off_multiplier`, of the notify block only.
    pub multiplier: u32,
}

impl Function {
    /// The `nth` virtio function of a device type, with memory and bus mastering on.
    pub fn find(kind: u16, nth: usize) -> Option<Self> {
        let function = (0..SLOTS)
            .map(|slot| Function { config: ECAM + (slot << 15) })
            .filter(|f| cpu::read32(f.config) == u32::from(DEVICE_VIRTIO + kind) << 16 | u32::from(VENDOR_VIRTIO))
            .nth(nth)?;
        cpu::write16(function.config + 4, 0b110);
        Some(function)
    }

    fn bar(&self, number: u8) -> u64 {
        u64::from(cpu::read32(self.config + 0x10 + 4 * u64::from(number)) & !0xf)
    }

    /// Offsets and ids of all capabilities.
    fn capabilities(&self) -> impl Iterator<Item = (u64, u8)> {
        let config = self.config;
        let first = u64::from(cpu::read8(config + 0x34));
        core::iter::successors((first != 0).then_some(first), move |at| {
            let next = u64::from(cpu::read8(config + at + 1));
            (next != 0).then_some(next)
        })
        .map(move |at| (config + at, cpu::read8(config + at)))
    }

    /// The register blocks.
    pub fn virtio_capabilities(&self) -> impl Iterator<Item = VirtioCapability> {
        let this = *self;
        self.capabilities().filter(|(_, id)| *id == CAPABILITY_VENDOR).map(move |(at, _)| VirtioCapability {
            kind: cpu::read8(at + 3),
            address: this.bar(cpu::read8(at + 4)) + u64::from(cpu::read32(at + 8)),
            multiplier: if cpu::read8(at + 2) >= 20 { cpu::read32(at + 16) } else { 0 },
        })
    }

    /// Turns MSI-X on; the address of the vector table, all of it masked.
    pub fn enable_msix(&self) -> Option<u64> {
        let (at, _) = self.capabilities().find(|(_, id)| *id == CAPABILITY_MSIX)?;
        let table = cpu::read32(at + 4);
        cpu::write16(at + 2, cpu::read16(at + 2) | 1 << 15);
        Some(self.bar((table & 7) as u8) + u64::from(table & !7))
    }
}
