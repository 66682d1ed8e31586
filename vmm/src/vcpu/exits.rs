//! Counts of exits: how often a vCPU left the guest for this process, and for which ports and addresses.
//!
//! Always on: a count is one load and one store, finding its place in the table of the hottest addresses a walk over at
//! most 2 KiB, both far below the cost of an exit. The vCPU's own thread is the only writer, so nothing is locked; a
//! reader on another thread may see a count that is one exit old.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_model::contract::vm::{Hot, Space, VcpuStats};

/// Addresses followed at once. A Linux boot touches more, the many cold ones share the last places.
const PLACES: usize = 128;
/// Key bit: a port, not a memory address.
const PORT: u64 = 1 << 63;
/// Key of a place that nobody holds; no exit has it, since it is not a 16-bit port.
const FREE: u64 = u64::MAX;

/// The counters of one vCPU.
#[derive(Debug)]
pub struct ExitCounters {
    pio: AtomicU64,
    mmio: AtomicU64,
    other: AtomicU64,
    keys: [AtomicU64; PLACES],
    counts: [AtomicU64; PLACES],
}

impl Default for ExitCounters {
    fn default() -> Self {
        Self {
            pio: AtomicU64::new(0),
            mmio: AtomicU64::new(0),
            other: AtomicU64::new(0),
            keys: [const { AtomicU64::new(FREE) }; PLACES],
            counts: [const { AtomicU64::new(0) }; PLACES],
        }
    }
}

impl ExitCounters {
    /// The guest accessed a port or a device's memory.
    pub fn access(&self, space: Space, address: u64) {
        let (total, key) = match space {
            Space::Pio => (&self.pio, address & 0xffff | PORT),
            Space::Mmio => (&self.mmio, address & !PORT),
        };
        add_one(total);
        self.heat(key);
    }

    /// Any other return from the guest: a kick, an interrupt window, an end.
    pub fn other(&self) {
        add_one(&self.other);
    }

    /// Port, memory and other exits.
    pub fn totals(&self) -> (u64, u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.pio), load(&self.mmio), load(&self.other))
    }

    /// The `most` hottest addresses, hottest first.
    pub fn hottest(&self, most: usize) -> Vec<Hot> {
        let places = self.keys.iter().zip(&self.counts);
        let mut hot: Vec<Hot> = places
            .map(|(key, count)| (key.load(Ordering::Relaxed), count.load(Ordering::Relaxed)))
            .filter(|(key, count)| *key != FREE && *count > 0)
            .map(|(key, exits)| match key & PORT {
                0 => Hot { space: Space::Mmio, address: key, exits },
                _ => Hot { space: Space::Pio, address: key & !PORT, exits },
            })
            .collect();
        hot.sort_by_key(|hot| (std::cmp::Reverse(hot.exits), hot.space, hot.address));
        hot.truncate(most);
        hot
    }

    /// Space-saving counting (Metwally, Agrawal, El Abbadi 2005): a newcomer to a full table takes over the coldest place
    /// and its count, so a count is never too low and every address above the average share is in the table.
    fn heat(&self, key: u64) {
        let mut coldest = 0;
        let mut least = u64::MAX;
        for (place, (held, count)) in self.keys.iter().zip(&self.counts).enumerate() {
            let held = held.load(Ordering::Relaxed);
            if held == key {
                return add_one(count);
            }
            if held == FREE {
                // Places fill in order: nobody comes after the first free one.
                coldest = place;
                break;
            }
            let count = count.load(Ordering::Relaxed);
            if count < least {
                (coldest, least) = (place, count);
            }
        }
        self.keys[coldest].store(key, Ordering::Relaxed);
        add_one(&self.counts[coldest]);
    }
}

/// One writer, so a load and a store suffice.
fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Sums the hottest addresses of several vCPUs, hottest first.
pub fn merge(lists: impl IntoIterator<Item = Vec<Hot>>) -> Vec<Hot> {
    let mut sums = std::collections::BTreeMap::new();
    for hot in lists.into_iter().flatten() {
        *sums.entry((hot.space, hot.address)).or_insert(0u64) += hot.exits;
    }
    let mut all: Vec<Hot> = sums.into_iter().map(|((space, address), exits)| Hot { space, address, exits }).collect();
    all.sort_by_key(|hot| std::cmp::Reverse(hot.exits));
    all
}

