//! virtio-blk: patterns written and verified, random reads (virtio 1.3 §5.2).

use crate::pattern::{SECTOR, fill_sector, is_sector, mix};
use crate::ring::{Buffer, MAX_SIZE, Ring};
use crate::transport::{BLOCK, Device};
use crate::{cpu, memory, output};

const F_FLUSH: u64 = 1 << 9;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const HEADER: u64 = 16;
/// Sectors of one request of the pattern commands.
const BATCH: u64 = 64;

/// The first disk.
pub struct Block {
    ring: Ring,
    sectors: u64,
}

/// Memory of one request: header, status, data.
#[derive(Clone, Copy)]
struct Slot {
    header: u64,
    data: u64,
}

impl Slot {
    fn new(bytes: u64) -> Self {
        Self { header: memory::allocate(HEADER + 1), data: memory::allocate(bytes) }
    }

    fn status(&self) -> u64 {
        self.header + HEADER
    }
}

impl Block {
    pub fn open(plain: bool) -> Self {
        let device = Device::open(BLOCK, 0, F_FLUSH, plain).expect("no disk");
        let (ring, _) = device.queue(0, false);
        device.start();
        Self { ring, sectors: cpu::read64(device.config) }
    }

    fn submit(&mut self, slot: Slot, kind: u32, sector: u64, bytes: u32) -> u16 {
        cpu::write32(slot.header, kind);
        cpu::write32(slot.header + 4, 0);
        cpu::write64(slot.header + 8, sector);
        cpu::write8(slot.status(), 0xff);
        let header = Buffer { address: slot.header, len: HEADER as u32, writable: false };
        let status = Buffer { address: slot.status(), len: 1, writable: true };
        let data = Buffer { address: slot.data, len: bytes, writable: kind != WRITE };
        if bytes == 0 { self.ring.put(&[header, status]) } else { self.ring.put(&[header, data, status]) }
    }

    /// One request to its end; whether the device said that all is well.
    fn request(&mut self, slot: Slot, kind: u32, sector: u64, bytes: u32) -> bool {
        self.submit(slot, kind, sector, bytes);
        self.ring.kick();
        self.ring.wait();
        cpu::read8(slot.status()) == 0
    }

    /// Writes the pattern of `seed` to `count` sectors from `first`, and flushes.
    pub fn write(&mut self, first: u64, count: u64, seed: u64) {
        let slot = Slot::new(BATCH * SECTOR as u64);
        let mut failed = 0;
        for start in (first..first + count).step_by(BATCH as usize) {
            let sectors = BATCH.min(first + count - start);
            let bytes = sectors as usize * SECTOR;
            for (sector, part) in (start..).zip(memory::slice(slot.data, bytes).chunks_exact_mut(SECTOR)) {
                fill_sector(part, seed, sector);
            }
            failed += u64::from(!self.request(slot, WRITE, start, bytes as u32));
        }
        failed += u64::from(!self.request(slot, FLUSH, 0, 0));
        output::result("blk_write.failed", failed, "requests");
    }

    /// Reads `count` sectors from `first` and compares them with the pattern of `seed`.
    pub fn verify(&mut self, first: u64, count: u64, seed: u64) {
        let slot = Slot::new(BATCH * SECTOR as u64);
        let (mut failed, mut wrong) = (0, 0);
        for start in (first..first + count).step_by(BATCH as usize) {
            let sectors = BATCH.min(first + count - start);
            let bytes = sectors as usize * SECTOR;
            memory::slice(slot.data, bytes).fill(0);
            failed += u64::from(!self.request(slot, READ, start, bytes as u32));
            for (sector, part) in (start..).zip(memory::slice(slot.data, bytes).chunks_exact(SECTOR)) {
                wrong += u64::from(!is_sector(part, seed, sector));
            }
        }
        output::result("blk_verify.failed", failed, "requests");
        output::result("blk_verify.wrong", wrong, "sectors");
    }

    /// Prints the serial, and how a read past the end is answered.
    pub fn describe(&mut self) {
        let slot = Slot::new(4096);
        self.request(slot, GET_ID, 0, 20);
        let id = memory::slice(slot.data, 20);
        let len = id.iter().position(|byte| *byte == 0).unwrap_or(20);
        output::line(format_args!("blk_id\t{}\ttext", core::str::from_utf8(&id[..len]).unwrap_or("?")));
        output::result("blk_sectors", self.sectors, "sectors");
        let sectors = self.sectors;
        self.request(slot, READ, sectors, SECTOR as u32);
        output::result("blk_past_end.status", cpu::read8(slot.status()).into(), "status");
    }

    /// Reads `bytes` at random places with `depth` requests in flight for `ms`.
    pub fn random_reads(&mut self, bytes: u64, depth: usize, ms: u64, ticks_per_ms: u64) {
        const MAX_DEPTH: usize = 64;
        let depth = depth.min(MAX_DEPTH);
        let places = self.sectors / (bytes / SECTOR as u64);
        let mut slots = [Slot { header: 0, data: 0 }; MAX_DEPTH];
        for slot in &mut slots[..depth] {
            *slot = Slot::new(bytes);
        }
        // Which slot the chain at a head belongs to.
        let mut owner = [0u8; MAX_SIZE as usize];
        let mut seed = 1u64;
        let mut start = |this: &mut Self, owner: &mut [u8], n: usize| {
            seed = seed.wrapping_add(1);
            let sector = mix(seed) % places * (bytes / SECTOR as u64);
            let head = this.submit(slots[n], READ, sector, bytes as u32);
            owner[usize::from(head)] = n as u8;
        };
        output::result("blk_random.begin", depth as u64, "requests");
        let began = cpu::now();
        let end = began + ms * ticks_per_ms;
        (0..depth).for_each(|n| start(self, &mut owner, n));
        self.ring.kick();
        let (mut done, mut failed, mut in_flight) = (0u64, 0u64, depth);
        while in_flight > 0 {
            let more = cpu::now() < end;
            let mut taken = 0;
            while let Some((head, _)) = self.ring.take() {
                let n = usize::from(owner[usize::from(head)]);
                failed += u64::from(cpu::read8(slots[n].status()) != 0);
                done += 1;
                taken += 1;
                if more {
                    start(self, &mut owner, n);
                } else {
                    in_flight -= 1;
                }
            }
            if taken > 0 {
                self.ring.kick();
            } else {
                core::hint::spin_loop();
            }
        }
        let us = (cpu::now() - began) * 1000 / ticks_per_ms;
        output::result("blk_random.failed", failed, "requests");
        output::result("blk_random.us", us, "us");
        output::result("blk_random.done", done, "requests");
    }
}
