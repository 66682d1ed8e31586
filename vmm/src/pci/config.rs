//! PCI configuration space (PCI Local Bus 3.0 §6): 256 bytes, and a mask saying which bits a driver may change.
#![forbid(unsafe_code)]

/// Bytes of conventional configuration space.
pub const SPACE: usize = 256;

/// Offset of the command register.
pub const COMMAND: usize = 0x04;
/// Offset of BAR 0.
pub const BAR0: usize = 0x10;
/// Command bit: respond to memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;

/// Who a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        let mut space = Self { bytes: [0; SPACE], writable: [0; SPACE], next_capability: 0x40, last_pointer: 0x34 };
        // (offset, value, width, writable bits)
        let registers: [(usize, u32, usize, u32); 11] = [
            (0x00, identity.vendor.into(), 2, 0),
            (0x02, identity.device.into(), 2, 0),
            // I/O, memory, bus master, parity response, SERR, interrupt disable.
            (COMMAND, 0, 2, 0x0547),
            // Capabilities list; errors never happen.
            (0x06, 0x0010, 2, 0),
            (0x08, identity.revision.into(), 1, 0),
            (0x09, identity.class, 3, 0),
            // Cache line size, latency timer: kept for the driver, used by nobody.
            (0x0c, 0, 2, 0xffff),
            (0x2c, identity.subsystem_vendor.into(), 2, 0),
            (0x2e, identity.subsystem.into(), 2, 0),
            (0x3c, identity.interrupt_line.into(), 1, 0xff),
            (0x3d, identity.interrupt_pin.into(), 1, 0),
        ];
        for (offset, value, width, writable) in registers {
            space.set(offset, &value.to_le_bytes()[..width]);
            space.writable[offset..offset + width].copy_from_slice(&writable.to_le_bytes()[..width]);
        }
        space
    }

    /// Declares BAR 0 as 32-bit memory of `size` bytes (a power of two of at least 16) at `address`.
    pub fn set_bar0(&mut self, address: u32, size: u32) {
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
        (self.word(COMMAND) & COMMAND_MEMORY != 0).then(|| u64::from(self.dword(BAR0) & !0xf))
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
        assert_eq!(header[0x3c..0x3e], [17, 1]);
    }

    #[test]
    fn bar_is_measured_by_writing_ones_and_needs_decoding_on() {
        let mut space = space();
        space.set_bar0(0xc001_0000, 0x8000);
        assert_eq!(space.bar0(), None);
        space.write(BAR0, &[0xff; 4]);
        assert_eq!(space.dword(BAR0), 0xffff_8000);
        space.write(BAR0, &0xc001_0000u32.to_le_bytes());
        space.write(COMMAND, &[2, 0]);
        assert_eq!(space.bar0(), Some(0xc001_0000));
    }

    #[test]
    fn capabilities_are_linked() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3], &[]);
        let second = space.add_capability(0x11, &[0; 10], &[(3, 0xc0)]);
        assert_eq!((first, second), (0x40, 0x48));
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
        fn read_only_bits_survive_any_writes(data in proptest::collection::vec(any::<u8>(), 0..120)) {
            fuzz_config_space(&data);
        }
    }
}
