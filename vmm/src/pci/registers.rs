//! Registers declared once: a block is a table of offset, width, name and access, and every access is looked up in it.
//!
//! What a register *does* is a `match` over names elsewhere; where it lies, how wide it is and whether a driver may write
//! it is written down in one place.
#![forbid(unsafe_code)]

/// What a driver may do with a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Writes are ignored.
    ReadOnly,
    /// Writes change these bits.
    Bits(u32),
    /// Writes go to the device.
    ReadWrite,
}

impl Access {
    /// Bits that a write changes.
    pub const fn writable(self) -> u32 {
        match self {
            Access::ReadOnly => 0,
            Access::Bits(mask) => mask,
            Access::ReadWrite => u32::MAX,
        }
    }
}

/// One register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register<N> {
    /// Bytes from the start of the block.
    pub offset: u16,
    /// Bytes: 1 to 4.
    pub width: u8,
    /// Name in the specification.
    pub name: N,
    /// What a driver may do with it.
    pub access: Access,
}

/// A row of a table.
pub const fn register<N>(offset: u16, width: u8, name: N, access: Access) -> Register<N> {
    Register { offset, width, name, access }
}

/// A block of registers, in ascending order of offsets.
#[derive(Debug, Clone, Copy)]
pub struct Block<N: 'static>(&'static [Register<N>]);

impl<N> Block<N> {
    /// The block of this table.
    ///
    /// # Panics
    /// At compile time, when registers overlap, are out of order, or have an impossible width.
    pub const fn new(table: &'static [Register<N>]) -> Self {
        let (mut n, mut free) = (0, 0);
        while n < table.len() {
            let row = &table[n];
            assert!(row.width >= 1 && row.width <= 4, "registers are 1 to 4 bytes wide");
            assert!(row.offset >= free, "registers are in order and do not overlap");
            free = row.offset + row.width as u16;
            n += 1;
        }
        Self(table)
    }

    /// Its registers.
    pub const fn registers(&self) -> &'static [Register<N>] {
        self.0
    }

    /// Bytes from the start of the block to the end of its last register.
    pub const fn len(&self) -> u16 {
        match self.0 {
            [] => 0,
            [.., last] => last.offset + last.width as u16,
        }
    }

    /// Whether the block has no register.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Copy + PartialEq> Block<N> {
    /// The register that an access of `width` bytes at `offset` means: exactly one whole register, or none.
    pub fn at(&self, offset: u64, width: usize) -> Option<Register<N>> {
        let found = self.0.iter().find(|row| u64::from(row.offset) == offset);
        found.filter(|row| usize::from(row.width) == width).copied()
    }

    /// The register called `name`.
    pub fn named(&self, name: N) -> Option<Register<N>> {
        self.0.iter().find(|row| row.name == name).copied()
    }
}

/// The value of little-endian `bytes`, of which the first four count.
pub fn value(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: Block<char> = Block::new(&[
        register(0, 2, 'a', Access::ReadOnly),
        register(2, 1, 'b', Access::Bits(3)),
        register(4, 4, 'c', Access::ReadWrite),
    ]);

    #[test]
    fn only_whole_registers_are_found() {
        let name = |offset, width| BLOCK.at(offset, width).map(|row| row.name);
        assert_eq!((name(0, 2), name(2, 1), name(4, 4)), (Some('a'), Some('b'), Some('c')));
        for (offset, width) in [(0, 1), (0, 4), (1, 1), (3, 1), (6, 2), (8, 4), (u64::MAX, 1)] {
            assert_eq!(name(offset, width), None, "{offset} {width}");
        }
        assert_eq!((BLOCK.len(), BLOCK.named('b').unwrap().access.writable()), (8, 3));
    }

    #[test]
    #[should_panic(expected = "do not overlap")]
    fn overlapping_registers_are_a_mistake() {
        let table: &'static [Register<char>] =
            Box::leak(Box::new([register(0, 4, 'a', Access::ReadOnly), register(2, 1, 'b', Access::ReadOnly)]));
        let _ = Block::new(table);
    }

    #[test]
    fn bytes_are_little_endian() {
        assert_eq!((value(&[]), value(&[1]), value(&[1, 2, 3, 4, 5])), (0, 1, 0x0403_0201));
    }
}
