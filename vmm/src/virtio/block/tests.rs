use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::engine::Engine;
use super::format::Format;
use super::*;
use crate::virtio::testing::{Driver, activation, ram};
use crate::virtio::{ActiveDevice, Device, DeviceFault};

const HEADER: u64 = 0x8_0000;
const DATA: u64 = 0x9_0000;
const STATUS: u64 = 0xa_0000;

fn image() -> File {
    let mut file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..8u8).flat_map(|sector| [sector; 512]).collect();
    file.write_all(&content).unwrap();
    file
}

fn header(driver: &Driver<'_>, kind: u32, sector: u64) {
    let mut bytes = [0u8; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    driver.write(HEADER, &bytes);
    driver.write(STATUS, &[0xff]);
}

/// Serves until `count` requests are back: io_uring completes in its own time.
fn serve(active: &mut Box<dyn ActiveDevice>, driver: &Driver<'_>, count: usize) -> Result<(), DeviceFault> {
    for _ in 0..2000 {
        active.ready(0)?;
        if driver.used().len() >= count {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("{} of {count} requests came back", driver.used().len());
}

fn both_engines(read_only: bool, test: impl Fn(Block, File)) {
    let file = image();
    test(Block::new("data", file.try_clone().unwrap(), read_only).unwrap(), file);
    let mut file = image();
    let format = Format::raw(&mut file).unwrap();
    test(Block::with_engine("data", format, Engine::synchronous(file.try_clone().unwrap()), read_only), file);
}

#[test]
fn read_fills_scattered_buffers() {
    both_engines(false, |block, _| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        header(&driver, 0, 2);
        driver.chain(&[(HEADER, 16, false), (DATA, 100, true), (DATA + 0x1000, 924, true), (STATUS, 1, true)]);
        let (activation, vectors) = activation(&ram, &[&driver]);
        let mut active = Box::new(block).activate(activation).unwrap();
        serve(&mut active, &driver, 1).unwrap();
        assert_eq!(driver.used(), [(0, 1025)]);
        assert_eq!(driver.bytes(STATUS, 1), [0]);
        assert_eq!(driver.bytes(DATA, 100), vec![2; 100]);
        assert_eq!(driver.bytes(DATA + 0x1000, 412), vec![2; 412]);
        assert_eq!(driver.bytes(DATA + 0x1000 + 412, 512), vec![3; 512]);
        assert!(vectors[0].read().unwrap() >= 1);
    });
}

#[test]
fn write_then_flush_reaches_the_file() {
    both_engines(false, |block, mut file| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        let (activation, _) = activation(&ram, &[&driver]);
        let mut active = Box::new(block).activate(activation).unwrap();
        header(&driver, 1, 5);
        driver.write(DATA, &[0xab; 512]);
        driver.chain(&[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
        serve(&mut active, &driver, 1).unwrap();
        header(&driver, 4, 0);
        driver.chain(&[(HEADER, 16, false), (STATUS, 1, true)]);
        serve(&mut active, &driver, 2).unwrap();
        assert_eq!(driver.bytes(STATUS, 1), [0]);
        let mut got = [0; 512];
        file.seek(SeekFrom::Start(5 * 512)).unwrap();
        file.read_exact(&mut got).unwrap();
        assert_eq!(got, [0xab; 512]);
        assert_eq!(active.stats().out_bytes, 512);
    });
}

#[test]
fn get_id_returns_the_serial_padded_with_zeros() {
    both_engines(false, |block, _| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        header(&driver, 8, 0);
        driver.write(DATA, &[0xff; 20]);
        driver.chain(&[(HEADER, 16, false), (DATA, 20, true), (STATUS, 1, true)]);
        let (activation, _) = activation(&ram, &[&driver]);
        let mut active = Box::new(block).activate(activation).unwrap();
        serve(&mut active, &driver, 1).unwrap();
        assert_eq!(driver.used(), [(0, 21)]);
        assert_eq!(driver.bytes(DATA, 20), b"data\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    });
}

#[test]
fn refused_requests_get_a_status_and_leave_the_file_alone() {
    // (kind, sector, data bytes, read-only, status)
    let cases = [
        (1, 0, 512, true, 1),
        (1, 8, 512, false, 1),
        (1, 0, 100, false, 1),
        (1, u64::MAX, 512, false, 1),
        (77, 0, 512, false, 2),
    ];
    for (kind, sector, bytes, read_only, status) in cases {
        both_engines(read_only, |block, mut file| {
            let ram = ram();
            let mut driver = Driver::new(&ram, 0, 16);
            header(&driver, kind, sector);
            driver.write(DATA, &[0xab; 512]);
            driver.chain(&[(HEADER, 16, false), (DATA, bytes, false), (STATUS, 1, true)]);
            let (activation, _) = activation(&ram, &[&driver]);
            let mut active = Box::new(block).activate(activation).unwrap();
            serve(&mut active, &driver, 1).unwrap();
            assert_eq!(driver.bytes(STATUS, 1), [status], "kind {kind} sector {sector} bytes {bytes}");
            let mut content = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut content).unwrap();
            assert!(!content.contains(&0xab));
        });
    }
}

#[test]
fn without_flush_negotiated_writes_still_work() {
    both_engines(false, |block, _| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        header(&driver, 1, 0);
        driver.chain(&[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
        let (mut activation, _) = activation(&ram, &[&driver]);
        activation.features = 0;
        let mut active = Box::new(block).activate(activation).unwrap();
        serve(&mut active, &driver, 1).unwrap();
        assert_eq!(driver.bytes(STATUS, 1), [0]);
    });
}

#[test]
fn pause_leaves_nothing_in_flight() {
    both_engines(false, |block, _| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        header(&driver, 0, 0);
        driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        let (activation, _) = activation(&ram, &[&driver]);
        let mut active = Box::new(block).activate(activation).unwrap();
        active.ready(0).unwrap();
        active.pause().unwrap();
        assert_eq!(driver.used().len(), 1);
        active.resume().unwrap();
        active.deactivate().unwrap();
    });
}

/// Every way a chain can break the rules of virtio 1.3 §2.7, by the words its fault must contain.
#[test]
fn broken_chains_are_named_faults() {
    type Breakage = fn(&mut Driver<'_>);
    const NEXT: u32 = VRING_DESC_F_NEXT;
    const WRITE: u32 = VRING_DESC_F_WRITE;
    const INDIRECT: u32 = VRING_DESC_F_INDIRECT;
    let cases: [(&str, Breakage); 13] = [
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
        ("16-byte header", |d| {
            d.chain(&[(HEADER, 15, false), (STATUS, 1, true)]);
        }),
    ];
    let _ = WRITE;
    for (words, breakage) in cases {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        breakage(&mut driver);
        let (activation, _) = activation(&ram, &[&driver]);
        let mut active = Box::new(Block::new("data", image(), false).unwrap()).activate(activation).unwrap();
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
