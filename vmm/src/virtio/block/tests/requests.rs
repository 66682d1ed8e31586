//! Reads, writes, flushes and the serial; what the driver is told of the disk.

use std::io::{Read, Seek, SeekFrom};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_FLUSH as FLUSH,
    VIRTIO_BLK_T_GET_ID as GET_ID, VIRTIO_BLK_T_OUT as OUT, VIRTIO_BLK_T_SECURE_ERASE as SECURE_ERASE,
};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::*;

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
