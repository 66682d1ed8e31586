//! Rate limits of the user-space path.

use std::time::Instant;

use super::*;
use crate::virtio::testing::ram;
use holdfast_model::contract::vm::Limits;

/// Two frames at once, then a hundred in a second.
fn two_at_once() -> Limits {
    Limits { ops_per_second: Some(100), burst_ops: Some(2), ..Limits::default() }
}

/// Lets the time pass that the device asks for, and calls it.
fn wait(active: &mut Box<dyn ActiveDevice>) {
    let at = active.deadline().expect("a deadline");
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
    active.expired().unwrap();
}

#[test]
fn sent_frames_wait_for_the_limit_and_none_is_lost() {
    let ram = ram();
    let limited = NetOptions { transmit: two_at_once(), ..options() };
    let Card { mut transmit, peer, mut active, .. } = Card::with(&ram, MRG_RXBUF, [16, 16], limited);
    assert_eq!(active.deadline(), None);
    for _ in 0..4 {
        transmit.chain(&[(0x8_0000, 72, false)]);
    }
    active.ready(TRANSMIT).unwrap();
    let first = transmit.used().len();
    assert!((2..4).contains(&first), "{first} of 4 went at once");
    while transmit.used().len() < 4 {
        wait(&mut active);
    }
    assert_eq!((peer.count(), active.stats().out_ops, active.stats().errors), (4, 4, 0));
}

#[test]
fn received_frames_wait_on_the_cable_for_the_limit() {
    let ram = ram();
    let limited = NetOptions { receive: two_at_once(), ..options() };
    let Card { mut receive, peer, mut active, .. } = Card::with(&ram, MRG_RXBUF, [16, 16], limited);
    for n in 0..8 {
        receive.chain(&[(0x8_0000 + 0x1000 * n, 2048, true)]);
    }
    for _ in 0..4 {
        peer.send(&frame(60));
    }
    active.ready(LINK).unwrap();
    let first = receive.used().len();
    assert!((2..4).contains(&first), "{first} of 4 came at once");
    while receive.used().len() < 4 {
        wait(&mut active);
    }
    assert_eq!(active.stats().in_ops, 4);
}

#[test]
fn pairs_share_one_limit() {
    let ram = ram();
    let mut drivers: Vec<Driver<'_>> = (0..5).map(|n| Driver::new(&ram, n, 16)).collect();
    let (links, peers): (_, Vec<Peer>) = (0..2).map(|_| wire()).unzip();
    let slow = Limits { ops_per_second: Some(1), burst_ops: Some(2), ..Limits::default() };
    let limited = NetOptions { transmit: slow, ..options() };
    drivers[4].write(0x10_0000, &[4, 0, 2, 0]);
    drivers[4].chain(&[(0x10_0000, 4, false), (0x10_1000, 1, true)]);
    for queue in [1, 3] {
        for _ in 0..2 {
            drivers[queue].chain(&[(0x8_0000, 72, false)]);
        }
    }
    let features = MRG_RXBUF | super::super::features::CTRL_VQ | super::super::features::MQ;
    let mut active = activate(net(links, limited), &drivers.iter().collect::<Vec<_>>(), features).unwrap();
    active.ready(super::super::active::CONTROL).unwrap();
    active.ready(TRANSMIT).unwrap();
    active.ready(4 + TRANSMIT).unwrap();
    // Two of the burst; a third only on a machine that stood still for a second.
    let sent = peers.iter().map(Peer::count).sum::<usize>();
    assert!((2..4).contains(&sent), "{sent} of 4 went at once");
    assert!(active.deadline().is_some());
}

#[test]
fn paused_card_has_no_deadline_and_goes_on_after() {
    let ram = ram();
    let slow = Limits { bytes_per_second: Some(1000), burst_bytes: Some(60), ..Limits::default() };
    let limited = NetOptions { transmit: slow, ..options() };
    let Card { mut transmit, peer, mut active, .. } = Card::with(&ram, MRG_RXBUF, [16, 16], limited);
    for _ in 0..2 {
        transmit.chain(&[(0x8_0000, 72, false)]);
    }
    active.ready(TRANSMIT).unwrap();
    assert!(active.deadline().is_some());
    active.pause().unwrap();
    assert_eq!(active.deadline(), None);
    active.resume().unwrap();
    active.ready(TRANSMIT).unwrap();
    while transmit.used().len() < 2 {
        wait(&mut active);
    }
    assert_eq!(peer.count(), 2);
}
