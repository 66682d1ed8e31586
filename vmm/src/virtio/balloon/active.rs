//! The activated balloon.

use std::sync::Arc;
use std::time::Instant;

use super::Balloon;
use super::device::{ACTUAL, F_PAGE_POISON, F_REPORTING, F_STATS, NUM_PAGES, PAGE, POISON};
use super::discard::{DiscardError, discard};
use holdfast_model::contract::vm::{GuestMemory, MemoryStats};

use super::stats::{self, MAX_RECORDS, RECORD};
use crate::memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRam};
use crate::virtio::chain::{Chain, copy_from};
use crate::virtio::interrupt::Interrupts;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, Order, Progress, Source};
use holdfast_model::contract::vm::DeviceStats;

/// Numbers of the queues (§5.5.2), and tokens of their doorbells.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATS: u16 = 2;
/// Longest array of page numbers in one request, bytes: 16 times Linux's, 4 times Windows'.
const MAX_ARRAY: usize = 16 * 1024;
/// Bytes given back before other devices have their turn; a single request may exceed it.
const BUDGET: u64 = 64 << 20;
/// Requests served before other devices have their turn.
const BUDGET_REQUESTS: usize = 64;

pub(super) struct ActiveBalloon {
    device: Balloon,
    queues: Vec<VirtQueue>,
    interrupts: Arc<Interrupts>,
    ram: Arc<GuestRam>,
    ram_bytes: u64,
    features: u64,
    chain: Chain,
    /// Statistics buffer that the driver has lent us; giving it back asks for newer figures.
    lent: Option<u16>,
    /// The agent has asked since the last figures came.
    wanted: bool,
    figures: Option<(GuestMemory, Instant)>,
    reported: u64,
    paused: bool,
    stats: DeviceStats,
}

impl ActiveBalloon {
    pub(super) fn start(device: Balloon, activation: Activation) -> Result<Self, DeviceFault> {
        let Activation { ram, features, mut queues, interrupts } = activation;
        // §5.5.2: a queue is there when its feature is. Of the reporting queue's two places the driver enables one.
        queues.retain(|queue| match queue.index {
            INFLATE | DEFLATE => true,
            STATS => features & F_STATS != 0,
            _ => features & F_REPORTING != 0,
        });
        for (number, what) in [(INFLATE, "inflate"), (DEFLATE, "deflate")] {
            if !queues.iter().any(|queue| queue.index == number) {
                let reason = format!("driver did not enable the {what} queue");
                return Err(DeviceFault::Guest { device: device.name.clone(), reason });
            }
        }
        let ram_bytes = ram.iter().map(GuestMemoryRegion::len).sum();
        Ok(Self {
            device,
            queues,
            interrupts,
            ram,
            ram_bytes,
            features,
            chain: Chain::default(),
            lent: None,
            wanted: false,
            figures: None,
            reported: 0,
            paused: false,
            stats: DeviceStats::default(),
        })
    }

    /// Serves the queue at `place` of our list.
    fn serve(&mut self, place: usize) -> Result<Progress, DeviceFault> {
        let number = self.queues[place].index;
        self.queues[place].take_kick();
        if number == STATS {
            self.ask_for_figures(place);
        }
        let mut given = 0;
        for _ in 0..BUDGET_REQUESTS {
            if !self.next(place)? {
                return Ok(Progress::Drained);
            }
            match number {
                INFLATE => given += self.inflate()?,
                DEFLATE => self.deflate()?,
                STATS => {
                    // Kept until newer figures are wanted.
                    self.take_figures()?;
                    continue;
                }
                _ => given += self.report(number)?,
            }
            let head = self.chain.head;
            self.queues[place].push(head, 0);
            if given >= BUDGET {
                break;
            }
        }
        self.queues[place].notify();
        Ok(Progress::Again)
    }

