//! virtio-rng: entropy looked at, and the shortest way through the machine timed (virtio 1.3 §5.4).

use crate::ring::{Buffer, Ring};
use crate::samples::Samples;
use crate::transport::{Device, RNG};
use crate::{cpu, memory, output};

/// The entropy source.
pub struct Rng {
    pub common: u64,
    ring: Ring,
    stub: usize,
    buffer: u64,
}

impl Rng {
    /// With `interrupts` for [`Rng::round_trips`]; there are few vectors.
    pub fn open(plain: bool, interrupts: bool) -> Self {
        let device = Device::open(RNG, 0, 0, plain).expect("no entropy source");
        let (ring, stub) = device.queue(0, interrupts);
        device.start();
        Self { common: device.common, ring, stub, buffer: memory::allocate(4096) }
    }

    /// Asks for `bytes`, at most 4096, and says how many arrived and how many values they take.
    pub fn look(&mut self, bytes: u32) {
        let got = self.read(bytes);
        let mut seen = [false; 256];
        for byte in memory::slice(self.buffer, got as usize) {
            seen[usize::from(*byte)] = true;
        }
        output::result("rng.bytes", got.into(), "bytes");
        output::result("rng.values", seen.iter().filter(|seen| **seen).count() as u64, "values");
        output::result("rng.word", cpu::read64(self.buffer), "number");
    }

    /// Entropy in the buffer; the bytes that arrived.
    pub fn read(&mut self, bytes: u32) -> u32 {
        memory::slice(self.buffer, 4096).fill(0);
        self.ring.put(&[Buffer { address: self.buffer, len: bytes.min(4096), writable: true }]);
        self.ring.kick();
        self.ring.wait().1
    }

    /// A doorbell that brings the device nothing to do: what the guest pays for a kick.
    pub fn doorbells(&mut self, samples: &mut Samples) {
        samples.run(|| self.ring.ring_doorbell());
    }

    /// Doorbell, device thread, irqfd, handler; the processor spins or halts meanwhile.
    pub fn round_trips(&mut self, samples: &mut Samples, halting: bool) {
        samples.run(|| {
            self.ring.set_interrupts(true);
            let before = cpu::interrupts(self.stub);
            self.ring.put(&[Buffer { address: self.buffer, len: 8, writable: true }]);
            self.ring.kick();
            loop {
                let seen = cpu::all_interrupts();
                if cpu::interrupts(self.stub) != before {
                    break;
                }
                if halting {
                    cpu::halt(seen);
                } else {
                    core::hint::spin_loop();
                }
            }
            self.ring.wait();
        });
        self.ring.set_interrupts(false);
    }
}
