//! Where what lies in BAR 0, and the capabilities that tell the driver (virtio 1.3 §4.1.4).
//!
//! ```text
//!  BAR 0:  0x0000 common configuration   0x1000 ISR   0x2000 device configuration
//!          0x3000 notify (4 bytes each queue)   0x4000 MSI-X table   0x5000 MSI-X pending bits
//! ```
#![forbid(unsafe_code)]

use super::super::config::ConfigSpace;
use super::super::registers::{Access, Block, register};
use super::common::COMMON;

/// Bytes of BAR 0.
pub const BAR_SIZE: u32 = 0x8000;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const TABLE: u64 = 0x4000;
pub(super) const PENDING: u64 = 0x5000;
/// Bytes between the notify addresses of two queues.
pub(super) const NOTIFY_STRIDE: u32 = 4;

/// Capability IDs (PCI Local Bus 3.0, appendix H).
const VENDOR_SPECIFIC: u8 = 0x09;
const MSIX: u8 = 0x11;

/// `cfg_type` of a virtio capability.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Kind {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    Window = 5,
}

/// Fields of a virtio capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Vendor,
    Next,
    CapabilityLength,
    Kind,
    Bar,
    Id,
    Offset,
    Length,
    /// `notify_off_multiplier`, or the data of the window.
    Data,
}

/// A virtio capability. A driver writes to the window's only (§4.1.4.9): all of it that says what is accessed, and the data.
const CAPABILITY: Block<Field> = Block::new(&[
    register(0, 1, Field::Vendor, Access::ReadOnly),
    register(1, 1, Field::Next, Access::ReadOnly),
    register(2, 1, Field::CapabilityLength, Access::ReadOnly),
    register(3, 1, Field::Kind, Access::ReadOnly),
    register(4, 1, Field::Bar, Access::ReadWrite),
    register(5, 1, Field::Id, Access::ReadOnly),
    register(8, 4, Field::Offset, Access::ReadWrite),
    register(12, 4, Field::Length, Access::ReadWrite),
    register(16, 4, Field::Data, Access::ReadWrite),
]);

/// Fields of the MSI-X capability (PCI Local Bus 3.0 §6.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MsixField {
    Control,
    Table,
    PendingBits,
}

const MSIX_CAPABILITY: Block<MsixField> = Block::new(&[
    // Enable and function mask.
    register(2, 2, MsixField::Control, Access::Bits(0xc000)),
    register(4, 4, MsixField::Table, Access::ReadOnly),
    register(8, 4, MsixField::PendingBits, Access::ReadOnly),
]);

/// Offsets in configuration space of what a driver writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    window: usize,
    pub(super) msix_control: usize,
}

impl Places {
    /// Offset of a field of the window into the BAR.
    pub(super) fn window(&self, field: Field) -> usize {
        self.window + offset(&CAPABILITY, field)
    }
}

/// Appends all capabilities, for a device with so many bytes of configuration, queues and interrupt vectors.
pub(super) fn declare(space: &mut ConfigSpace, config_len: usize, queues: usize, vectors: u16) -> Places {
    add(space, Kind::Common, 0, COMMON.len().into(), None);
    add(space, Kind::Isr, ISR as u32, 1, None);
    add(space, Kind::Device, DEVICE as u32, config_len.max(4) as u32, None);
    add(space, Kind::Notify, NOTIFY as u32, NOTIFY_STRIDE * queues as u32, Some(NOTIFY_STRIDE));
    let window = add(space, Kind::Window, 0, 0, Some(0));
    for row in CAPABILITY.registers().iter().filter(|row| row.access == Access::ReadWrite) {
        let bytes: Vec<usize> = (row.offset..row.offset + u16::from(row.width)).map(usize::from).collect();
        space.allow(window, &bytes);
    }
    let body = MSIX_CAPABILITY.registers().iter().flat_map(|row| {
        let value = match row.name {
            MsixField::Control => u32::from(vectors - 1),
            // Both in BAR 0, which the low bits name.
            MsixField::Table => TABLE as u32,
            MsixField::PendingBits => PENDING as u32,
        };
        value.to_le_bytes().into_iter().take(row.width.into())
    });
    let body: Vec<u8> = body.collect();
    let control = offset(&MSIX_CAPABILITY, MsixField::Control);
    let mask = (MSIX_CAPABILITY.registers()[0].access.writable() >> 8) as u8;
    let msix = space.add_capability(MSIX, &body, &[(control + 1, mask)]);
    Places { window, msix_control: msix + control }
}

/// Appends one virtio capability; its offset.
fn add(space: &mut ConfigSpace, kind: Kind, region: u32, length: u32, data: Option<u32>) -> usize {
    let end = if data.is_some() { CAPABILITY.len().into() } else { offset(&CAPABILITY, Field::Data) };
    let mut body = vec![0u8; end];
    for row in CAPABILITY.registers().iter().filter(|row| usize::from(row.offset) < end) {
        let value = match row.name {
            Field::CapabilityLength => end as u32,
            Field::Kind => kind as u32,
            Field::Offset => region,
            Field::Length => length,
            Field::Data => data.unwrap_or(0),
            // The first two are configuration space's own.
            Field::Vendor | Field::Next | Field::Bar | Field::Id => 0,
        };
        let width = usize::from(row.width);
        body[row.offset.into()..][..width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
    space.add_capability(VENDOR_SPECIFIC, &body[2..], &[])
}

/// Offset of a field; every field is in its table.
fn offset<N: Copy + PartialEq>(block: &Block<N>, name: N) -> usize {
    block.named(name).map_or(0, |row| row.offset.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::Identity;

    /// What a driver finds by walking the list, byte for byte: the wire format of virtio 1.3 §4.1.4 and MSI-X.
    #[test]
    fn capabilities_have_the_bytes_of_the_specification() {
        let mut space = ConfigSpace::new(Identity::default());
        let places = declare(&mut space, 60, 3, 4);
        let expected: [(usize, &[u8]); 6] = [
            (0x40, &[9, 0x50, 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x38, 0, 0, 0]),
            (0x50, &[9, 0x60, 16, 3, 0, 0, 0, 0, 0, 0x10, 0, 0, 1, 0, 0, 0]),
            (0x60, &[9, 0x70, 16, 4, 0, 0, 0, 0, 0, 0x20, 0, 0, 60, 0, 0, 0]),
            (0x70, &[9, 0x84, 20, 2, 0, 0, 0, 0, 0, 0x30, 0, 0, 12, 0, 0, 0, 4, 0, 0, 0]),
            (0x84, &[9, 0x98, 20, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (0x98, &[0x11, 0, 3, 0, 0, 0x40, 0, 0, 0, 0x50, 0, 0]),
        ];
        for (at, bytes) in expected {
            assert_eq!(&space.bytes()[at..at + bytes.len()], bytes, "{at:#x}");
        }
        assert_eq!((places.window(Field::Data), places.msix_control), (0x94, 0x9a));
    }

    #[test]
    fn only_the_window_and_the_msix_switches_can_be_written() {
        let mut space = ConfigSpace::new(Identity::default());
        declare(&mut space, 8, 1, 2);
        let before = *space.bytes();
        space.write(0x40, &[0xff; 0xc0]);
        let changed: Vec<usize> = (0x40..0x100).filter(|at| space.bytes()[*at] != before[*at]).collect();
        let window = 0x84;
        let expected: Vec<usize> = [window + 4].into_iter().chain(window + 8..window + 20).chain([0x9b]).collect();
        assert_eq!(changed, expected);
        assert_eq!(space.bytes()[0x9b], 0xc0);
    }
}
