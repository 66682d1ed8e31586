use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::memory::{Bytes, GuestAddress, host_iovec};
use crate::virtio::testing::{memory_file, ram};

const LIMIT: Duration = Duration::from_secs(10);

fn filled(mut file: File, bytes: usize) -> File {
    file.write_all(&vec![0xee; bytes]).unwrap();
    file.sync_all().unwrap();
    file
}

/// Both engines on a file of a disk's file system and on one of tmpfs, which has no ZERO_RANGE.
fn everywhere(bytes: usize, test: impl Fn(Engine, File)) {
    type Make = fn() -> File;
    let makes: [Make; 2] = [|| tempfile::tempfile().unwrap(), memory_file];
    for make in makes {
        for engine in [Engine::new, Engine::synchronous] {
            let file = filled(make(), bytes);
            let mut engine = engine(file.try_clone().unwrap());
            engine.attach(ram());
            test(engine, file);
        }
    }
}

fn job(op: Op, offset: u64, bytes: u64) -> Job {
    Job { id: 3, op, durable: false, offset, bytes }
}

/// Runs one job with buffers `(guest address, bytes)`.
fn run(engine: &mut Engine, job: Job, buffers: &[(u64, usize)]) -> io::Result<()> {
    let ram = engine.ram.clone().unwrap();
    engine.start(job, |list| {
        list.extend(buffers.iter().map(|(at, len)| host_iovec(&ram, GuestAddress(*at), *len).unwrap()));
    })?;
    engine.submit()?;
    let mut done = Vec::new();
    engine.drain(LIMIT, &mut done)?;
    assert_eq!(done.len(), 1);
    let Done { id, result } = done.remove(0);
    assert_eq!(id, job.id);
    result
}

fn content(file: &mut File) -> Vec<u8> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut content).unwrap();
    content
}

#[test]
fn bytes_go_both_ways_through_one_buffer_and_through_many() {
    everywhere(64 << 10, |mut engine, mut file| {
        let ram = engine.ram.clone().unwrap();
        ram.write_slice(&[1; 8192], GuestAddress(0x1000)).unwrap();
        run(&mut engine, job(Op::Write, 4096, 512), &[(0x1000, 512)]).unwrap();
        let durable = Job { durable: true, ..job(Op::Write, 8192, 1024) };
        run(&mut engine, durable, &[(0x1000, 100), (0x1800, 924)]).unwrap();
        run(&mut engine, job(Op::Flush, 0, 0), &[]).unwrap();
        let found = content(&mut file);
        assert_eq!(found[4096..4608], [1; 512]);
        assert_eq!(found[8192..9216], [1; 1024]);
        assert_eq!(found.iter().filter(|b| **b == 1).count(), 512 + 1024);

        run(&mut engine, job(Op::Read, 4095, 2), &[(0x4000, 1), (0x5000, 1)]).unwrap();
        let byte = |at| ram.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!((byte(0x4000), byte(0x5000), byte(0x5001)), (0xee, 1, 0));
    });
}

#[test]
fn more_buffers_than_a_system_call_takes_are_no_limit() {
    everywhere(64 << 10, |mut engine, _| {
        let ram = engine.ram.clone().unwrap();
        let buffers: Vec<(u64, usize)> = (0..3000).map(|n| (0x1_0000 + 2 * n, 1)).collect();
        run(&mut engine, job(Op::Read, 0, 3000), &buffers).unwrap();
        assert!(buffers.iter().all(|(at, _)| ram.read_obj::<u16>(GuestAddress(*at)).unwrap() == 0x00ee));
    });
}

#[test]
fn discard_gives_blocks_back_and_zeroing_keeps_them_unless_told() {
    const BYTES: usize = 1 << 20;
    for (op, keeps) in
        [(Op::Discard, false), (Op::WriteZeroes { unmap: true }, false), (Op::WriteZeroes { unmap: false }, true)]
    {
        everywhere(BYTES, |mut engine, mut file| {
            let before = file.metadata().unwrap().blocks();
            // Twice: the second time it is known what the file system lacks.
            for _ in 0..2 {
                run(&mut engine, Job { durable: true, ..job(op, 64 << 10, 512 << 10) }, &[]).unwrap();
            }
            let after = file.metadata().unwrap().blocks();
            // Half of it leaves room for what the file system needs for itself.
            assert_eq!(before.saturating_sub(after) < 512, keeps, "{op:?}: {before} blocks before, {after} after");
            let found = content(&mut file);
            assert_eq!(found.len(), BYTES);
            assert!(found[64 << 10..576 << 10].iter().all(|b| *b == 0));
            assert!(found[..64 << 10].iter().chain(&found[576 << 10..]).all(|b| *b == 0xee));
        });
    }
}

