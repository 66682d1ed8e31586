//! PCI configuration space (PCI Local Bus 3.0 §6): 256 bytes, and a mask saying which bits a driver may change.
#![forbid(unsafe_code)]

use super::registers::{Access, Block, register};

/// Bytes of conventional configuration space.
pub const SPACE: usize = 256;

/// Command bit: respond to memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Status bit: there is a list of capabilities.
const STATUS_CAPABILITIES: u32 = 1 << 4;
/// First capability: what follows the header.
const FIRST_CAPABILITY: usize = 0x40;

/// Registers of a type-0 header by their names in the specification. Those it does not list read as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Vendor ID.
    VendorId,
    /// Device ID.
    DeviceId,
    /// Command.
    Command,
    /// Status.
    Status,
    /// Revision ID.
    RevisionId,
    /// Class code.
    ClassCode,
    /// Cache line size.
    CacheLineSize,
    /// Master latency timer.
    LatencyTimer,
    /// Base address register 0.
    Bar0,
    /// Subsystem vendor ID.
    SubsystemVendorId,
    /// Subsystem ID.
    SubsystemId,
    /// Capabilities pointer.
    CapabilitiesPointer,
    /// Interrupt line.
    InterruptLine,
    /// Interrupt pin.
    InterruptPin,
}

/// The header (PCI Local Bus 3.0 §6.1).
pub const HEADER: Block<Header> = Block::new(&[
    register(0x00, 2, Header::VendorId, Access::ReadOnly),
    register(0x02, 2, Header::DeviceId, Access::ReadOnly),
    // I/O, memory, bus master, parity response, SERR, interrupt disable.
    register(0x04, 2, Header::Command, Access::Bits(0x0547)),
    // Errors, which a driver would clear, never happen.
    register(0x06, 2, Header::Status, Access::ReadOnly),
    register(0x08, 1, Header::RevisionId, Access::ReadOnly),
    register(0x09, 3, Header::ClassCode, Access::ReadOnly),
    // Kept for the driver, used by nobody.
    register(0x0c, 1, Header::CacheLineSize, Access::ReadWrite),
    register(0x0d, 1, Header::LatencyTimer, Access::ReadWrite),
    // Writable above its size, once it has one: see `set_bar0`.
    register(0x10, 4, Header::Bar0, Access::ReadOnly),
    register(0x2c, 2, Header::SubsystemVendorId, Access::ReadOnly),
    register(0x2e, 2, Header::SubsystemId, Access::ReadOnly),
    register(0x34, 1, Header::CapabilitiesPointer, Access::ReadOnly),
    register(0x3c, 1, Header::InterruptLine, Access::ReadWrite),
    register(0x3d, 1, Header::InterruptPin, Access::ReadOnly),
]);

/// Offset of a header register.
pub const fn offset_of(name: Header) -> usize {
    // In the order of the enum, which the test below holds against the table.
    HEADER.registers()[name as usize].offset as usize
}

/// Whether an access of `len` bytes at `offset` touches a header register.
pub fn touches(name: Header, offset: usize, len: usize) -> bool {
    let row = HEADER.registers()[name as usize];
    let start = usize::from(row.offset);
    offset < start + usize::from(row.width) && start < offset + len
}

/// Who a function says it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface as `0xCCSSPP`.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Interrupt pin, 1 = INTA, 0 = none.
    pub interrupt_pin: u8,
    /// Interrupt line a firmware would have written.
    pub interrupt_line: u8,
}

/// One function's configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; SPACE],
    writable: [u8; SPACE],
    next_capability: usize,
    last_pointer: usize,
}

