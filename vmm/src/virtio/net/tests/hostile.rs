//! Chains and rings that virtio 1.3 forbids: each ends the VM with a sentence, or loses only the frame.

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::*;
use crate::virtio::Progress;
use crate::virtio::testing::ram;

/// What a driver with a queue for each direction does, and which of them is asked.
fn fault_of(direction: u8, act: impl FnOnce(&mut Driver<'_>)) -> String {
    let ram = ram();
    let mut drivers = [Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16)];
    act(&mut drivers[usize::from(direction)]);
    let mut active = activate(net(vec![wire().0], options()), &[&drivers[0], &drivers[1]], MRG_RXBUF).unwrap();
    match active.ready(direction) {
        Ok(progress) => format!("no fault, {progress:?}"),
        Err(fault) => {
            assert!(!matches!(fault, DeviceFault::Host { .. }), "{fault}");
            fault.to_string()
        }
    }
}

/// An indirect table of `count` pieces of `len` bytes.
fn indirect(driver: &mut Driver<'_>, count: u16, len: u32, flags: u32) {
    let table = 0x10_0000;
    for n in 0..count {
        let next = if n + 1 < count { VRING_DESC_F_NEXT } else { 0 };
        driver.raw_at(table + 16 * u64::from(n), 0x8_0000, len, flags | next, n + 1);
    }
    driver.raw(0, table, 16 * u32::from(count), VRING_DESC_F_INDIRECT, 0);
    driver.offer(0);
}

#[test]
fn chains_of_the_wrong_shape_are_named() {
    type Parts = &'static [(u64, u32, bool)];
    let cases: [(u8, Parts, &str); 9] = [
        (TRANSMIT, &[(0x8_0000, 11, false)], "12-byte header"),
        (TRANSMIT, &[(0x8_0000, 4, false), (0x8_1000, 7, false)], "12-byte header"),
        (TRANSMIT, &[(0x8_0000, 0, false)], "12-byte header"),
        (TRANSMIT, &[(0x8_0000, 100, true)], "read-only"),
        (TRANSMIT, &[(0x8_0000, 100, false), (0x8_1000, 100, true)], "read-only"),
        (RECEIVE, &[(0x8_0000, 11, true)], "12-byte header"),
        (RECEIVE, &[(0x8_0000, 0, true)], "12-byte header"),
        (RECEIVE, &[(0x8_0000, 100, false)], "write-only"),
        (RECEIVE, &[(0x8_0000, 12, false), (0x8_1000, 1500, true)], "write-only"),
    ];
    for (direction, parts, words) in cases {
        let fault = fault_of(direction, |driver| {
            driver.chain(parts);
        });
        assert!(fault.starts_with(&format!("net0 queue {direction}: ")) && fault.contains(words), "{parts:?}: {fault}");
    }
}

