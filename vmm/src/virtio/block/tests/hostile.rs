//! Drivers that break the rules.

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};

use super::*;

/// Every way a chain can break the rules of virtio 1.3 §2.7 or lack what §5.2.6 needs, by the words its fault must contain.
#[test]
fn broken_chains_are_named_faults() {
    type Breakage = fn(&mut Driver<'_>);
    const NEXT: u32 = VRING_DESC_F_NEXT;
    const INDIRECT: u32 = VRING_DESC_F_INDIRECT;
    let cases: [(&str, Breakage); 20] = [
        ("ahead of a queue", |d| d.set_avail_idx(17)),
        ("names descriptor 16", |d| d.offer(16)),
        ("continues at 99", |d| {
            d.raw(0, DATA, 16, NEXT, 99);
            d.offer(0);
        }),
        ("longer than its table", |d| {
            d.raw(0, DATA, 16, NEXT, 0);
            d.offer(0);
        }),
        ("outside guest memory", |d| {
            d.raw(0, 0xffff_ffff_ffff_fff0, 64, 0, 0);
            d.offer(0);
        }),
        ("outside guest memory", |d| {
            d.raw(0, 0x1f_ffff, 2, 0, 0);
            d.offer(0);
        }),
        ("readable descriptor after", |d| {
            d.chain(&[(DATA, 16, true), (DATA, 16, false)]);
        }),
        ("nested or chained", |d| {
            d.raw(0, DATA, 16, INDIRECT | NEXT, 1);
            d.offer(0);
        }),
        ("nested or chained", |d| {
            d.raw(0, DATA, 16, INDIRECT, 0);
            d.raw_at(DATA, DATA, 16, INDIRECT, 0);
            d.offer(0);
        }),
        ("indirect table of 17", |d| {
            d.raw(0, DATA, 17, INDIRECT, 0);
            d.offer(0);
        }),
        ("indirect table of 0", |d| {
            d.raw(0, DATA, 0, INDIRECT, 0);
            d.offer(0);
        }),
        ("descriptor table", |d| {
            d.raw(0, 0x7fff_0000, 16, INDIRECT, 0);
            d.offer(0);
        }),
        // A loop inside an indirect table.
        ("longer than its table of 2", |d| {
            d.raw(0, DATA, 32, INDIRECT, 0);
            d.raw_at(DATA, DATA, 16, NEXT, 1);
            d.raw_at(DATA + 16, DATA, 16, NEXT, 0);
            d.offer(0);
        }),
        // A short header.
        ("16-byte header", |d| {
            d.chain(&[(HEADER, 15, false), (STATUS, 1, true)]);
        }),
        // No header.
        ("16-byte header", |d| {
            d.chain(&[(STATUS, 1, true)]);
        }),
        // A header for the device to write.
        ("16-byte header", |d| {
            d.chain(&[(HEADER, 16, true), (STATUS, 1, true)]);
        }),
        // No status.
        ("16-byte header", |d| {
            d.chain(&[(HEADER, 16, false)]);
        }),
        // A status that the device may not write.
        ("16-byte header", |d| {
            d.chain(&[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, false)]);
        }),
        // A status without room.
        ("16-byte header", |d| {
            d.chain(&[(HEADER, 16, false), (STATUS, 0, true)]);
        }),
        // Nothing at all.
        ("16-byte header", |d| {
            d.chain(&[(HEADER, 0, false)]);
        }),
    ];
    for (words, breakage) in cases {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        breakage(&mut driver);
        let mut active = activated(Block::new(options(false), image()).unwrap(), &ram, &driver);
        let fault = active.ready(0).unwrap_err().to_string();
        assert!(fault.contains(words) && fault.contains("disk data queue 0"), "{words:?} not in {fault:?}");
    }
}

#[test]
fn hostile_bytes_never_panic() {
    for seed in 0..64u64 {
        let data: Vec<u8> = (0..512u64).map(|n| (n.wrapping_mul(seed * 2 + 1) >> (seed % 7)) as u8).collect();
        fuzz_block(&data);
        crate::virtio::rng::fuzz_rng(&data);
        crate::virtio::console::fuzz_console(&data);
        crate::virtio::net::fuzz_net(&data);
    }
}