    /// Takes the next request. When there is none: tells the driver of those done, asks for a doorbell, and is `false`.
    fn next(&mut self, place: usize) -> Result<bool, DeviceFault> {
        let queue = &mut self.queues[place];
        let fault = DeviceFault::ring(&self.device.name, queue.index);
        while !queue.pop(&mut self.chain).map_err(&fault)? {
            if !queue.enable_kicks() {
                queue.notify();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The page numbers of the request at hand.
    fn page_numbers(&self, queue: u16) -> Result<Vec<u64>, DeviceFault> {
        let len = self.chain.readable_len();
        let sound = self.chain.writable.is_empty() && len.is_multiple_of(4) && len <= MAX_ARRAY as u64;
        if !sound {
            let what = "page numbers are readable only, of 4 bytes each, at most 16 KiB of them";
            return Err(DeviceFault::ring(&self.device.name, queue)(self.chain.shape_fault(what)));
        }
        let mut array = vec![0; usize::try_from(len).unwrap_or(0)];
        copy_from(&self.ram, &self.chain.readable, &mut array);
        let numbers = array.chunks_exact(4).filter_map(|bytes| bytes.try_into().ok().map(u32::from_le_bytes));
        Ok(numbers.map(u64::from).collect())
    }

    /// §5.5.6.1: the guest gives up pages. Returns the bytes that the host got.
    fn inflate(&mut self) -> Result<u64, DeviceFault> {
        let pages = self.page_numbers(INFLATE)?;
        self.stats.out_ops += 1;
        let mut given = 0;
        for (first, count) in runs(&pages) {
            given += self.give_back(first * PAGE, count * PAGE, "inflates")?;
        }
        self.stats.out_bytes += given;
        Ok(given)
    }

    /// §5.5.6.2: the guest takes pages back. Nothing to do: the host gives them when they are touched.
    fn deflate(&mut self) -> Result<(), DeviceFault> {
        let pages = self.page_numbers(DEFLATE)?;
        for page in &pages {
            if crate::memory::host_slice(&self.ram, crate::memory::GuestAddress(page * PAGE), PAGE as usize).is_none() {
                return Err(self.misuse("deflates", page * PAGE, PAGE));
            }
        }
        self.stats.in_ops += 1;
        self.stats.in_bytes += pages.len() as u64 * PAGE;
        Ok(())
    }

    /// §5.5.6.9: the guest has no use for what is in these buffers at the moment.
    fn report(&mut self, queue: u16) -> Result<u64, DeviceFault> {
        if !self.chain.readable.is_empty() {
            let what = "reported pages are writable only";
            return Err(DeviceFault::ring(&self.device.name, queue)(self.chain.shape_fault(what)));
        }
        self.stats.out_ops += 1;
        // A guest that fills free pages expects to find the filling: then they stay (§5.5.6.9).
        let filled = self.features & F_PAGE_POISON != 0 && self.device.config.le32(POISON) != 0;
        let mut given = 0;
        for at in 0..self.chain.writable.len() {
            let segment = self.chain.writable[at];
            if !filled {
                given += self.give_back(segment.addr, segment.len.into(), "reports")?;
            }
        }
        self.reported += given;
        self.stats.out_bytes += given;
        Ok(given)
    }

    fn give_back(&mut self, addr: u64, len: u64, what: &str) -> Result<u64, DeviceFault> {
        match discard(&self.ram, addr, len) {
            Ok(bytes) => Ok(bytes),
            Err(DiscardError::Range) => Err(self.misuse(what, addr, len)),
            Err(DiscardError::Host) => {
                // The guest has lost nothing, the host has gained nothing.
                self.stats.errors += 1;
                Ok(0)
            }
        }
    }

    fn misuse(&self, what: &str, addr: u64, len: u64) -> DeviceFault {
        let reason = format!("driver {what} {len} bytes at {addr:#x}, which is not whole pages of guest memory");
        DeviceFault::Guest { device: self.device.name.clone(), reason }
    }

    /// Gives the statistics buffer back, when the agent has asked: the driver fills it anew (§5.5.6.3).
    fn ask_for_figures(&mut self, place: usize) {
        if std::mem::take(&mut self.wanted)
            && let Some(head) = self.lent.take()
        {
            self.queues[place].push(head, 0);
            self.queues[place].notify();
        }
    }

    /// Reads the statistics buffer and keeps it.
    fn take_figures(&mut self) -> Result<(), DeviceFault> {
        let fault = DeviceFault::ring(&self.device.name, STATS);
        let len = self.chain.readable_len();
        let sound =
            self.chain.writable.is_empty() && len.is_multiple_of(RECORD as u64) && len <= (MAX_RECORDS * RECORD) as u64;
        if !sound {
            return Err(fault(self.chain.shape_fault("statistics are at most 64 readable records of 10 bytes")));
        }
        if self.lent.is_some() {
            return Err(fault(self.chain.shape_fault("there is one statistics buffer, and the device has it")));
        }
        let mut records = [0; MAX_RECORDS * RECORD];
        let len = copy_from(&self.ram, &self.chain.readable, &mut records[..usize::try_from(len).unwrap_or(0)]);
        self.figures = Some((stats::parse(&records[..len], self.ram_bytes), Instant::now()));
        self.lent = Some(self.chain.head);
        Ok(())
    }
}

/// Runs of neighbours `(first, count)`, in whichever direction the guest counted.
fn runs(pages: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *page => *count += 1,
            Some((first, count)) if *page + 1 == *first => (*first, *count) = (*page, *count + 1),
            _ => runs.push((*page, 1)),
        }
    }
    runs
}

impl ActiveDevice for ActiveBalloon {
    fn sources(&self) -> Vec<Source> {
        // Queue numbers are at most 4.
        self.queues.iter().map(|queue| Source::input(queue.kick_fd(), queue.index as u8)).collect()
    }

