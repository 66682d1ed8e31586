use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD as DISCARD,
    VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_GET_ID as GET_ID, VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT,
    VIRTIO_BLK_T_SECURE_ERASE as SECURE_ERASE, VIRTIO_BLK_T_WRITE_ZEROES as WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::engine::Engine;
use super::format::{Format, ImageType};
use super::*;
use crate::memory::GuestRam;
use crate::rate::Limits;
use crate::virtio::testing::{Driver, activation, ram};
use crate::virtio::{ActiveDevice, Device, DeviceFault};

const HEADER: u64 = 0x8_0000;
const DATA: u64 = 0x9_0000;
const STATUS: u64 = 0xa_0000;
/// Sectors of [`image`].
const SECTORS: u64 = 256;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// A status byte that nobody has written.
const UNTOUCHED: u8 = 0xff;

/// A file whose sectors hold their numbers plus one.
fn image() -> File {
    let mut file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..SECTORS).flat_map(|sector| [sector as u8 | 1; 512]).collect();
    file.write_all(&content).unwrap();
    file
}

fn options(read_only: bool) -> BlockOptions {
    BlockOptions { id: "data".into(), read_only, ..BlockOptions::default() }
}

fn header(driver: &Driver<'_>, kind: u32, sector: u64) {
    let mut bytes = [0u8; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    driver.write(HEADER, &bytes);
    driver.write(STATUS, &[UNTOUCHED]);
}

/// A discard or write-zeroes request for one range.
fn range(driver: &mut Driver<'_>, kind: u32, sector: u64, sectors: u32, flags: u32) {
    header(driver, kind, 0);
    let range: Vec<u8> =
        [sector.to_le_bytes().to_vec(), sectors.to_le_bytes().to_vec(), flags.to_le_bytes().to_vec()].concat();
    driver.write(DATA, &range);
    driver.chain(&[(HEADER, 16, false), (DATA, 16, false), (STATUS, 1, true)]);
}

fn status(driver: &Driver<'_>) -> u8 {
    driver.bytes(STATUS, 1)[0]
}

/// Activated with all features it offers.
fn activated(block: Block, ram: &Arc<GuestRam>, driver: &Driver<'_>) -> Box<dyn ActiveDevice> {
    let (mut activation, _) = activation(ram, &[driver]);
    activation.features = block.features();
    Box::new(block).activate(activation).unwrap()
}

/// Serves until `count` requests are back: io_uring completes in its own time.
fn serve(active: &mut Box<dyn ActiveDevice>, driver: &Driver<'_>, count: usize) -> Result<(), DeviceFault> {
    for _ in 0..2000 {
        active.ready(0)?;
        if driver.used().len() >= count {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{} of {count} requests came back", driver.used().len());
}

fn both_engines(read_only: bool, test: impl Fn(Block, File)) {
    for engine in [Engine::new, Engine::synchronous] {
        let mut file = image();
        let format = Format::open(ImageType::Raw, &mut file, read_only).unwrap();
        test(Block::with_engine(options(read_only), format, engine(file.try_clone().unwrap())), file);
    }
}

/// A disk whose storage answers when somebody writes to the pipe, and the pipe.
fn disk_on_a_pipe() -> (Block, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let engine = Engine::new(File::from(OwnedFd::from(reader)));
    assert!(engine.completion_fd().is_some(), "these tests need a host with io_uring");
    let format = Format::Raw { size: SECTORS * 512, block_bytes: 4096, holes: false };
    (Block::with_engine(options(false), format, engine), writer)
}

#[test]
fn read_fills_scattered_buffers() {
    both_engines(false, |block, _| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        header(&driver, IN, 2);
        driver.chain(&[(HEADER, 16, false), (DATA, 100, true), (DATA + 0x1000, 924, true), (STATUS, 1, true)]);
        let (activation, vectors) = activation(&ram, &[&driver]);
        let mut active = Box::new(block).activate(activation).unwrap();
        serve(&mut active, &driver, 1).unwrap();
        assert_eq!(driver.used(), [(0, 1025)]);
        assert_eq!(status(&driver), OK);
        assert_eq!(driver.bytes(DATA, 100), vec![3; 100]);
        assert_eq!(driver.bytes(DATA + 0x1000, 924), vec![3; 924]);
        assert!(vectors[0].read().unwrap() >= 1);
        assert_eq!((active.stats().in_ops, active.stats().in_bytes), (1, 1024));
    });
}

#[test]
fn header_and_status_may_be_anywhere_in_the_chain_of_buffers() {
    // §2.7.4.2: a device makes no assumption about the framing.
    both_engines(false, |block, _| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        header(&driver, IN, 4);
        // The header in three parts, one of them empty; the status as last byte of the data's buffer.
        let parts = [(HEADER, 3, false), (HEADER, 0, false), (HEADER + 3, 13, false), (DATA, 513, true), (0, 0, true)];
        driver.chain(&parts);
        driver.write(DATA + 512, &[UNTOUCHED]);
        let mut active = activated(block, &ram, &driver);
        serve(&mut active, &driver, 1).unwrap();
        assert_eq!(driver.bytes(DATA, 512), vec![5; 512]);
        assert_eq!(driver.bytes(DATA + 512, 1), [OK]);
    });
}

#[test]
fn write_then_flush_reaches_the_file() {
    both_engines(false, |block, mut file| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        let mut active = activated(block, &ram, &driver);
        header(&driver, OUT, 5);
        driver.write(DATA, &[0xab; 512]);
        driver.chain(&[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
        serve(&mut active, &driver, 1).unwrap();
        header(&driver, FLUSH, 0);
        driver.chain(&[(HEADER, 16, false), (STATUS, 1, true)]);
        serve(&mut active, &driver, 2).unwrap();
        assert_eq!(status(&driver), OK);
        let mut got = [0; 512];
        file.seek(SeekFrom::Start(5 * 512)).unwrap();
        file.read_exact(&mut got).unwrap();
        assert_eq!(got, [0xab; 512]);
        assert_eq!(active.stats().out_bytes, 512);
    });
}

#[test]
fn flush_and_durable_writes_say_what_the_hosts_storage_says() {
    // A pipe refuses to be synced: a flush that were only pretended would succeed.
    let (block, _writer) = disk_on_a_pipe();
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    let mut active = activated(block, &ram, &driver);
    header(&driver, FLUSH, 0);
    driver.chain(&[(HEADER, 16, false), (STATUS, 1, true)]);
    serve(&mut active, &driver, 1).unwrap();
    assert_eq!((status(&driver), active.stats().errors), (IO_ERROR, 1));
    active.deactivate().unwrap();
}

#[test]
fn get_id_returns_the_serial_padded_with_zeros() {
    both_engines(false, |block, _| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        let mut active = activated(block, &ram, &driver);
        for (n, (room, written)) in [(20u32, 21), (4, 5), (0, 1), (30, 21)].into_iter().enumerate() {
            header(&driver, GET_ID, 0);
            driver.write(DATA, &[0xff; 32]);
            driver.chain(&[(HEADER, 16, false), (DATA, room, true), (STATUS, 1, true)]);
            serve(&mut active, &driver, n + 1).unwrap();
            assert_eq!(driver.used()[n].1, written);
            let expected: Vec<u8> = b"data".iter().copied().chain([0; 16]).take(room as usize).collect();
            assert_eq!(driver.bytes(DATA, expected.len()), expected);
            assert_eq!(driver.bytes(DATA + expected.len() as u64, 1), [0xff]);
        }
    });
}

#[test]
fn refused_requests_get_a_status_and_leave_the_file_alone() {
    // (kind, sector, data bytes, read-only, status)
    let cases = [
        (OUT, 0, 512, true, IO_ERROR),
        (OUT, SECTORS, 512, false, IO_ERROR),
        (OUT, SECTORS - 1, 1024, false, IO_ERROR),
        (OUT, 0, 100, false, IO_ERROR),
        (OUT, 0, 0, false, IO_ERROR),
        (OUT, 0, 513, false, IO_ERROR),
        (OUT, u64::MAX, 512, false, IO_ERROR),
        (OUT, u64::MAX / 512, 512, false, IO_ERROR),
        (IN, 0, 512, false, IO_ERROR),
        (SECURE_ERASE, 0, 16, false, UNSUPPORTED),
        (77, 0, 512, false, UNSUPPORTED),
        (u32::MAX, 0, 512, false, UNSUPPORTED),
    ];
    for (kind, sector, bytes, read_only, expected) in cases {
        both_engines(read_only, |block, file| {
            let ram = ram();
            let mut driver = Driver::new(&ram, 0, 16);
            header(&driver, kind, sector);
            driver.write(DATA, &[0xab; 1024]);
            driver.chain(&[(HEADER, 16, false), (DATA, bytes, false), (STATUS, 1, true)]);
            let mut active = activated(block, &ram, &driver);
            serve(&mut active, &driver, 1).unwrap();
            assert_eq!(status(&driver), expected, "kind {kind} sector {sector} bytes {bytes}");
            assert_eq!(driver.used()[0].1, 1, "only the status was written");
            unchanged(file);
        });
    }
}

fn unchanged(mut file: File) {
    let mut content = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut content).unwrap();
    assert!(content.chunks(512).zip(0..SECTORS).all(|(sector, n)| sector == [n as u8 | 1; 512]), "the file changed");
}

