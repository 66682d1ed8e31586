use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;

use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::tap::Tap;
use super::*;
use crate::config::MacAddress;
use crate::virtio::testing::{Driver, activation, ram};
use crate::virtio::{ActiveDevice, Device, F_VERSION_1};

/// A datagram socket keeps frames apart as a tap does.
fn wire() -> (Tap, File) {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0, fds.as_mut_ptr()) };
    assert_eq!(made, 0);
    // SAFETY: fresh descriptors, owned by nobody else.
    unsafe { (Tap::from_prepared(File::from_raw_fd(fds[0])), File::from_raw_fd(fds[1])) }
}

fn net(tap: Tap) -> Box<Net> {
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    Box::new(Net::for_tests(tap, NetOptions { name: "net0".into(), mac, mtu: Some(1400) }))
}

fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0; tap::HEADER];
    frame.extend((0..len).map(|n| n as u8));
    frame
}

fn start<'a>(receive: &Driver<'a>, transmit: &Driver<'a>, tap: Tap, mergeable: bool) -> Box<dyn ActiveDevice> {
    let (mut activation, _) = activation(receive.ram, &[receive, transmit]);
    activation.features = F_VERSION_1 | if mergeable { 1 << VIRTIO_NET_F_MRG_RXBUF } else { 0 };
    net(tap).activate(activation).unwrap()
}

#[test]
fn config_space_holds_address_link_and_mtu() {
    let space = net(wire().0).config_space();
    assert_eq!(space.to_vec(), [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x78, 0x05]);
}

#[test]
fn sent_frames_reach_the_wire_whole() {
    let ram = ram();
    let (receive, mut transmit) = (Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16));
    let (tap, mut peer) = wire();
    let mut active = start(&receive, &transmit, tap, true);
    let sent = frame(100);
    transmit.write(0x8_0000, &sent[..12]);
    transmit.write(0x9_0000, &sent[12..]);
    transmit.chain(&[(0x8_0000, 12, false), (0x9_0000, 100, false)]);
    active.ready(1).unwrap();
    let mut got = [0; 2000];
    let len = peer.read(&mut got).unwrap();
    assert_eq!(&got[..len], &sent[..]);
    assert_eq!(transmit.used(), [(0, 0)]);
    assert_eq!(active.stats().out_bytes, 100);
}

#[test]
fn received_frame_spans_mergeable_buffers() {
    let ram = ram();
    let (mut receive, transmit) = (Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16));
    let (tap, mut peer) = wire();
    let mut active = start(&receive, &transmit, tap, true);
    for n in 0..4 {
        receive.chain(&[(0x8_0000 + n * 0x1000, 1024, true)]);
    }
    let sent = frame(1500);
    peer.write_all(&sent).unwrap();
    active.ready(2).unwrap();
    assert_eq!(receive.used(), [(0, 1024), (1, 488)]);
    let first = receive.bytes(0x8_0000, 1024);
    assert_eq!(first[10..12], [2, 0], "num_buffers");
    assert_eq!(first[12..], sent[12..1024]);
    assert_eq!(receive.bytes(0x8_1000, 488), sent[1024..]);
}

#[test]
fn received_frame_fits_one_plain_buffer() {
    let ram = ram();
    let (mut receive, transmit) = (Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16));
    let (tap, mut peer) = wire();
    let mut active = start(&receive, &transmit, tap, false);
    peer.write_all(&frame(60)).unwrap();
    active.ready(2).unwrap();
    assert!(receive.used().is_empty(), "no buffer yet");
    receive.chain(&[(0x8_0000, 12, true), (0x9_0000, 1514, true)]);
    active.ready(0).unwrap();
    assert_eq!(receive.used(), [(0, 72)]);
    assert_eq!(receive.bytes(0x8_0000, 12)[10..], [1, 0]);
    assert_eq!(receive.bytes(0x9_0000, 60), frame(60)[12..]);
}

#[test]
fn buffers_taken_ahead_go_back_on_pause() {
    let ram = ram();
    let (mut receive, transmit) = (Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16));
    let (tap, mut peer) = wire();
    let mut active = start(&receive, &transmit, tap, true);
    for n in 0..4 {
        receive.chain(&[(0x8_0000 + n * 0x1000, 1024, true)]);
    }
    active.ready(0).unwrap();
    active.pause().unwrap();
    active.resume().unwrap();
    peer.write_all(&frame(60)).unwrap();
    active.ready(2).unwrap();
    assert_eq!(receive.used(), [(0, 72)]);
}

#[test]
fn frames_without_header_are_named_faults() {
    for (queue, write) in [(0u8, true), (1, false)] {
        let ram = ram();
        let mut drivers = [Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16)];
        drivers[usize::from(queue)].chain(&[(0x8_0000, 11, write)]);
        let [receive, transmit] = &drivers;
        let mut active = start(receive, transmit, wire().0, true);
        let fault = active.ready(queue).unwrap_err().to_string();
        assert!(fault.contains(&format!("net0 queue {queue}")) && fault.contains("12-byte header"), "{fault}");
    }
}
