//! Many timings of one thing: minimum, median, maximum.

use crate::{cpu, memory, output};

/// Most timings kept.
const MAX: usize = 16_384;

/// Timings in time stamp ticks.
pub struct Samples {
    address: u64,
    count: usize,
}

impl Samples {
    /// Room for `count` timings.
    pub fn new(count: usize) -> Self {
        let count = count.clamp(1, MAX);
        Self { address: memory::allocate(8 * count as u64), count }
    }

    fn values(&mut self) -> &mut [u64] {
        // SAFETY: allocated for this many words, page-aligned, used through `self` only.
        unsafe { core::slice::from_raw_parts_mut(self.address as *mut u64, self.count) }
    }

    /// Times `act` as often as there is room.
    pub fn run(&mut self, mut act: impl FnMut()) {
        for slot in self.values() {
            let start = cpu::now();
            act();
            *slot = cpu::now() - start;
        }
    }

    /// Prints nanoseconds.
    pub fn print(&mut self, name: &str, ticks_per_ms: u64) {
        let values = self.values();
        values.sort_unstable();
        let ns = |ticks: u64| ticks * 1_000_000 / ticks_per_ms;
        for (word, ticks) in
            [("min", values[0]), ("median", values[values.len() / 2]), ("max", values[values.len() - 1])]
        {
            output::line(format_args!("{name}.{word}\t{}\tns", ns(ticks)));
        }
    }
}
