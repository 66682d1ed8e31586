use super::*;
use crate::memory::{Bytes, GuestAddress};
use crate::virtio::testing::{Driver, RAM_BYTES, interrupts, ram};
use proptest::prelude::*;
use std::collections::VecDeque;

const SIZE: u16 = 16;

fn queue(driver: &Driver<'_>) -> (VirtQueue, Arc<EventFd>) {
    let (irq, fds) = interrupts(1);
    (driver.queue(0, &irq), fds[0].clone())
}

/// A queue of the driver's with other addresses and event index.
fn ring(size: u16, [table, avail, used]: [u64; 3]) -> Queue {
    let mut queue = Queue::new(256).unwrap();
    queue.set_size(size);
    let halves = |addr: u64| (Some(addr as u32), Some((addr >> 32) as u32));
    let ((low, high), (avail_low, avail_high), (used_low, used_high)) = (halves(table), halves(avail), halves(used));
    queue.set_desc_table_address(low, high);
    queue.set_avail_ring_address(avail_low, avail_high);
    queue.set_used_ring_address(used_low, used_high);
    queue.set_ready(true);
    queue
}

fn adopt(ring: Queue) -> Result<VirtQueue, RingFault> {
    let kick = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    VirtQueue::new(0, ring, ram(), kick, interrupts(1).0)
}

#[test]
fn rings_outside_memory_are_named() {
    const END: u64 = RAM_BYTES as u64;
    let (table, avail, used) = (0x1000, 0x2000, 0x3000);
    let cases = [
        ("descriptor table", END, [END, avail, used]),
        ("descriptor table", END - 16 * 255, [END - 16 * 255, avail, used]),
        ("descriptor table", !15, [!15, avail, used]),
        ("descriptor table", 0, [0, avail, used]),
        ("available ring", END - 2, [table, END - 2, used]),
        // The last two bytes of it are the used event index.
        ("available ring", END - 6 - 2 * 256 + 2, [table, END - 6 - 2 * 256 + 2, used]),
        ("used ring", END - 4, [table, avail, END - 4]),
        ("used ring", END - 6 - 8 * 256 + 2, [table, avail, END - 6 - 8 * 256 + 2]),
    ];
    for (what, addr, addresses) in cases {
        let fault = adopt(ring(256, addresses)).err();
        assert_eq!(fault, Some(RingFault::Ring { what, addr }), "{addresses:x?}");
    }
    assert!(adopt(ring(256, [END - 16 * 256, avail, used])).is_ok(), "up to the last byte");
}

#[test]
fn available_index_that_runs_away_is_named() {
    let ram = ram();
    for (index, ahead) in [(SIZE + 1, SIZE + 1), (0x8000, 0x8000), (0xffff, 0xffff)] {
        let driver = Driver::new(&ram, 0, SIZE);
        driver.set_avail_idx(index);
        let fault = queue(&driver).0.pop(&mut Chain::default());
        assert_eq!(fault, Err(RingFault::AvailIndex { ahead, size: SIZE }));
    }
    // Backwards is as good as far ahead.
    let mut driver = Driver::new(&ram, 0, SIZE);
    driver.set_avail_idx(0);
    driver.chain(&[(0x8_0000, 8, true)]);
    let mut queue = queue(&driver).0;
    assert!(queue.pop(&mut Chain::default()).unwrap());
    driver.set_avail_idx(0);
    assert_eq!(queue.pop(&mut Chain::default()), Err(RingFault::AvailIndex { ahead: 0xffff, size: SIZE }));
}

#[test]
fn head_that_is_no_descriptor_is_named() {
    let ram = ram();
    for head in [SIZE, 0x8000, 0xffff] {
        let mut driver = Driver::new(&ram, 0, SIZE);
        driver.offer(head);
        assert_eq!(queue(&driver).0.pop(&mut Chain::default()), Err(RingFault::Head { head, size: SIZE }));
    }
}

#[test]
fn descriptor_offered_again_before_it_was_used_is_named() {
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, SIZE);
    driver.raw(0, 0x8_0000, 8, 0, 0);
    let mut queue = queue(&driver).0;
    let mut chain = Chain::default();
    for _ in 0..SIZE {
        driver.offer(0);
        assert!(queue.pop(&mut chain).unwrap());
    }
    driver.offer(0);
    assert_eq!(queue.pop(&mut chain), Err(RingFault::InFlight { size: SIZE }));
    // A chain given back makes room for one, a chain put back for another.
    queue.push(0, 0);
    assert!(queue.pop(&mut chain).unwrap());
    queue.unpop(1);
    assert!(queue.pop(&mut chain).unwrap());
}

#[test]
fn interrupt_comes_when_the_used_index_passes_the_event_index_across_the_wrap() {
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, SIZE);
    let (irq, fds) = interrupts(1);
    let mut queue = driver.queue(0, &irq);
    queue.queue.set_event_idx(true);
    driver.raw(0, 0x8_0000, 8, 2, 0);
    let used_event = GuestAddress(driver.avail_addr() + 4 + 2 * u64::from(SIZE));
    let mut chain = Chain::default();
    // The driver asks to hear of every 1000th, beyond the 65,536 that the indices count to.
    for n in 1..=70_000u32 {
        if n % 1000 == 1 {
            ram.write_obj((n + 999 - 1) as u16, used_event).unwrap();
        }
        driver.offer(0);
        assert!(queue.pop(&mut chain).unwrap(), "request {n}");
        queue.push(0, 8);
        queue.notify();
        let rung = fds[0].read().is_ok();
        assert_eq!(rung, n % 1000 == 0, "request {n}");
    }
}