impl ConfigSpace {
    /// A type-0 header.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SPACE],
            writable: [0; SPACE],
            next_capability: FIRST_CAPABILITY,
            last_pointer: offset_of(Header::CapabilitiesPointer),
        };
        for row in HEADER.registers() {
            let value = match row.name {
                Header::VendorId => identity.vendor.into(),
                Header::DeviceId => identity.device.into(),
                Header::RevisionId => identity.revision.into(),
                Header::ClassCode => identity.class,
                Header::SubsystemVendorId => identity.subsystem_vendor.into(),
                Header::SubsystemId => identity.subsystem.into(),
                Header::InterruptLine => identity.interrupt_line.into(),
                Header::InterruptPin => identity.interrupt_pin.into(),
                // Said once there is a capability.
                Header::Status | Header::CapabilitiesPointer => 0,
                Header::Command | Header::CacheLineSize | Header::LatencyTimer | Header::Bar0 => 0,
            };
            let (at, width) = (usize::from(row.offset), usize::from(row.width));
            space.set(at, &u32::to_le_bytes(value)[..width]);
            space.writable[at..at + width].copy_from_slice(&row.access.writable().to_le_bytes()[..width]);
        }
        space
    }

    /// Declares BAR 0 as 32-bit memory of `size` bytes (a power of two of at least 16) at `address`.
    pub fn set_bar0(&mut self, address: u32, size: u32) {
        const BAR0: usize = offset_of(Header::Bar0);
        self.set(BAR0, &address.to_le_bytes());
        // Address bits below the size read as zero: that is how a driver measures it.
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability; returns its offset. `writable` masks bits from the start of the capability.
    ///
    /// # Panics
    /// When configuration space is full: the set of capabilities is fixed, so that is a mistake in this program.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[(usize, u8)]) -> usize {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        assert!(end <= SPACE, "configuration space is full");
        self.set(offset_of(Header::Status), &STATUS_CAPABILITIES.to_le_bytes()[..2]);
        self.bytes[self.last_pointer] = at as u8;
        self.bytes[at] = id;
        self.bytes[at + 2..end].copy_from_slice(body);
        for (offset, mask) in writable {
            self.writable[at + offset] = *mask;
        }
        self.last_pointer = at + 1;
        self.next_capability = end.next_multiple_of(4);
        at
    }

    /// Makes whole bytes of the capability at `at` writable.
    pub fn allow(&mut self, at: usize, offsets: &[usize]) {
        for offset in offsets {
            self.writable[at + offset] = 0xff;
        }
    }

    /// Sets bytes regardless of masks.
    pub fn set(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    /// A driver's read. Beyond 256 bytes there is nothing: no extended capabilities.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + n).copied().unwrap_or(0);
        }
    }

    /// A driver's write: masked bits change, all others stay.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (n, value) in data.iter().enumerate() {
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(offset + n), self.writable.get(offset + n)) {
                *byte = *byte & !mask | value & mask;
            }
        }
    }

    /// All of it, as a driver reads it.
    pub fn bytes(&self) -> &[u8; SPACE] {
        &self.bytes
    }

    /// 16 bits at `offset`.
    pub fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// 32 bits at `offset`.
    pub fn dword(&self, offset: usize) -> u32 {
        u32::from(self.word(offset)) | u32::from(self.word(offset + 2)) << 16
    }

    /// Where BAR 0 is mapped: `None` while memory decoding is off.
    pub fn bar0(&self) -> Option<u64> {
        let decodes = self.word(offset_of(Header::Command)) & COMMAND_MEMORY != 0;
        decodes.then(|| u64::from(self.dword(offset_of(Header::Bar0)) & !0xf))
    }
}