#[test]
fn reads_into_the_wrong_direction_or_of_odd_lengths_fail() {
    // (data bytes, device writes)
    for (bytes, write) in [(512, false), (511, true), (513, true), (0, true)] {
        both_engines(false, |block, _| {
            let ram = ram();
            let mut driver = Driver::new(&ram, 0, 16);
            header(&driver, IN, 0);
            driver.write(DATA, &[0xab; 1024]);
            driver.chain(&[(HEADER, 16, false), (DATA, bytes, write), (STATUS, 1, true)]);
            let mut active = activated(block, &ram, &driver);
            serve(&mut active, &driver, 1).unwrap();
            assert_eq!(status(&driver), IO_ERROR, "{bytes} bytes, device writes: {write}");
            assert_eq!(driver.bytes(DATA, 1024), vec![0xab; 1024]);
        });
    }
}

#[test]
fn more_segments_than_announced_fail() {
    for (segments, expected) in [(254u32, OK), (255, IO_ERROR)] {
        both_engines(false, |block, _| {
            let ram = ram();
            let mut driver = Driver::new(&ram, 0, 16);
            header(&driver, IN, 0);
            // An indirect table of one header, `segments` of data in two sectors, and the status.
            let last = segments + 1;
            for n in 0..=last {
                let (addr, len, flags) = match n {
                    0 => (HEADER, 16, VRING_DESC_F_NEXT),
                    1 => (DATA, 1024 - (segments - 1), VRING_DESC_F_NEXT | VRING_DESC_F_WRITE),
                    n if n == last => (STATUS, 1, VRING_DESC_F_WRITE),
                    n => (DATA + 0x1000 + u64::from(n), 1, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE),
                };
                driver.raw_at(0xb_0000 + 16 * u64::from(n), addr, len, flags, n as u16 + 1);
            }
            driver.raw(0, 0xb_0000, 16 * (last + 1), VRING_DESC_F_INDIRECT, 0);
            driver.offer(0);
            let mut active = activated(block, &ram, &driver);
            serve(&mut active, &driver, 1).unwrap();
            assert_eq!(status(&driver), expected, "{segments} segments");
        });
    }
}

