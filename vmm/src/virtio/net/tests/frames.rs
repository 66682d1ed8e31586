//! Frames of well-behaved drivers.

use holdfast_links::{UnixLink, unix};

use super::super::features::GUEST_CSUM;
use super::*;
use crate::virtio::testing::ram;
use crate::virtio::{Device, Progress};

#[test]
fn config_space_holds_address_link_pairs_and_mtu() {
    let space = net(vec![wire().0, wire().0], options()).config_space().to_vec();
    assert_eq!(space, [2, 0, 0, 0, 0, 1, 1, 0, 2, 0, 0x78, 0x05]);
    assert_eq!(net(vec![wire().0, wire().0], options()).queue_sizes(), [256, 256, 256, 256, 64]);
    assert_eq!(net(vec![wire().0], options()).queue_sizes(), [256, 256]);
}

#[test]
fn sent_frames_reach_the_wire_whole_however_they_are_cut() {
    for cuts in [&[112][..], &[12, 100], &[5, 7, 100], &[1, 110, 1], &[0, 12, 0, 100, 0]] {
        let ram = ram();
        let Card { mut transmit, peer, mut active, .. } = Card::new(&ram);
        let sent = frame(100);
        let (mut parts, mut at) = (Vec::new(), 0);
        for (n, cut) in cuts.iter().enumerate() {
            let address = 0x8_0000 + 0x1000 * n as u64;
            transmit.write(address, &sent[at..at + cut]);
            parts.push((address, *cut as u32, false));
            at += cut;
        }
        transmit.chain(&parts);
        assert_eq!(active.ready(TRANSMIT).unwrap(), Progress::Drained);
        assert_eq!(peer.take().unwrap(), sent, "{cuts:?}");
        assert_eq!(transmit.used(), [(0, 0)]);
        let stats = active.stats();
        assert_eq!((stats.out_ops, stats.out_bytes, stats.errors), (1, 100, 0));
    }
}

#[test]
fn received_frame_spans_mergeable_buffers() {
    let ram = ram();
    let Card { mut receive, peer, mut active, .. } = Card::new(&ram);
    for n in 0..4 {
        receive.chain(&[(0x8_0000 + n * 0x1000, 1024, true)]);
    }
    let sent = frame(1500);
    peer.send(&sent);
    active.ready(LINK).unwrap();
    assert_eq!(receive.used(), [(0, 1024), (1, 488)]);
    let first = receive.bytes(0x8_0000, 1024);
    assert_eq!(first[10..12], [2, 0], "num_buffers");
    assert_eq!(first[12..], sent[12..1024]);
    assert_eq!(receive.bytes(0x8_1000, 488), sent[1024..]);
}

#[test]
fn header_split_over_descriptors_is_filled_in() {
    let ram = ram();
    let Card { mut receive, peer, mut active, .. } = Card::new(&ram);
    receive.chain(&[(0x8_0000, 11, true), (0x8_1000, 1, true), (0x8_2000, 20, true)]);
    receive.chain(&[(0x8_3000, 100, true)]);
    peer.send(&frame(60));
    active.ready(LINK).unwrap();
    assert_eq!(receive.used(), [(0, 32), (3, 40)]);
    assert_eq!((receive.bytes(0x8_000a, 1), receive.bytes(0x8_1000, 1)), (vec![2], vec![0]));
    assert_eq!(receive.bytes(0x8_2000, 20), frame(60)[12..32]);
}

#[test]
fn received_frame_fits_one_plain_buffer() {
    let ram = ram();
    let Card { mut receive, peer, mut active, .. } = Card::with(&ram, 0, [16, 16], options());
    peer.send(&frame(60));
    active.ready(LINK).unwrap();
    assert!(receive.used().is_empty(), "no buffer yet");
    receive.chain(&[(0x8_0000, 12, true), (0x9_0000, 1514, true)]);
    active.ready(RECEIVE).unwrap();
    assert_eq!(receive.used(), [(0, 72)]);
    assert_eq!(receive.bytes(0x8_0000, 12)[10..], [1, 0]);
    assert_eq!(receive.bytes(0x9_0000, 60), frame(60)[12..]);
}

#[test]
fn frame_larger_than_a_plain_buffer_is_lost_and_one_that_just_fits_is_not() {
    let ram = ram();
    let Card { mut receive, peer, mut active, .. } = Card::with(&ram, 0, [16, 16], options());
    receive.chain(&[(0x8_0000, 12 + 100, true)]);
    peer.send(&frame(101));
    peer.send(&frame(100));
    active.ready(LINK).unwrap();
    assert_eq!(receive.used(), [(0, 112)]);
    assert_eq!(active.stats().errors, 1);
}

#[test]
fn frame_that_comes_before_its_buffers_waits_for_them() {
    let ram = ram();
    let Card { mut receive, peer, mut active, .. } = Card::new(&ram);
    for n in 0..2 {
        receive.chain(&[(0x8_0000 + n * 0x1000, 100, true)]);
    }
    let sent = frame(500);
    peer.send(&sent);
    active.ready(LINK).unwrap();
    assert!(receive.used().is_empty());
    receive.chain(&[(0x8_2000, 100, true)]);
    active.ready(RECEIVE).unwrap();
    assert!(receive.used().is_empty(), "still too little");
    receive.chain(&[(0x8_3000, 1000, true)]);
    active.ready(RECEIVE).unwrap();
    assert_eq!(receive.used(), [(0, 100), (1, 100), (2, 100), (3, 212)]);
    assert_eq!(receive.bytes(0x8_000a, 2), [4, 0]);
    let got =
        [(0x8_0000, 100), (0x8_1000, 100), (0x8_2000, 100), (0x8_3000, 212)].map(|(at, len)| receive.bytes(at, len));
    assert_eq!(got.concat()[12..], sent[12..]);
    assert_eq!(active.stats().in_bytes, 500);
}