    fn ready(&mut self, token: u8) -> Result<Progress, DeviceFault> {
        match self.queues.iter().position(|queue| queue.index == u16::from(token)) {
            Some(place) => self.serve(place),
            None => Ok(Progress::Drained),
        }
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        self.paused = false;
        self.queues.iter().for_each(VirtQueue::ring_self);
        Ok(())
    }

    /// A driver that starts over has all its memory again; the target stays.
    fn deactivate(self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        for field in [ACTUAL, POISON] {
            self.device.config.update(field as usize, &[0; 4]);
        }
        Ok(Box::new(self.device))
    }

    fn stats(&self) -> DeviceStats {
        self.stats
    }

    fn order(&mut self, order: Order) -> Option<Result<(), String>> {
        let Order::BalloonTarget { mib } = order else {
            return None;
        };
        Some(self.device.set_target(mib).map(|changed| {
            if changed {
                self.interrupts.config();
            }
        }))
    }

    fn memory(&mut self) -> Option<MemoryStats> {
        self.wanted = true;
        if let Some(queue) = self.queues.iter().find(|queue| queue.index == STATS && !self.paused) {
            // The buffer goes back from `ready`, which has a way to report a broken queue.
            queue.ring_self();
        }
        let pages = |field| u64::from(self.device.config.le32(field)) * PAGE;
        Some(MemoryStats {
            balloon_target_bytes: pages(NUM_PAGES),
            balloon_bytes: pages(ACTUAL).min(self.ram_bytes),
            reported_bytes: self.reported,
            guest: self.figures.map(|(figures, _)| figures),
            age_ms: self.figures.map(|(_, at)| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_are_joined_in_both_directions() {
        assert_eq!(runs(&[5, 6, 7, 3, 2, 9, 9]), [(5, 3), (2, 2), (9, 1), (9, 1)]);
        assert_eq!(runs(&[]), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn runs_hold_the_same_pages(pages in proptest::collection::vec(0u64..40, 0..60)) {
            let mut found: Vec<u64> = runs(&pages).iter().flat_map(|(first, count)| *first..first + count).collect();
            let mut wanted = pages.clone();
            found.sort_unstable();
            wanted.sort_unstable();
            prop_assert_eq!(found, wanted);
        }
    }
}