/// Addresses in [`table`].
const LINES: usize = 24;

/// The counts of each vCPU, and the hottest addresses of all, as a table to print.
pub fn table(vcpus: &[VcpuStats], hottest: &[Hot], describe: impl Fn(&Hot) -> String) -> String {
    let mut text = String::from("  vCPU      port    memory     other       all      idle\n");
    for (n, vcpu) in vcpus.iter().enumerate() {
        let VcpuStats { pio_exits, mmio_exits, other_exits, all_exits, halt_exits, .. } = vcpu;
        text += &format!("  {n:4}{pio_exits:10}{mmio_exits:10}{other_exits:10}{all_exits:10}{halt_exits:10}\n");
    }
    for hot in hottest.iter().take(LINES) {
        let space = match hot.space {
            Space::Pio => "port",
            Space::Mmio => "memory",
        };
        text += &format!("  {:8}  {space:6} {:#010x}  {}\n", hot.exits, hot.address, describe(hot));
    }
    let (shown, sum) =
        (hottest.iter().take(LINES).map(|hot| hot.exits).sum::<u64>(), |n: &VcpuStats| n.pio_exits + n.mmio_exits);
    let rest = vcpus.iter().map(sum).sum::<u64>().saturating_sub(shown);
    text + &format!("  {rest:8}  elsewhere\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn accesses_are_counted_by_kind_and_address() {
        let counters = ExitCounters::default();
        for _ in 0..3 {
            counters.access(Space::Pio, 0xcf8);
        }
        counters.access(Space::Mmio, 0xcf8);
        counters.other();
        assert_eq!(counters.totals(), (3, 1, 1));
        assert_eq!(
            counters.hottest(8),
            [Hot { space: Space::Pio, address: 0xcf8, exits: 3 }, Hot { space: Space::Mmio, address: 0xcf8, exits: 1 }]
        );
        assert_eq!(counters.hottest(1).len(), 1);
    }

    #[test]
    fn table_has_a_line_for_each_vcpu_and_address_and_the_rest() {
        let counters = ExitCounters::default();
        (0..LINES as u64 + 5).for_each(|n| counters.access(Space::Mmio, 0xc000_0000 + n));
        counters.access(Space::Mmio, 0xc000_0000);
        let stats = VcpuStats { mmio_exits: 30, all_exits: 99, ..Default::default() };
        let text =
            table(&[stats.clone(), stats], &counters.hottest(usize::MAX), |hot| format!("<{}>", hot.address % 16));
        assert_eq!(text.lines().count(), 1 + 2 + LINES + 1);
        assert!(text.contains("       2  memory 0xc0000000  <0>"), "{text}");
        assert!(text.ends_with(&format!("{}  elsewhere\n", 60 - LINES - 1)), "{text}");
    }

    #[test]
    fn lists_of_several_vcpus_add_up() {
        let hot = |address, exits| Hot { space: Space::Mmio, address, exits };
        assert_eq!(merge([vec![hot(1, 5), hot(2, 1)], vec![hot(2, 9)]]), [hot(2, 10), hot(1, 5)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// What the algorithm promises: no count too low, none too high by more than the coldest place's, and whoever
        /// has more than 1/PLACES of all exits is listed.
        #[test]
        fn hot_addresses_are_never_lost(addresses in proptest::collection::vec(0u64..400, 0..3000)) {
            let counters = ExitCounters::default();
            let mut truth: HashMap<u64, u64> = HashMap::new();
            for address in &addresses {
                counters.access(Space::Mmio, address * address);
                *truth.entry(address * address).or_default() += 1;
            }
            let hottest = counters.hottest(usize::MAX);
            let coldest = hottest.last().map_or(0, |hot| hot.exits);
            for hot in &hottest {
                let real = truth[&hot.address];
                prop_assert!(hot.exits >= real && hot.exits <= real + coldest);
            }
            for (address, real) in truth {
                if real > (addresses.len() / PLACES) as u64 {
                    prop_assert!(hottest.iter().any(|hot| hot.address == address));
                }
            }
        }
    }
}