#[test]
fn discard_and_write_zeroes_do_what_they_say() {
    const FIRST: u64 = 32;
    const COUNT: u32 = 128;
    for (kind, flags, frees) in [(DISCARD, 0, true), (WRITE_ZEROES, 1, true), (WRITE_ZEROES, 0, false)] {
        both_engines(false, |block, mut file| {
            file.sync_all().unwrap();
            let before = file.metadata().unwrap().blocks();
            let ram = ram();
            let mut driver = Driver::new(&ram, 0, 16);
            range(&mut driver, kind, FIRST, COUNT, flags);
            let mut active = activated(block, &ram, &driver);
            serve(&mut active, &driver, 1).unwrap();
            assert_eq!((status(&driver), driver.used()[0].1), (OK, 1));
            assert_eq!(active.stats().out_ops, 1);
            let mut content = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut content).unwrap();
            for (n, sector) in (0..SECTORS).zip(content.chunks(512)) {
                let inside = (FIRST..FIRST + u64::from(COUNT)).contains(&n);
                let expected = if inside { 0 } else { n as u8 | 1 };
                assert_eq!(sector, [expected; 512], "sector {n}");
            }
            file.sync_all().unwrap();
            let after = file.metadata().unwrap().blocks();
            // Half of it leaves room for what the file system needs for itself.
            let freed = before.saturating_sub(after) >= u64::from(COUNT) / 2;
            assert_eq!(freed, frees, "{before} blocks before, {after} after");
        });
    }
}

