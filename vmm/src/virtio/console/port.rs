//! The data queues of one activated port.
#![forbid(unsafe_code)]

use super::control::Untold;
use crate::terminal::Terminal;
use crate::virtio::Progress;
use crate::virtio::chain::{Chain, RingFault, copy_from, copy_to, window};
use crate::virtio::queue::VirtQueue;
use holdfast_model::contract::vm::DeviceStats;

/// Bytes handled in one piece: a huge buffer costs no huge allocation.
const CHUNK: usize = 4096;
/// Bytes, and buffers, handled before other devices have their turn.
const BUDGET_BYTES: usize = 256 * 1024;
const BUDGET_CHAINS: usize = 64;

/// One port.
#[derive(Debug)]
pub(super) struct ActivePort {
    pub(super) receive: VirtQueue,
    pub(super) transmit: VirtQueue,
    /// Somebody in the guest listens: input that comes earlier would be thrown away there.
    pub(super) open: bool,
    /// The driver has set it up.
    pub(super) ready: bool,
    pub(super) untold: Untold,
    input: Chain,
    /// The output chain at work, and how many bytes of it are done. A chain may be longer than a turn.
    output: Chain,
    output_done: Option<u64>,
}

impl ActivePort {
    pub(super) fn new(receive: VirtQueue, transmit: VirtQueue, open: bool) -> Self {
        Self {
            receive,
            transmit,
            open,
            ready: false,
            untold: Untold::default(),
            input: Chain::default(),
            output: Chain::default(),
            output_done: None,
        }
    }

    /// Takes the guest's output. Never waits for anybody.
    pub(super) fn transmit(&mut self, terminal: &Terminal, stats: &mut DeviceStats) -> Result<Progress, RingFault> {
        self.transmit.take_kick();
        let mut bytes = 0;
        let mut buf = [0u8; CHUNK];
        for _ in 0..BUDGET_CHAINS {
            let mut done = match self.output_done.take() {
                Some(done) => done,
                None if !self.transmit.pop(&mut self.output)? => {
                    if self.transmit.enable_kicks() {
                        continue;
                    }
                    self.transmit.notify();
                    return Ok(Progress::Drained);
                }
                None if !self.output.writable.is_empty() => {
                    return Err(self.output.shape_fault("output buffers are for the device to read"));
                }
                None => 0,
            };
            loop {
                let part: Vec<_> = window(&self.output.readable, done, CHUNK as u64).collect();
                let got = copy_from(self.transmit.ram(), &part, &mut buf);
                if got == 0 {
                    break;
                }
                terminal.put(&buf[..got]);
                done += got as u64;
                bytes += got;
                stats.out_bytes += got as u64;
                if bytes >= BUDGET_BYTES {
                    self.output_done = Some(done);
                    self.transmit.notify();
                    return Ok(Progress::Again);
                }
            }
            stats.out_ops += 1;
            self.transmit.push(self.output.head, 0);
        }
        self.transmit.notify();
        Ok(Progress::Again)
    }

    /// Gives the guest input, as far as it has buffers and somebody has input.
    pub(super) fn receive(&mut self, terminal: &Terminal, stats: &mut DeviceStats) -> Result<Progress, RingFault> {
        self.receive.take_kick();
        let mut progress = Progress::Drained;
        if self.open {
            progress = self.fill(terminal, stats)?;
        }
        self.receive.notify();
        Ok(progress)
    }

    fn fill(&mut self, terminal: &Terminal, stats: &mut DeviceStats) -> Result<Progress, RingFault> {
        let mut buf = [0u8; CHUNK];
        for _ in 0..BUDGET_CHAINS {
            if !self.receive.pop(&mut self.input)? {
                if self.receive.enable_kicks() {
                    continue;
                }
                return Ok(Progress::Drained);
            }
            if !self.input.readable.is_empty() {
                return Err(self.input.shape_fault("input buffers are for the device to write"));
            }
            let room = usize::try_from(self.input.writable_len()).unwrap_or(CHUNK).min(CHUNK);
            let got = terminal.take(&mut buf[..room]);
            // A buffer without room is used up with nothing in it.
            if got == 0 && room > 0 {
                self.receive.unpop(1);
                return Ok(Progress::Drained);
            }
            let done = copy_to(self.receive.ram(), &self.input.writable, &buf[..got]);
            self.receive.push(self.input.head, u32::try_from(done).unwrap_or(0));
            stats.in_ops += 1;
            stats.in_bytes += done as u64;
        }
        Ok(Progress::Again)
    }
}
