use super::*;
use crate::virtio::malformed::{self, BUFFER, END, INDIRECT_TABLE, SIZE, entry};
use crate::virtio::queue::VirtQueue;
use crate::virtio::testing::{Driver, RAM_BYTES, interrupts, ram};
use proptest::prelude::*;
use std::sync::Arc;
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT as INDIRECT, VRING_DESC_F_NEXT as NEXT, VRING_DESC_F_WRITE as WRITE,
};
use virtio_queue::QueueT;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::mock::MockSplitQueue;

fn queue(driver: &Driver<'_>) -> VirtQueue {
    driver.queue(0, &interrupts(1).0)
}

/// What the queue says to the chain that `lay` describes from descriptor 0 on.
fn read(lay: impl Fn(&mut Driver<'_>)) -> Result<Chain, RingFault> {
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, SIZE);
    lay(&mut driver);
    driver.offer(0);
    let mut chain = Chain::default();
    queue(&driver).pop(&mut chain).map(|found| {
        assert!(found, "one chain was offered");
        chain
    })
}

#[test]
fn chains_that_break_a_rule_of_the_standard_are_named() {
    for (clause, fault, lay) in malformed::chains() {
        assert_eq!(read(lay), Err(fault), "{clause}");
    }
}

#[test]
fn chains_at_the_edge_of_the_rules_are_read() {
    type Lay = fn(&mut Driver<'_>);
    // (what, readable and writable bytes, the descriptors)
    let cases: [(&str, (u64, u64), Lay); 7] = [
        ("as long as the queue", (8 * u64::from(SIZE), 0), |d| {
            (0..SIZE).for_each(|n| d.raw(n, BUFFER, 8, if n + 1 < SIZE { NEXT } else { 0 }, n + 1))
        }),
        ("an empty buffer, anywhere", (0, 0), |d| d.raw(0, u64::MAX, 0, 0, 0)),
        ("the last byte of memory", (0, 1), |d| d.raw(0, END - 1, 1, WRITE, 0)),
        ("2.7.5.3.2: the write flag of an indirect descriptor is ignored", (8, 0), |d| {
            d.raw(0, INDIRECT_TABLE, 16, INDIRECT | WRITE, 0);
            entry(d, 0, 8, 0, 0);
        }),
        ("2.7.5.3.2: direct descriptors, then an indirect one", (8, 8), |d| {
            d.raw(0, BUFFER, 8, NEXT, 3);
            d.raw(3, INDIRECT_TABLE, 16, INDIRECT, 0);
            entry(d, 0, 8, WRITE, 0);
        }),
        // A driver must not (§2.7.5.3.1), but those that made their queue small do; devices bound what they take.
        ("longer than the queue, in an indirect table", (8 * u64::from(SIZE + 1), 0), |d| {
            d.raw(0, INDIRECT_TABLE, 16 * u32::from(SIZE + 1), INDIRECT, 0);
            (0..=SIZE).for_each(|n| entry(d, n.into(), 8, if n < SIZE { NEXT } else { 0 }, n + 1));
        }),
        ("next without its flag", (8, 0), |d| d.raw(0, BUFFER, 8, 0, 0xffff)),
    ];
    for (what, bytes, lay) in cases {
        let chain = read(lay).unwrap();
        assert_eq!((chain.readable_len(), chain.writable_len()), bytes, "{what}");
    }
}

#[test]
fn indirect_descriptor_that_was_not_negotiated_is_named() {
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, SIZE);
    driver.raw(0, INDIRECT_TABLE, 16, INDIRECT, 0);
    entry(&driver, 0, 8, 0, 0);
    driver.offer(0);
    let fault = queue(&driver).without_indirect().pop(&mut Chain::default());
    assert_eq!(fault, Err(RingFault::NotNegotiated));
}

#[test]
fn chain_of_more_than_4_gib_is_named() {
    // Address space only: nothing of it is touched but the ring.
    let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 30)]).unwrap());
    let mut driver = Driver::new(&ram, 0, SIZE);
    (0..5).for_each(|n| driver.raw(n, 0, 1 << 30, if n < 4 { NEXT } else { 0 }, n + 1));
    driver.offer(0);
    assert_eq!(queue(&driver).pop(&mut Chain::default()), Err(RingFault::TooLong));
}

#[test]
fn buffer_across_two_regions_is_named() {
    let ranges = [(GuestAddress(0), RAM_BYTES), (GuestAddress(END), RAM_BYTES)];
    let ram = Arc::new(GuestRam::from_ranges(&ranges).unwrap());
    let mut driver = Driver::new(&ram, 0, SIZE);
    driver.raw(0, END - 4, 8, 0, 0);
    driver.offer(0);
    assert_eq!(queue(&driver).pop(&mut Chain::default()), Err(RingFault::Buffer { addr: END - 4, len: 8 }));
}