#[test]
fn malformed_ranges_get_a_status_and_leave_the_file_alone() {
    // (kind, sector, sectors, flags, status)
    let cases = [
        (DISCARD, 0, 8, 1, UNSUPPORTED),
        (DISCARD, 0, 8, 2, UNSUPPORTED),
        (WRITE_ZEROES, 0, 8, 2, UNSUPPORTED),
        (WRITE_ZEROES, 0, 8, 0x8000_0001, UNSUPPORTED),
        (DISCARD, 0, 0, 0, IO_ERROR),
        (WRITE_ZEROES, 0, 0, 1, IO_ERROR),
        (DISCARD, 0, request::MAX_RANGE_SECTORS + 1, 0, IO_ERROR),
        (WRITE_ZEROES, 0, u32::MAX, 0, IO_ERROR),
        (DISCARD, SECTORS - 1, 2, 0, IO_ERROR),
        (DISCARD, SECTORS, 1, 0, IO_ERROR),
        (WRITE_ZEROES, u64::MAX, 1, 0, IO_ERROR),
        (WRITE_ZEROES, u64::MAX / 512, 8, 0, IO_ERROR),
    ];
    for (kind, sector, sectors, flags, expected) in cases {
        both_engines(false, |block, file| {
            let ram = ram();
            let mut driver = Driver::new(&ram, 0, 16);
            range(&mut driver, kind, sector, sectors, flags);
            let mut active = activated(block, &ram, &driver);
            serve(&mut active, &driver, 1).unwrap();
            assert_eq!(status(&driver), expected, "kind {kind} sector {sector} sectors {sectors} flags {flags:#x}");
            unchanged(file);
        });
    }
}