#[test]
fn unaligned_edges_of_a_range_are_zeroed_and_no_more() {
    everywhere(64 << 10, |mut engine, mut file| {
        run(&mut engine, job(Op::WriteZeroes { unmap: true }, 512, 9 * 512), &[]).unwrap();
        let found = content(&mut file);
        assert!(found[512..10 * 512].iter().all(|b| *b == 0));
        assert!(found[..512].iter().chain(&found[10 * 512..]).all(|b| *b == 0xee));
    });
}

#[test]
fn image_that_shrank_is_an_error_and_not_an_endless_loop() {
    everywhere(8192, |mut engine, file| {
        file.set_len(4096 + 100).unwrap();
        let result = run(&mut engine, job(Op::Read, 4096, 4096), &[(0x1000, 4096)]);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn host_errors_come_back_with_their_job() {
    let (reader, writer) = io::pipe().unwrap();
    for make in [Engine::new, Engine::synchronous] {
        // A pipe cannot be synced, nor can the end for reading be written.
        let mut engine = make(File::from(std::os::fd::OwnedFd::from(reader.try_clone().unwrap())));
        engine.attach(ram());
        assert_eq!(run(&mut engine, job(Op::Flush, 0, 0), &[]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert!(run(&mut engine, job(Op::Write, 0, 1), &[(0, 1)]).is_err());
        assert!(run(&mut engine, job(Op::Discard, 0, 512), &[]).is_err());
    }
    drop(writer);
}

#[test]
fn every_result_has_its_consequence() {
    let host = || Host { zero_range: true };
    let slot = |op, durable| {
        let call = host().first_call(op, durable);
        Slot { op, durable, call, left: 1000, busy: true, ..Slot::EMPTY }
    };
    let number = |error: libc::c_int| -i64::from(error);
    let zeroes = Op::WriteZeroes { unmap: false };
    // (op, durable, results, calls after each but the last)
    type Case = (Op, bool, &'static [i64], &'static [Call]);
    let again = number(libc::EAGAIN);
    let cases: &[Case] = &[
        (Op::Read, false, &[1000], &[]),
        (Op::Read, false, &[400, 600], &[Call::Read]),
        (Op::Write, true, &[-4, 1000], &[Call::Write(libc::RWF_DSYNC)]),
        (Op::Write, false, &[-11, 1000], &[Call::Write(0)]),
        (Op::Flush, false, &[0], &[]),
        (Op::Discard, false, &[0], &[]),
        (Op::WriteZeroes { unmap: true }, false, &[0], &[]),
        (Op::WriteZeroes { unmap: true }, true, &[0, 0], &[Call::Sync]),
        (zeroes, false, &[0], &[]),
        (zeroes, true, &[0, 0], &[Call::Sync]),
        (zeroes, false, &[-95, 0, 0], &[PUNCH, ALLOCATE]),
        (zeroes, true, &[-95, 0, 0, 0], &[PUNCH, ALLOCATE, Call::Sync]),
    ];
    assert_eq!((again, number(libc::EINTR), number(libc::EOPNOTSUPP)), (-11, -4, -95));
    for (op, durable, results, calls) in cases {
        let (mut slot, mut host) = (slot(*op, *durable), host());
        for (n, result) in results.iter().enumerate() {
            let next = slot.took(*result, &mut host);
            match calls.get(n) {
                Some(call) => assert!(next.is_none() && slot.call == *call, "{op:?} {results:?}: {n}"),
                None => assert!(matches!(next, Some(Ok(()))), "{op:?} {results:?}: {n}"),
            }
        }
        assert_eq!(host.zero_range, !results.contains(&-95));
    }
    let refused = slot(Op::Discard, false).took(number(libc::EOPNOTSUPP), &mut host());
    assert_eq!(refused.unwrap().unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP), "holes have no other way");
}

#[test]
fn long_buffer_lists_are_not_kept() {
    everywhere(64 << 10, |mut engine, _| {
        let buffers: Vec<(u64, usize)> = (0..200).map(|n| (0x1_0000 + 2 * n, 1)).collect();
        run(&mut engine, job(Op::Read, 0, 200), &buffers).unwrap();
        assert!(engine.slots.iter().all(|slot| slot.buffers.capacity() <= KEPT_IOVECS));
    });
}
