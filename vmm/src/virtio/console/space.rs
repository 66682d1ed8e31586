//! The console's configuration space (virtio 1.3 §5.3.4), and the emergency write that goes through it.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::pci::registers::{Access, Block, register};
use crate::terminal::Terminal;
use crate::virtio::device_config::{DeviceConfig, OnWrite};
use holdfast_model::contract::vm::WindowSize;

/// Fields of the space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Columns,
    Rows,
    MaxPorts,
    /// Reads as 0.
    EmergencyWrite,
}

const SPACE: Block<Field> = Block::new(&[
    register(0, 2, Field::Columns, Access::ReadOnly),
    register(2, 2, Field::Rows, Access::ReadOnly),
    register(4, 4, Field::MaxPorts, Access::ReadOnly),
    register(8, 4, Field::EmergencyWrite, Access::ReadWrite),
]);

/// The space of a console with so many ports. Emergency writes go to `terminal`.
pub(super) fn declare(ports: usize, terminal: Arc<Terminal>) -> DeviceConfig {
    let size = terminal.size();
    let mut bytes = Vec::with_capacity(SPACE.len().into());
    for row in SPACE.registers() {
        let value = match row.name {
            Field::Columns => size.columns.into(),
            Field::Rows => size.rows.into(),
            Field::MaxPorts => u32::try_from(ports).unwrap_or(u32::MAX),
            Field::EmergencyWrite => 0,
        };
        bytes.extend(&value.to_le_bytes()[..row.width.into()]);
    }
    DeviceConfig::acting(bytes, Box::new(EmergencyOutput(terminal)))
}

/// Follows the size of the window; `true` when it is another, so that the driver must be interrupted.
pub(super) fn update_size(space: &DeviceConfig, size: WindowSize) -> bool {
    let [[a, b], [c, d]] = [size.columns.to_le_bytes(), size.rows.to_le_bytes()];
    let columns = SPACE.named(Field::Columns).map_or(0, |row| row.offset);
    space.update(columns.into(), &[a, b, c, d])
}

/// §5.3.5.1: a write must be taken at any time, without a queue or a feature, and its lower byte should come out somewhere:
/// here, where port 0's output does.
#[derive(Debug)]
struct EmergencyOutput(Arc<Terminal>);

impl OnWrite for EmergencyOutput {
    fn written(&self, offset: u64, data: &[u8]) {
        // Whoever has come to this may use a store of any width: the byte that lies at the field is its lower one.
        let field = SPACE.named(Field::EmergencyWrite).is_some_and(|row| u64::from(row.offset) == offset);
        if let Some(byte) = data.first().filter(|_| field) {
            self.0.put(&[*byte]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_layout_of_the_specification() {
        let size = WindowSize { columns: 0x0102, rows: 0x0304 };
        let terminal = Terminal::with_size("console", None, None, size);
        let space = declare(3, terminal);
        assert_eq!(space.to_vec(), [2, 1, 4, 3, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!update_size(&space, size));
        assert!(update_size(&space, WindowSize { columns: 5, rows: 6 }));
        assert_eq!(space.to_vec()[..4], [5, 0, 6, 0]);
    }

    /// Offset, bytes written there, and what comes out.
    #[test]
    fn only_a_write_that_begins_at_the_field_comes_out() {
        let cases: [(u64, &[u8], u64); 15] = [
            (8, b"a\0\0\0", 1),
            (8, b"a", 1),
            (8, b"ab", 1),
            (8, b"abcdefgh", 1),
            (8, b"", 0),
            (0, b"abcd", 0),
            (4, b"abcd", 0),
            (4, b"abcdefgh", 0),
            (7, b"ab", 0),
            (9, b"a", 0),
            (10, b"ab", 0),
            (11, b"abcd", 0),
            (12, b"abcd", 0),
            (1 << 32 | 8, b"abcd", 0),
            (u64::MAX, b"abcd", 0),
        ];
        for (offset, data, out) in cases {
            let terminal = Terminal::new("console", None, None);
            let space = declare(1, terminal.clone());
            let before = space.to_vec();
            space.write(offset, data);
            assert_eq!(terminal.stats().out_bytes, out, "{} bytes at {offset:#x}", data.len());
            assert_eq!((space.to_vec(), space.generation()), (before, 0), "nothing of it stays");
        }
    }
}