#[test]
fn broken_rings_are_named() {
    type Act = fn(&mut Driver<'_>);
    let cases: [(Act, &str); 6] = [
        (|d| d.set_avail_idx(17), "17 entries ahead"),
        (|d| d.offer(16), "names descriptor 16"),
        (
            |d| {
                d.raw(0, 0x8_0000, 20, VRING_DESC_F_NEXT, 0);
                d.offer(0);
            },
            "longer than its table",
        ),
        (
            |d| {
                d.raw(0, 0x8_0000, 20, VRING_DESC_F_NEXT, 99);
                d.offer(0);
            },
            "continues at 99",
        ),
        (
            |d| {
                d.chain(&[(0xffff_ffff_0000, 100, false)]);
            },
            "outside guest memory",
        ),
        (
            |d| {
                d.raw(0, 0x8_0000, 17, VRING_DESC_F_INDIRECT, 0);
                d.offer(0);
            },
            "indirect table of 17 bytes",
        ),
    ];
    for direction in [RECEIVE, TRANSMIT] {
        for (act, words) in cases {
            let fault = fault_of(direction, act);
            assert!(fault.contains(words), "queue {direction}, {words:?}: {fault}");
        }
    }
}

#[test]
fn giant_chains_are_named_and_the_longest_legal_one_is_taken() {
    let transmit = |count| fault_of(TRANSMIT, |driver| indirect(driver, count, 13, 0));
    assert!(transmit(1025).contains("at most 1024 pieces"));
    assert_eq!(transmit(1024), "no fault, Drained");
    let receive = |count| fault_of(RECEIVE, |driver| indirect(driver, count, 13, VRING_DESC_F_WRITE));
    assert!(receive(1024).contains("at most 1023 pieces"));
    assert_eq!(receive(1023), "no fault, Drained");
}

#[test]
fn frame_beyond_any_link_is_lost_alone() {
    let ram = ram();
    let Card { mut transmit, peer, mut active, .. } = Card::new(&ram);
    transmit.chain(&[(0x8_0000, 70_000, false)]);
    transmit.chain(&[(0x8_0000, 72, false)]);
    active.ready(TRANSMIT).unwrap();
    assert_eq!(transmit.used(), [(0, 0), (1, 0)]);
    assert_eq!((peer.take().unwrap().len(), peer.count(), active.stats().errors), (72, 0, 1));
}

#[test]
fn more_tiny_buffers_than_fit_at_once_are_taken_in_turn() {
    let ram = ram();
    let Card { mut receive, peer, mut active, .. } = Card::new(&ram);
    // Two chains of 600 pieces each: only one is held at a time.
    let table = 0x10_0000;
    for n in 0..600u16 {
        let next = if n < 599 { VRING_DESC_F_NEXT } else { 0 };
        receive.raw_at(table + 16 * u64::from(n), 0x8_0000 + 2 * u64::from(n), 2, VRING_DESC_F_WRITE | next, n + 1);
    }
    for head in 0..2 {
        receive.raw(head, table, 16 * 600, VRING_DESC_F_INDIRECT, 0);
        receive.offer(head);
    }
    for _ in 0..2 {
        peer.send(&frame(1000));
    }
    active.ready(LINK).unwrap();
    assert_eq!(receive.used(), [(0, 1012), (1, 1012)]);
    assert_eq!(receive.bytes(0x8_000c, 1000), frame(1000)[12..]);
}

#[test]
fn missing_queue_and_broken_feature_rule_are_the_guests_fault() {
    let ram = ram();
    let receive = Driver::new(&ram, 0, 16);
    let fault = activate(net(vec![wire().0], options()), &[&receive], 0).err().unwrap().to_string();
    assert!(fault.contains("net0: driver did not enable queue 1"), "{fault}");
    let transmit = Driver::new(&ram, 1, 16);
    let tso4_alone = 1 << 7;
    let fault = activate(net(vec![wire().0], options()), &[&receive, &transmit], tso4_alone).err().unwrap();
    assert!(matches!(fault, DeviceFault::Guest { .. }) && fault.to_string().contains("GUEST_TSO4"), "{fault}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever lies in memory, and whatever comes over the cable.
    #[test]
    fn arbitrary_memory_never_panics(data in proptest::collection::vec(any::<u8>(), 64..2048)) {
        fuzz_net(&data);
    }

    /// However a driver cuts its buffers, a frame arrives whole and the lengths add up.
    #[test]
    fn frames_survive_any_cut_of_the_buffers(cuts in proptest::collection::vec(12u32..700, 1..16), len in 14usize..3000) {
        let ram = ram();
        let Card { mut receive, peer, mut active, .. } = Card::new(&ram);
        for (n, cut) in cuts.iter().enumerate() {
            receive.chain(&[(0x8_0000 + 0x1000 * n as u64, *cut, true)]);
        }
        let sent = frame(len);
        peer.send(&sent);
        prop_assert_eq!(active.ready(LINK).unwrap(), Progress::Drained);
        let used = receive.used();
        if cuts.iter().sum::<u32>() as usize >= sent.len() {
            let got: Vec<u8> =
                used.iter().flat_map(|(head, len)| receive.bytes(0x8_0000 + 0x1000 * u64::from(*head), *len as usize)).collect();
            prop_assert_eq!(&got[12..], &sent[12..]);
            prop_assert_eq!(usize::from(got[10]), used.len());
        } else {
            prop_assert!(used.is_empty());
        }
    }
}