#[test]
fn other_than_one_range_fails() {
    for bytes in [0, 1, 15, 17, 32, 4096] {
        for kind in [DISCARD, WRITE_ZEROES] {
            both_engines(false, |block, file| {
                let ram = ram();
                let mut driver = Driver::new(&ram, 0, 16);
                header(&driver, kind, 0);
                // sector 1, 1 sector, over and over.
                let one = [1u64.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat();
                driver.write(DATA, &one.repeat(256));
                driver.chain(&[(HEADER, 16, false), (DATA, bytes, false), (STATUS, 1, true)]);
                let mut active = activated(block, &ram, &driver);
                serve(&mut active, &driver, 1).unwrap();
                assert_eq!(status(&driver), IO_ERROR, "kind {kind}, {bytes} bytes");
                unchanged(file);
            });
        }
    }
}

#[test]
fn range_may_be_cut_into_pieces() {
    both_engines(false, |block, mut file| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        let mut active = activated(block, &ram, &driver);
        header(&driver, WRITE_ZEROES, 0);
        let range = [8u64.to_le_bytes().as_slice(), &8u64.to_le_bytes()].concat();
        driver.write(DATA, &range[..5]);
        driver.write(DATA + 0x1000, &range[5..]);
        let parts = [(HEADER, 10, false), (HEADER + 10, 6, false), (DATA, 5, false), (DATA + 0x1000, 11, false)];
        driver.chain(&[&parts[..], &[(STATUS, 1, true)]].concat());
        serve(&mut active, &driver, 1).unwrap();
        assert_eq!(status(&driver), OK);
        let mut found = [1; 4096];
        file.seek(SeekFrom::Start(4096)).unwrap();
        file.read_exact(&mut found).unwrap();
        assert_eq!(found, [0; 4096]);
    });
}

#[test]
fn discard_is_refused_when_it_was_not_negotiated_or_the_disk_is_read_only() {
    for (read_only, features) in [(false, crate::virtio::F_COMMON), (true, u64::MAX)] {
        for kind in [DISCARD, WRITE_ZEROES] {
            both_engines(read_only, |block, file| {
                let ram = ram();
                let mut driver = Driver::new(&ram, 0, 16);
                range(&mut driver, kind, 0, 8, 0);
                let (mut activation, _) = activation(&ram, &[&driver]);
                activation.features = features;
                let mut active = Box::new(block).activate(activation).unwrap();
                serve(&mut active, &driver, 1).unwrap();
                assert_eq!(status(&driver), UNSUPPORTED);
                unchanged(file);
            });
        }
    }
}

#[test]
fn features_and_configuration_follow_the_file() {
    const HOLES: u64 = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    let make = |read_only: bool, holes: bool| {
        let format = Format::Raw { size: 1 << 30, block_bytes: 4096, holes };
        Block::with_engine(options(read_only), format, Engine::synchronous(image()))
    };
    assert_eq!(make(false, true).features() & HOLES, HOLES);
    assert_eq!(make(false, false).features() & (HOLES | 1 << VIRTIO_BLK_F_RO), 0);
    assert_eq!(make(true, false).features() & (1 << VIRTIO_BLK_F_RO), 1 << VIRTIO_BLK_F_RO);
    // Little-endian words from offset 0 on, as §5.2.4 lays them out.
    let words = |block: Block| -> Vec<u32> {
        block.config_space().to_vec().chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect()
    };
    let same = [1 << 21, 0, 0, 254, 0, 512, 8 << 16 | 3, 0, 0];
    assert_eq!(words(make(false, true)), [&same[..], &[1 << 21, 1, 8, 1 << 21, 1, 1]].concat());
    assert_eq!(words(make(false, false)), [&same[..], &[0; 6]].concat());
}