#[test]
fn frame_larger_than_the_whole_ring_is_lost_and_the_next_arrives() {
    let ram = ram();
    let Card { mut receive, peer, mut active, .. } = Card::with(&ram, MRG_RXBUF, [2, 16], options());
    receive.chain(&[(0x8_0000, 100, true)]);
    receive.chain(&[(0x8_1000, 100, true)]);
    peer.send(&frame(500));
    peer.send(&frame(60));
    active.ready(LINK).unwrap();
    assert_eq!(receive.used(), [(0, 72)]);
    assert_eq!(active.stats().errors, 1);
}

#[test]
fn runts_are_lost() {
    let ram = ram();
    let Card { mut receive, peer, mut active, .. } = Card::new(&ram);
    receive.chain(&[(0x8_0000, 2048, true)]);
    for len in [0, 1, 13] {
        peer.send(&frame(len));
    }
    peer.send(&frame(14));
    active.ready(LINK).unwrap();
    assert_eq!((receive.used(), active.stats().errors), (vec![(0, 26)], 3));
}

#[test]
fn buffers_taken_ahead_go_back_on_pause() {
    let ram = ram();
    let Card { mut receive, peer, mut active, .. } = Card::new(&ram);
    for n in 0..4 {
        receive.chain(&[(0x8_0000 + n * 0x1000, 1024, true)]);
    }
    active.ready(RECEIVE).unwrap();
    active.pause().unwrap();
    active.resume().unwrap();
    peer.send(&frame(60));
    active.ready(LINK).unwrap();
    assert_eq!(receive.used(), [(0, 72)]);
}

#[test]
fn header_flags_are_for_drivers_that_know_them() {
    // Offered to a driver that takes over checksums; cleared for one that does not (virtio 1.3 §5.1.6.4.1).
    for (features, flags) in [(GUEST_CSUM, 2), (0, 0)] {
        let ram = ram();
        let Card { mut receive, peer, mut active, .. } = Card::with(&ram, MRG_RXBUF | features, [16, 16], options());
        assert_eq!(peer.asked.lock().unwrap().offloads.checksum, features != 0);
        receive.chain(&[(0x8_0000, 2048, true)]);
        let mut sent = frame(60);
        sent[0] = 2;
        peer.send(&sent);
        active.ready(LINK).unwrap();
        assert_eq!(receive.bytes(0x8_0000, 1), [flags]);
    }
}

#[test]
fn full_cable_keeps_frames_in_order_until_it_has_room() {
    let ram = ram();
    let Card { mut transmit, peer, mut active, .. } = Card::with(&ram, MRG_RXBUF, [16, 256], options());
    const COUNT: u32 = 200;
    for n in 0..COUNT {
        // Sizes tell the frames apart.
        transmit.chain(&[(0x10_0000, 12 + 14 + n, false)]);
    }
    active.ready(TRANSMIT).unwrap();
    let mut sizes = Vec::new();
    for _ in 0..COUNT {
        sizes.extend(std::iter::from_fn(|| peer.take()).map(|frame| frame.len() as u32 - 26));
        active.ready(LINK).unwrap();
    }
    assert!(transmit.used().len() > 1 && sizes.len() as u32 == COUNT, "{} arrived", sizes.len());
    assert!(sizes.is_sorted());
    assert_eq!(active.stats().errors, 0);
}

#[test]
fn two_cards_on_a_unix_cable_hear_each_other() {
    let ram = ram();
    let (here, there) = unix::pair().unwrap();
    let mut drivers: Vec<Driver<'_>> = (0..4).map(|n| Driver::new(&ram, n, 16)).collect();
    let cable = |fd| -> Vec<Box<dyn Link>> { vec![Box::new(UnixLink::adopt(fd).unwrap())] };
    let offered = net(cable(here.try_clone().unwrap()), options()).features();
    assert_eq!(offered & GUEST_CSUM, 0, "nothing is left to a stranger");
    let mut one = activate(net(cable(here), options()), &[&drivers[0], &drivers[1]], MRG_RXBUF).unwrap();
    let mut two = activate(net(cable(there), options()), &[&drivers[2], &drivers[3]], MRG_RXBUF).unwrap();
    let sent = frame(900);
    drivers[1].write(0x8_0000, &sent);
    drivers[1].chain(&[(0x8_0000, 912, false)]);
    drivers[2].chain(&[(0x9_0000, 1000, true)]);
    one.ready(TRANSMIT).unwrap();
    two.ready(LINK).unwrap();
    assert_eq!(drivers[2].used(), [(0, 912)]);
    let got = drivers[2].bytes(0x9_0000, 912);
    assert_eq!((&got[..12], &got[12..]), (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..], &sent[12..]));
    drop(one.deactivate().unwrap());
    assert_eq!(two.ready(LINK).unwrap(), Progress::Drained, "the other end is gone: quiet, no fault");
}