/// The crate's mock driver lays valid chains; the crate's own walk is the witness.
#[test]
fn valid_chains_of_the_mock_driver_are_read_as_the_crate_reads_them() {
    let ram = ram();
    let mock = MockSplitQueue::create(&*ram, GuestAddress(0x1000), SIZE);
    let descriptor = |addr, len, flags, next| {
        RawDescriptor::from(virtio_queue::desc::split::Descriptor::new(addr, len, flags as u16, next))
    };
    let descriptors = [
        descriptor(BUFFER, 16, NEXT, 1),
        descriptor(BUFFER + 0x1000, 0x200, NEXT | WRITE, 2),
        descriptor(BUFFER + 0x2000, 1, WRITE, 0),
    ];
    mock.build_desc_chain(&descriptors).unwrap();
    let mut theirs: virtio_queue::Queue = mock.create_queue().unwrap();
    let ours: virtio_queue::Queue = mock.create_queue().unwrap();
    let kick = Arc::new(vmm_sys_util::eventfd::EventFd::new(0).unwrap());
    let mut ours = VirtQueue::new(0, ours, ram.clone(), kick, interrupts(1).0).unwrap();
    let mut chain = Chain::default();
    assert!(ours.pop(&mut chain).unwrap());
    let witness = theirs.pop_descriptor_chain(&*ram).unwrap();
    assert_eq!(witness.head_index(), chain.head);
    assert_eq!(parts(&chain), witness.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect::<Vec<_>>());
}

/// All buffers in order: address, length, whether the device writes.
fn parts(chain: &Chain) -> Vec<(u64, u32, bool)> {
    let readable = chain.readable.iter().map(|s| (s.addr, s.len, false));
    readable.chain(chain.writable.iter().map(|s| (s.addr, s.len, true))).collect()
}

#[test]
fn window_cuts_across_segments() {
    let segments = [Segment { addr: 100, len: 10 }, Segment { addr: 200, len: 10 }];
    let cut: Vec<_> = window(&segments, 8, 4).collect();
    assert_eq!(cut, [Segment { addr: 108, len: 2 }, Segment { addr: 200, len: 2 }]);
    assert_eq!(window(&segments, 20, 4).count(), 0);
}

/// Addresses that make some buffers good, some bad, and some descriptor tables.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..END / 0x1000).prop_map(|page| page * 0x1000),
        2 => Just(INDIRECT_TABLE),
        1 => END - 64..END + 64,
        1 => any::<u64>(),
    ]
}

/// Descriptors that are nearly right: mostly short, mostly chained to a near one.
fn descriptors() -> impl Strategy<Value = Vec<(u64, u32, u32, u16)>> {
    let len = prop_oneof![6 => 0u32..0x2000, 2 => (1u32..9).prop_map(|n| n * 16), 1 => any::<u32>()];
    let flags = prop_oneof![4 => Just(NEXT), 3 => Just(0u32), 3 => Just(WRITE), 3 => Just(WRITE | NEXT), 2 => 0u32..8];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    proptest::collection::vec((address(), len, flags, next), usize::from(SIZE) * 2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the table holds: a chain that is read lies in memory, has the right order and bounds, and is what the
    /// crate's own walk finds; reading changes nothing.
    #[test]
    fn random_chains_are_refused_or_read_right(descriptors in descriptors(), head in 0..SIZE) {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, SIZE);
        for (n, (addr, len, flags, next)) in descriptors.iter().enumerate() {
            match u16::try_from(n).unwrap() {
                n if n < SIZE => driver.raw(n, *addr, *len, *flags, *next),
                n => driver.raw_at(INDIRECT_TABLE + 16 * u64::from(n - SIZE), *addr, *len, *flags, *next),
            }
        }
        driver.offer(head);
        let before = driver.bytes(0, RAM_BYTES);
        let mut queue = queue(&driver);
        let witness = queue.ring().state();
        let mut chain = Chain::default();
        if queue.pop(&mut chain).is_ok() {
            let parts = parts(&chain);
            prop_assert!(parts.len() <= usize::from(SIZE) * 2);
            for (addr, len, _) in &parts {
                prop_assert!(*len == 0 || addr.checked_add((*len).into()).is_some_and(|end| end <= END));
            }
            prop_assert!(chain.readable_len() + chain.writable_len() <= u32::MAX.into());
            let mut theirs = virtio_queue::Queue::try_from(witness).unwrap();
            let found = theirs.pop_descriptor_chain(&*ram).unwrap();
            prop_assert_eq!(parts, found.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect::<Vec<_>>());
        }
        prop_assert!(driver.bytes(0, RAM_BYTES) == before, "reading a ring changed memory");
    }

    #[test]
    fn window_has_the_asked_length(lens in proptest::collection::vec(0u32..100, 0..8), skip in 0u64..400, take in 0u64..400) {
        let segments: Vec<_> = lens.iter().map(|&len| Segment { addr: 0x1000, len }).collect();
        let got: u64 = window(&segments, skip, take).map(|s| u64::from(s.len)).sum();
        prop_assert_eq!(got, total(&segments).saturating_sub(skip).min(take));
    }
}