#[test]
fn without_flush_negotiated_writes_still_work() {
    both_engines(false, |block, _| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        header(&driver, OUT, 0);
        driver.chain(&[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
        let (mut activation, _) = activation(&ram, &[&driver]);
        activation.features = 0;
        let mut active = Box::new(block).activate(activation).unwrap();
        serve(&mut active, &driver, 1).unwrap();
        assert_eq!(status(&driver), OK);
    });
}

#[test]
fn limited_disk_serves_its_burst_and_the_rest_at_its_deadlines() {
    const PERIOD: Duration = Duration::from_millis(20);
    const REQUESTS: usize = 4;
    let limits = Limits { ops_per_second: Some(50), burst_ops: Some(1), ..Limits::default() };
    let started = Instant::now();
    let block = Block::new(BlockOptions { limits, ..options(false) }, image()).unwrap();
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    header(&driver, IN, 0);
    for _ in 0..REQUESTS {
        driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    }
    let mut active = activated(block, &ram, &driver);
    active.ready(0).unwrap();
    // From here on as the event loop does it: no doorbell any more, only deadlines and completions.
    for _ in 0..2000 {
        if driver.used().len() == REQUESTS {
            break;
        }
        match active.deadline() {
            Some(at) if at <= Instant::now() => active.expired().unwrap(),
            _ => {
                std::thread::sleep(Duration::from_millis(1));
                active.ready(1).unwrap();
            }
        }
    }
    assert_eq!(driver.used().len(), REQUESTS);
    assert!(started.elapsed() >= PERIOD * (REQUESTS as u32 - 1), "served after {:?}", started.elapsed());
    assert_eq!(active.deadline(), None, "nothing waits");
}

#[test]
fn waiting_request_stays_the_drivers_across_a_pause() {
    let limits = Limits { bytes_per_second: Some(512), burst_bytes: Some(512), ..Limits::default() };
    let block = Block::new(BlockOptions { limits, ..options(false) }, image()).unwrap();
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    header(&driver, IN, 0);
    for _ in 0..2 {
        driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    }
    let mut active = activated(block, &ram, &driver);
    serve(&mut active, &driver, 1).unwrap();
    active.ready(0).unwrap();
    assert!(active.deadline().is_some());
    active.pause().unwrap();
    assert_eq!(active.deadline(), None);
    assert_eq!(driver.used().len(), 1);
    active.resume().unwrap();
    active.ready(0).unwrap();
    assert!(active.deadline().is_some() || driver.used().len() == 2, "found again after the pause");
}

#[test]
fn pause_leaves_nothing_in_flight() {
    both_engines(false, |block, _| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        header(&driver, IN, 0);
        driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        let mut active = activated(block, &ram, &driver);
        active.ready(0).unwrap();
        active.pause().unwrap();
        assert_eq!(driver.used().len(), 1);
        active.resume().unwrap();
        active.deactivate().unwrap();
    });
}

#[test]
fn reset_waits_for_what_is_in_flight_and_the_disk_can_be_used_again() {
    let (block, mut writer) = disk_on_a_pipe();
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    header(&driver, IN, 0);
    driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    let mut active = activated(block, &ram, &driver);
    active.ready(0).unwrap();
    assert!(driver.used().is_empty(), "the pipe is empty");
    let storage = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        writer.write_all(&[0x77; 1024]).unwrap();
        writer
    });
    let device = active.deactivate().unwrap();
    let _writer = storage.join().unwrap();
    assert_eq!(driver.bytes(DATA, 512), vec![0x77; 512], "the buffers outlived the reset");
    assert!(driver.used().is_empty(), "a driver that has reset the device is told nothing");

    let mut driver = Driver::new(&ram, 0, 16);
    driver.set_avail_idx(0);
    header(&driver, IN, 0);
    driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    let (activation, _) = activation(&ram, &[&driver]);
    let mut active = device.activate(activation).unwrap();
    serve(&mut active, &driver, 1).unwrap();
    assert_eq!(status(&driver), OK);
    active.deactivate().unwrap();
}

#[test]
fn storage_that_never_answers_is_a_named_fault_and_its_buffers_stay_mapped() {
    let (mut block, _writer) = disk_on_a_pipe();
    block.drain_limit = Duration::from_millis(20);
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    header(&driver, IN, 0);
    driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    let mut active = activated(block, &ram, &driver);
    active.ready(0).unwrap();
    let fault = active.deactivate().err().expect("the storage does not answer");
    let text = fault.to_string();
    assert!(
        matches!(fault, DeviceFault::Host { .. }) && text.contains("disk data: wait for the host's storage"),
        "{text}"
    );
    // The test's own handle, and one that nobody can drop any more.
    assert!(Arc::strong_count(&ram) > 1, "the memory would be freed under the kernel");
}

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
