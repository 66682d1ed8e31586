//! Several queue pairs and the queue that chooses among them.

use super::super::active::CONTROL;
use super::super::features::{CTRL_VQ, MQ};
use super::*;
use crate::virtio::testing::ram;
use crate::virtio::{Device, Progress};

const ALL: u64 = MRG_RXBUF | CTRL_VQ | MQ;

/// A card with two pairs and a driver for each of its queues.
struct Bench<'a> {
    drivers: Vec<Driver<'a>>,
    peers: Vec<Peer>,
    active: Box<dyn ActiveDevice>,
}

impl<'a> Bench<'a> {
    fn new(ram: &'a Arc<crate::memory::GuestRam>) -> Self {
        let drivers: Vec<Driver<'a>> = (0..5).map(|n| Driver::new(ram, n, 16)).collect();
        let (links, peers) = (0..2).map(|_| wire()).unzip();
        let active = activate(net(links, options()), &drivers.iter().collect::<Vec<_>>(), ALL).unwrap();
        Self { drivers, peers, active }
    }

    /// Sends a command cut in two, on `queue`; the answer.
    fn command(&mut self, queue: usize, bytes: &[u8]) -> u8 {
        let driver = &mut self.drivers[queue];
        driver.write(0x10_0000, bytes);
        driver.write(0x10_1000, &[0xaa]);
        let cut = bytes.len().min(2) as u32;
        let parts = [
            (0x10_0000, cut, false),
            (0x10_0000 + u64::from(cut), bytes.len() as u32 - cut, false),
            (0x10_1000, 1, true),
        ];
        driver.chain(&parts);
        assert_eq!(self.active.ready(CONTROL).unwrap(), Progress::Drained);
        assert_eq!(driver.used().last().map(|used| used.1), Some(1));
        driver.bytes(0x10_1000, 1)[0]
    }

    fn enabled(&self) -> [bool; 2] {
        [self.peers[0].enabled(), self.peers[1].enabled()]
    }

    /// Whether a frame from each of the cables arrives.
    fn arrives(&mut self) -> [bool; 2] {
        [0, 1].map(|pair| {
            let before = self.drivers[2 * pair].used().len();
            self.drivers[2 * pair].chain(&[(0x8_0000, 2048, true)]);
            self.peers[pair].send(&frame(60));
            self.active.ready(4 * pair as u8 + LINK).unwrap();
            self.drivers[2 * pair].used().len() > before
        })
    }
}

#[test]
fn pairs_come_into_use_and_go_again() {
    let ram = ram();
    let mut bench = Bench::new(&ram);
    assert_eq!((bench.enabled(), bench.arrives()), ([true, false], [true, false]), "until the driver says more");
    assert_eq!(bench.command(4, &[4, 0, 2, 0]), 0);
    assert_eq!(bench.enabled(), [true, true]);
    // The frame that waited, and a new one.
    assert_eq!(bench.arrives(), [true, true]);
    bench.drivers[3].chain(&[(0x9_0000, 72, false)]);
    bench.active.ready(4 + TRANSMIT).unwrap();
    assert_eq!((bench.peers[0].count(), bench.peers[1].count()), (0, 1));
    assert_eq!(bench.command(4, &[4, 0, 1, 0]), 0);
    assert_eq!((bench.enabled(), bench.arrives()), ([true, false], [true, false]));
    assert_eq!(bench.active.stats().in_ops, 3 + 2, "three on the first pair, two on the second: none was lost");
}

#[test]
fn commands_that_cannot_be_done_are_refused_and_change_nothing() {
    let ram = ram();
    let mut bench = Bench::new(&ram);
    for bytes in [
        &[4, 0, 0, 0][..], // no pair
        &[4, 0, 3, 0],     // more than there are
        &[4, 0, 0, 0x80],  // the largest number the specification knows
        &[4, 0, 2],        // short
    ] {
        assert_eq!(bench.command(4, bytes), 1, "{bytes:?}");
        assert_eq!(bench.enabled(), [true, false]);
    }
    assert_eq!(bench.command(4, &[4, 0, 2, 0]), 0, "still of use");
}

