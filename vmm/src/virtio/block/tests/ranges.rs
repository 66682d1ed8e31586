//! Discard and write-zeroes.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_WRITE_ZEROES as WRITE_ZEROES,
};

use super::*;

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

/// A discard or write-zeroes request for one range.
fn range(driver: &mut Driver<'_>, kind: u32, sector: u64, sectors: u32, flags: u32) {
    header(driver, kind, 0);
    let range: Vec<u8> =
        [sector.to_le_bytes().to_vec(), sectors.to_le_bytes().to_vec(), flags.to_le_bytes().to_vec()].concat();
    driver.write(DATA, &range);
    driver.chain(&[(HEADER, 16, false), (DATA, 16, false), (STATUS, 1, true)]);
}