/// Fuzz entry: arbitrary reads and writes keep read-only bits.
#[doc(hidden)]
pub fn fuzz_config_space(data: &[u8]) {
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_8000,
        subsystem_vendor: 0x1af4,
        subsystem: 0x40,
        interrupt_pin: 1,
        interrupt_line: 16,
    });
    space.set_bar0(0xc000_0000, 0x8000);
    let fixed = space.clone();
    for step in data.chunks(6) {
        let offset = usize::from(step[0]) | usize::from(*step.get(1).unwrap_or(&0)) << 8;
        space.write(offset, step.get(2..).unwrap_or(&[]));
        space.read(offset, &mut [0; 4]);
    }
    for n in 0..SPACE {
        assert_eq!(space.bytes[n] & !space.writable[n], fixed.bytes[n] & !fixed.writable[n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: 0x02_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
            interrupt_pin: 1,
            interrupt_line: 17,
        })
    }

    #[test]
    fn header_has_the_fields_of_the_specification() {
        let space = space();
        let mut header = [0; 64];
        space.read(0, &mut header);
        assert_eq!(header[0..4], [0xf4, 0x1a, 0x41, 0x10]);
        assert_eq!(header[9..12], [0, 0, 2], "class code");
        assert_eq!(header[14], 0, "type 0, single function");
        assert_eq!((header[6], header[0x34]), (0, 0), "no capability, no list");
        assert_eq!(header[0x3c..0x3e], [17, 1]);
    }

    #[test]
    fn names_of_the_header_are_in_the_order_of_its_table() {
        for (n, row) in HEADER.registers().iter().enumerate() {
            assert_eq!(row.name as usize, n, "{:?}", row.name);
            assert_eq!(HEADER.named(row.name), Some(*row));
        }
        assert!(touches(Header::Command, 4, 1) && touches(Header::Command, 2, 3) && touches(Header::Command, 5, 4));
        assert!(!touches(Header::Command, 2, 2) && !touches(Header::Command, 6, 2));
    }

    /// What a driver finds by writing ones and then zeros everywhere is what the table says, bit for bit.
    #[test]
    fn exactly_the_declared_bits_can_be_changed() {
        let mut declared = [0u8; SPACE];
        for row in HEADER.registers() {
            let (at, width) = (usize::from(row.offset), usize::from(row.width));
            declared[at..at + width].copy_from_slice(&row.access.writable().to_le_bytes()[..width]);
        }
        let mut space = space();
        let before = *space.bytes();
        space.write(0, &[0xff; SPACE]);
        let ones = *space.bytes();
        space.write(0, &[0; SPACE]);
        for at in 0..SPACE {
            assert_eq!(ones[at] ^ space.bytes()[at], declared[at], "byte {at:#x}");
            assert_eq!(ones[at] & !declared[at], before[at] & !declared[at], "byte {at:#x}");
        }
    }

    #[test]
    fn bar_is_measured_by_writing_ones_and_needs_decoding_on() {
        let mut space = space();
        space.set_bar0(0xc001_0000, 0x8000);
        assert_eq!(space.bar0(), None);
        space.write(0x10, &[0xff; 4]);
        assert_eq!(space.dword(0x10), 0xffff_8000);
        space.write(0x10, &0xc001_0000u32.to_le_bytes());
        space.write(0x04, &[2, 0]);
        assert_eq!(space.bar0(), Some(0xc001_0000));
    }

    #[test]
    fn capabilities_are_linked() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3], &[]);
        let second = space.add_capability(0x11, &[0; 10], &[(3, 0xc0)]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.word(6), 0x10, "the status says that there is a list");
        let mut byte = [0];
        space.read(0x34, &mut byte);
        assert_eq!(byte, [0x40]);
        space.read(0x41, &mut byte);
        assert_eq!(byte, [0x48]);
        space.write(0x4b, &[0xff]);
        space.read(0x4b, &mut byte);
        assert_eq!(byte, [0xc0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_wide_access_is_its_bytes(offset in 0usize..SPACE, data in any::<[u8; 4]>(), width in 0usize..3) {
            let data = &data[..1 << width];
            let (mut whole, mut single) = (space(), space());
            whole.set_bar0(0xc000_0000, 0x8000);
            single.set_bar0(0xc000_0000, 0x8000);
            whole.write(offset, data);
            data.iter().enumerate().for_each(|(n, byte)| single.write(offset + n, &[*byte]));
            prop_assert_eq!(&whole, &single);
            let mut read = vec![0; data.len()];
            whole.read(offset, &mut read);
            for (n, byte) in read.iter().enumerate() {
                prop_assert_eq!(*byte, whole.bytes().get(offset + n).copied().unwrap_or(0));
            }
        }

        #[test]
        fn read_only_bits_survive_any_writes(data in proptest::collection::vec(any::<u8>(), 0..120)) {
            fuzz_config_space(&data);
        }
    }
}