#[test]
fn unknown_classes_are_refused() {
    let ram = ram();
    // Receive mode, MAC filter, VLAN, announce, RSS, offloads, statistics; long; empty.
    for bytes in [
        &[0, 0, 1][..],
        &[1, 0, 0, 0, 0, 0],
        &[2, 0, 1, 0],
        &[3, 0],
        &[4, 1, 0, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[255, 255],
        &[4, 0, 2, 0, 0],
        &[],
    ] {
        assert_eq!(Bench::new(&ram).command(4, bytes), 1, "{bytes:?}");
        for index in 0..5 {
            Driver::new(&ram, index, 16).clear_used();
            Driver::new(&ram, index, 16).set_avail_idx(0);
        }
    }
}

#[test]
fn command_without_room_for_an_answer_is_a_named_fault() {
    let ram = ram();
    let mut bench = Bench::new(&ram);
    bench.drivers[4].chain(&[(0x8_0000, 4, false)]);
    let fault = bench.active.ready(CONTROL).unwrap_err().to_string();
    assert!(fault.starts_with("net0 queue 4: a command ends with a byte"), "{fault}");
}

#[test]
fn driver_without_multiqueue_has_its_control_queue_third() {
    let ram = ram();
    let drivers: Vec<Driver<'_>> = (0..3).map(|n| Driver::new(&ram, n, 16)).collect();
    let (links, peers) = (0..2).map(|_| wire()).unzip();
    let active = activate(net(links, options()), &drivers.iter().collect::<Vec<_>>(), MRG_RXBUF | CTRL_VQ).unwrap();
    let mut bench = Bench { drivers, peers, active };
    assert_eq!(bench.command(2, &[4, 0, 2, 0]), 1, "there is no second pair to use");
    assert_eq!(bench.command(2, &[4, 0, 1, 0]), 0);
    assert_eq!(bench.enabled(), [true, false]);
}

#[test]
fn pair_without_queues_cannot_be_used() {
    let ram = ram();
    let drivers: Vec<Driver<'_>> = (0..5).map(|n| Driver::new(&ram, n, 16)).collect();
    let (links, peers) = (0..2).map(|_| wire()).unzip();
    let (mut activation, _) = activation(&ram, &drivers.iter().collect::<Vec<_>>());
    activation.features = F_VERSION_1 | ALL;
    activation.queues.retain(|queue| queue.index != 3);
    let active = net(links, options()).activate(activation).unwrap();
    let mut bench = Bench { drivers, peers, active };
    assert_eq!(bench.command(4, &[4, 0, 2, 0]), 1);
    assert_eq!(bench.enabled(), [true, false]);
}

#[test]
fn pause_and_reset_stop_every_pair_and_the_card_starts_again() {
    let ram = ram();
    let mut bench = Bench::new(&ram);
    assert_eq!(bench.command(4, &[4, 0, 2, 0]), 0);
    bench.active.pause().unwrap();
    bench.active.resume().unwrap();
    assert_eq!(bench.arrives(), [true, true]);
    let Bench { drivers, peers, active } = bench;
    let device = active.deactivate().unwrap();
    assert_eq!(peers.iter().map(Peer::enabled).collect::<Vec<_>>(), [false, false]);
    assert_eq!(device.queue_sizes().len(), 5);
    for driver in &drivers {
        driver.set_avail_idx(0);
        driver.clear_used();
    }
    let drivers: Vec<Driver<'_>> = (0..5).map(|n| Driver::new(&ram, n, 16)).collect();
    let (mut activation, _) = activation(&ram, &drivers.iter().collect::<Vec<_>>());
    activation.features = F_VERSION_1 | ALL;
    let active = device.activate(activation).unwrap();
    let mut bench = Bench { drivers, peers, active };
    assert_eq!((bench.enabled(), bench.arrives()), ([true, false], [true, false]), "one pair again");
}