#[test]
fn nothing_given_back_interrupts_nobody() {
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, SIZE);
    driver.chain(&[(0x8_0000, 8, true)]);
    let (mut queue, vector) = queue(&driver);
    let mut chain = Chain::default();
    queue.notify();
    assert!(queue.pop(&mut chain).unwrap());
    queue.notify();
    assert!(vector.read().is_err());
    queue.push(chain.head, 8);
    queue.notify();
    queue.notify();
    assert_eq!(vector.read().unwrap(), 1, "once for the push");
}

#[test]
fn request_that_arrives_while_kicks_are_asked_for_is_not_lost() {
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, SIZE);
    let mut queue = queue(&driver).0;
    let mut chain = Chain::default();
    queue.disable_kicks();
    assert!(!queue.pop(&mut chain).unwrap());
    driver.chain(&[(0x8_0000, 8, true)]);
    assert!(queue.enable_kicks(), "it is there already");
    assert!(queue.pop(&mut chain).unwrap());
    assert!(!queue.enable_kicks());
}

/// What a driver and a device may do next.
#[derive(Debug, Clone)]
enum Step {
    Offer {
        len: u32,
    },
    Pop,
    /// Gives back one of those in flight, with a part of its room written.
    Push {
        which: usize,
        part: u32,
    },
    Unpop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u32..0x1000).prop_map(|len| Step::Offer { len }),
        4 => Just(Step::Pop),
        4 => (any::<usize>(), 0u32..0x1000).prop_map(|(which, part)| Step::Push { which, part }),
        1 => Just(Step::Unpop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// A driver that keeps the rules gets every chain once, in its order; the used ring lists what was given back in
    /// the order of giving; nothing but the used ring is ever written.
    #[test]
    fn chains_come_in_order_and_go_back_in_order(steps in proptest::collection::vec(step(), 0..200)) {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, SIZE);
        let mut queue = queue(&driver).0;
        let mut free: Vec<u16> = (0..SIZE).collect();
        let mut lens = [0u32; SIZE as usize];
        let (mut offered, mut taken) = (VecDeque::new(), Vec::new());
        let mut given: Vec<(u16, u32)> = Vec::new();
        for step in steps {
            match step {
                Step::Offer { len } => {
                    let Some(head) = free.pop() else { continue };
                    lens[usize::from(head)] = len;
                    driver.raw(head, 0x8_0000, len, 2, 0);
                    driver.offer(head);
                    offered.push_back(head);
                }
                Step::Pop => {
                    let mut chain = Chain::default();
                    let expected = offered.pop_front();
                    prop_assert_eq!(queue.pop(&mut chain).unwrap(), expected.is_some());
                    if let Some(head) = expected {
                        prop_assert_eq!((chain.head, chain.writable_len()), (head, lens[usize::from(head)].into()));
                        taken.push(head);
                    }
                }
                Step::Push { which, part } if !taken.is_empty() => {
                    let head = taken.remove(which % taken.len());
                    let before = driver.rings();
                    queue.push(head, part);
                    prop_assert!(driver.rings() == before, "the device wrote to the driver's rings");
                    given.push((head, part));
                    free.push(head);
                }
                // A device puts back only what it took last.
                Step::Unpop if !taken.is_empty() && offered.len() + taken.len() <= usize::from(SIZE) => {
                    let Some(head) = taken.pop() else { continue };
                    if driver.offered_before(queue.ring_position()) == head {
                        queue.unpop(1);
                        offered.push_front(head);
                    } else {
                        taken.push(head);
                    }
                }
                Step::Push { .. } | Step::Unpop => {}
            }
        }
        let total = given.len();
        let first = total.saturating_sub(usize::from(SIZE));
        for (n, (head, part)) in given.iter().enumerate().skip(first) {
            prop_assert_eq!(driver.used_at(n), (u32::from(*head), *part));
        }
        prop_assert_eq!(usize::from(driver.used_idx()), total);
        prop_assert!(driver.rest_is_untouched(), "something outside the rings was written");
    }

    /// Indices and heads out of thin air: a fault or a chain, never a panic, and never more at once than fit.
    #[test]
    fn wild_indices_never_break_the_queue(words in proptest::collection::vec((any::<u16>(), 0u16..20), 1..100)) {
        let ram = ram();
        let driver = Driver::new(&ram, 0, SIZE);
        (0..SIZE).for_each(|n| driver.raw(n, 0x8_0000, 8, u32::from(n) % 4, (n + 1) % SIZE));
        let mut queue = queue(&driver).0;
        let mut chain = Chain::default();
        let mut held = 0;
        for (index, head) in words {
            driver.set_avail_idx(if index & 1 == 0 { queue.ring_position().wrapping_add(index % 20) } else { index });
            driver.set_head(queue.ring_position() % SIZE, head);
            match queue.pop(&mut chain) {
                Ok(true) => held += 1,
                Ok(false) => {}
                Err(fault) => {
                    let queued = matches!(
                        fault,
                        RingFault::AvailIndex { .. }
                            | RingFault::Head { .. }
                            | RingFault::InFlight { .. }
                            | RingFault::Loop { .. }
                            | RingFault::Order
                    );
                    prop_assert!(queued, "{fault}");
                }
            }
            prop_assert!(held <= SIZE);
            if index % 5 == 0 && held > 0 {
                queue.push(chain.head, 0);
                held -= 1;
            }
        }
    }
}
