use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use super::*;
use crate::virtio::Device;
use crate::virtio::testing::{Driver, activation, ram};

fn pipe() -> (File, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: fresh descriptors, owned by nobody else.
    unsafe { (File::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
}

#[test]
fn output_of_several_buffers_arrives_in_order() {
    let ram = ram();
    let (receive, mut transmit) = (Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16));
    transmit.write(0x8_0000, b"hello ");
    transmit.write(0x9_0000, b"world");
    transmit.chain(&[(0x8_0000, 6, false)]);
    transmit.chain(&[(0x9_0000, 5, false)]);
    let (activation, vectors) = activation(&ram, &[&receive, &transmit]);
    let (mut reader, writer) = pipe();
    let mut active = Box::new(Console::new("console".into(), writer, None)).activate(activation).unwrap();
    active.ready(1).unwrap();
    let mut got = [0; 11];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello world");
    assert_eq!(transmit.used(), [(0, 0), (1, 0)]);
    assert_eq!(vectors[1].read().unwrap(), 1);
}

#[test]
fn input_waits_for_buffers_and_fills_them() {
    let ram = ram();
    let (mut receive, transmit) = (Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16));
    let (activation, vectors) = activation(&ram, &[&receive, &transmit]);
    let (_out_reader, out) = pipe();
    let (reader, writer) = pipe();
    let mut active = Box::new(Console::new("console".into(), out, Some(reader.into()))).activate(activation).unwrap();
    File::from(writer).write_all(b"ls\n").unwrap();
    active.ready(3).unwrap();
    assert!(receive.used().is_empty(), "no buffer yet");
    receive.chain(&[(0x8_0000, 64, true)]);
    active.ready(0).unwrap();
    assert_eq!(receive.used(), [(0, 3)]);
    assert_eq!(receive.bytes(0x8_0000, 3), b"ls\n");
    assert_eq!(vectors[0].read().unwrap(), 1);
}

#[test]
fn output_not_yet_seen_is_written_at_deactivation() {
    let ram = ram();
    let (receive, mut transmit) = (Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16));
    let (activation, _) = activation(&ram, &[&receive, &transmit]);
    let (mut reader, writer) = pipe();
    let active = Box::new(Console::new("console".into(), writer, None)).activate(activation).unwrap();
    transmit.write(0x8_0000, b"bye");
    transmit.chain(&[(0x8_0000, 3, false)]);
    drop(active.deactivate().unwrap());
    let mut got = String::new();
    reader.read_to_string(&mut got).unwrap();
    assert_eq!(got, "bye");
}
