//! Who answers an exit: port I/O and memory-mapped I/O by address range.
#![forbid(unsafe_code)]

use std::sync::Arc;

use holdfast_model::contract::end::End;

/// Something that answers accesses of vCPU threads.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` of the range.
    ///
    /// # Errors
    /// [`End`] when the VM cannot go on.
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End>;
    /// The guest writes `data` at `offset` of the range.
    ///
    /// # Errors
    /// [`End`] when the VM cannot go on, or is meant to end.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), End>;
    /// What lies at `offset`, for people who look at exits.
    fn describe(&self, offset: u64) -> String;
}

/// Ranges of one address space, fixed before the VM starts.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<(u64, u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Adds `len` addresses from `start`.
    ///
    /// # Panics
    /// When ranges overlap: the map is fixed, so that is a mistake in this program.
    pub fn insert(&mut self, start: u64, len: u64, device: Arc<dyn BusDevice>) {
        let overlaps = self.ranges.iter().any(|(s, l, _)| start < s + l && *s < start + len);
        assert!(!overlaps, "bus range {start:#x}+{len:#x} overlaps another");
        self.ranges.push((start, len, device));
        self.ranges.sort_by_key(|(s, ..)| *s);
    }

    /// A guest's read: all ones where nobody answers.
    ///
    /// # Errors
    /// From the device.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), End> {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => {
                data.fill(0xff);
                Ok(())
            }
        }
    }

    /// A guest's write: ignored where nobody listens.
    ///
    /// # Errors
    /// From the device.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), End> {
        self.find(address, data.len()).map_or(Ok(()), |(offset, device)| device.write(offset, data))
    }

    /// What lies at `address`.
    pub fn describe(&self, address: u64) -> String {
        self.find(address, 1).map_or_else(|| "nobody".into(), |(offset, device)| device.describe(offset))
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &Arc<dyn BusDevice>)> {
        let at = self.ranges.partition_point(|(start, ..)| *start <= address).checked_sub(1)?;
        let (start, size, device) = &self.ranges[at];
        let offset = address - start;
        (offset.checked_add(len as u64)? <= *size).then_some((offset, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End> {
            data.fill(offset as u8);
            Ok(())
        }

        fn write(&self, _: u64, _: &[u8]) -> Result<(), End> {
            Err(End::guest_fault("written"))
        }

        fn describe(&self, offset: u64) -> String {
            format!("echo {offset}")
        }
    }

    #[test]
    fn accesses_reach_their_range_and_nothing_else() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, Arc::new(Echo));
        bus.insert(0x80, 8, Arc::new(Echo));
        let mut data = [0];
        bus.read(0x103, &mut data).unwrap();
        assert_eq!(data, [3]);
        bus.read(0x108, &mut data).unwrap();
        assert_eq!(data, [0xff]);
        assert!(bus.write(0x87, &[0]).is_err());
        assert!(bus.write(0x87, &[0, 0]).is_ok(), "straddles the end");
        bus.read(u64::MAX, &mut data).unwrap();
        assert_eq!((bus.describe(0x102), bus.describe(0x108)), ("echo 2".to_string(), "nobody".to_string()));
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn overlapping_ranges_are_a_programming_error() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, Arc::new(Echo));
        bus.insert(0x107, 8, Arc::new(Echo));
    }
}
