use std::io::ErrorKind::WouldBlock;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::memory::GuestRam;
use crate::terminal::{GuestEnd, Terminal};
use crate::virtio::testing::{Driver, activation, ram};
use crate::virtio::{ActiveDevice, Device, DeviceFault, F_VERSION_1, Progress};
use holdfast_model::contract::vm::WindowSize;

/// Tokens of the device: queue numbers, and the bells of the ports.
const CONTROL_RECEIVE: u8 = 2;
const CONTROL_TRANSMIT: u8 = 3;
const BELL: u8 = 0x80;
/// VIRTIO_CONSOLE_F_SIZE and VIRTIO_CONSOLE_F_MULTIPORT.
const SIZE: u64 = 1;
const MULTIPORT: u64 = 2;
/// VIRTIO_CONSOLE_F_EMERG_WRITE, and where it is written to.
const EMERG_WRITE: u64 = 4;
const EMERG_WR: u64 = 8;
/// Control events.
const DEVICE_READY: u16 = 0;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;

/// A terminal whose other side the test holds.
fn terminal(name: &str) -> (Arc<Terminal>, UnixStream) {
    let (host, ours) = UnixStream::pair().unwrap();
    let input = ours.try_clone().unwrap();
    host.set_nonblocking(true).unwrap();
    (Terminal::new(name, Some(ours.into()), Some(input.into())), host)
}

fn console(terminals: &[&Arc<Terminal>]) -> Box<Console> {
    let ports = terminals.iter().enumerate().map(|(n, terminal)| {
        let name = (n > 0).then(|| terminal.name().to_string());
        Port::new(name, (*terminal).clone()).unwrap()
    });
    Box::new(Console::new("console".into(), ports.collect()))
}

fn drivers(ram: &Arc<GuestRam>, count: u16) -> Vec<Driver<'_>> {
    (0..count).map(|n| Driver::new(ram, n, 64)).collect()
}

type Active = (Box<dyn ActiveDevice>, Vec<Arc<EventFd>>);

fn activate(ram: &Arc<GuestRam>, console: Box<Console>, drivers: &[Driver<'_>], features: u64) -> Active {
    let drivers: Vec<_> = drivers.iter().collect();
    let (mut activation, vectors) = activation(ram, &drivers);
    activation.features = F_VERSION_1 | features;
    (console.activate(activation).unwrap(), vectors)
}

/// Sends a control message as the driver.
fn say(driver: &mut Driver<'_>, id: u32, event: u16, value: u16) {
    let mut message = id.to_le_bytes().to_vec();
    message.extend(event.to_le_bytes());
    message.extend(value.to_le_bytes());
    say_bytes(driver, &message);
}

fn say_bytes(driver: &mut Driver<'_>, message: &[u8]) {
    // Each message has its place: the device may read several at once.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let at = 0x8_0000 + NEXT.fetch_add(0x10, Ordering::Relaxed) % 0x8000;
    driver.write(at, message);
    driver.chain(&[(at, u32::try_from(message.len()).unwrap(), false)]);
}

/// Offers `count` control buffers of `len` bytes, 0x100 apart.
fn offer_control(driver: &mut Driver<'_>, count: u32, len: u32) {
    for n in 0..count {
        driver.chain(&[(0x9_0000 + 0x100 * u64::from(n), len, true)]);
    }
}

/// `(id, event, value, rest)` of each control message so far.
fn heard(driver: &Driver<'_>) -> Vec<(u32, u16, u16, Vec<u8>)> {
    let messages = driver.used().into_iter().map(|(head, len)| {
        let bytes = driver.bytes(0x9_0000 + 0x100 * u64::from(head), len as usize);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (u32::from(word(0)), word(4), word(6), bytes[8..].to_vec())
    });
    messages.collect()
}

#[test]
fn output_of_several_buffers_arrives_in_order() {
    let ram = ram();
    let mut drivers = drivers(&ram, 2);
    let (terminal, mut host) = terminal("console");
    let (mut active, vectors) = activate(&ram, console(&[&terminal]), &drivers, 0);
    drivers[1].write(0x8_0000, b"hello ");
    drivers[1].write(0x9_0000, b"world");
    drivers[1].chain(&[(0x8_0000, 3, false), (0x8_0003, 3, false)]);
    drivers[1].chain(&[(0x9_0000, 5, false)]);
    assert_eq!(active.ready(1).unwrap(), Progress::Drained);
    let mut got = [0; 11];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello world");
    assert_eq!(drivers[1].used(), [(0, 0), (2, 0)]);
    assert_eq!(vectors[1].read().unwrap(), 1);
    let stats = active.stats();
    assert_eq!((stats.out_bytes, stats.out_ops), (11, 2));
}

#[test]
fn input_waits_for_buffers_and_fills_them() {
    let ram = ram();
    let mut drivers = drivers(&ram, 2);
    let (terminal, mut host) = terminal("console");
    let (mut active, vectors) = activate(&ram, console(&[&terminal]), &drivers, 0);
    host.write_all(b"ls\n").unwrap();
    active.ready(BELL).unwrap();
    assert!(drivers[0].used().is_empty(), "no buffer yet");
    // A buffer without room holds nothing up.
    drivers[0].chain(&[(0x8_0000, 0, true)]);
    drivers[0].chain(&[(0x8_0000, 64, true)]);
    active.ready(0).unwrap();
    assert_eq!(drivers[0].used(), [(0, 0), (1, 3)]);
    assert_eq!(drivers[0].bytes(0x8_0000, 3), b"ls\n");
    assert_eq!(vectors[0].read().unwrap(), 1);
    drivers[0].chain(&[(0x8_0000, 64, true)]);
    active.ready(0).unwrap();
    assert_eq!(drivers[0].used().len(), 2, "no input, the buffer stays");
    host.write_all(b"x").unwrap();
    assert!(terminal.ready(1), "the event loop tells of it");
    active.ready(BELL).unwrap();
    assert_eq!(drivers[0].used()[2], (2, 1));
}

#[test]
fn output_not_yet_seen_is_written_at_deactivation() {
    let ram = ram();
    let mut drivers = drivers(&ram, 2);
    let (terminal, mut host) = terminal("console");
    let (active, _) = activate(&ram, console(&[&terminal]), &drivers, 0);
    drivers[1].write(0x8_0000, b"bye");
    drivers[1].chain(&[(0x8_0000, 3, false)]);
    drop(active.deactivate().unwrap());
    let mut got = [0; 3];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"bye");
}

#[test]
fn giant_output_is_taken_in_turns_and_whole() {
    let ram = ram();
    let mut drivers = drivers(&ram, 2);
    let terminal = Terminal::new("console", None, None);
    let (mut active, _) = activate(&ram, console(&[&terminal]), &drivers, 0);
    // The same megabyte three times in one chain.
    drivers[1].chain(&[(0x8_0000, 1 << 20, false), (0x8_0000, 1 << 20, false), (0x8_0000, 1 << 20, false)]);
    let mut turns = 1;
    while active.ready(1).unwrap() == Progress::Again {
        assert!(drivers[1].used().is_empty());
        turns += 1;
    }
    assert!(turns >= 12, "{turns} turns for 3 MiB");
    assert_eq!(drivers[1].used(), [(0, 0)]);
    assert_eq!(terminal.stats().out_bytes, 3 << 20);
}

#[test]
fn driver_without_multiport_gets_port_0_of_a_console_with_more() {
    let ram = ram();
    let mut drivers = drivers(&ram, 2);
    let ((first, mut host), (second, _)) = (terminal("console"), terminal("agent"));
    let device = console(&[&first, &second]);
    assert_eq!(device.features() & (SIZE | MULTIPORT), SIZE | MULTIPORT);
    assert_eq!(device.queue_sizes().len(), 6);
    let (mut active, _) = activate(&ram, device, &drivers, SIZE);
    assert_eq!(active.sources().len(), 3, "two queues and a bell");
    drivers[0].chain(&[(0x8_0000, 64, true)]);
    host.write_all(b"in").unwrap();
    active.ready(BELL).unwrap();
    assert_eq!(drivers[0].used(), [(0, 2)]);
}

#[test]
fn driver_without_multiport_finds_another_size_in_the_configuration_space() {
    let ram = ram();
    let drivers = drivers(&ram, 2);
    let (terminal, _host) = terminal("console");
    let size = WindowSize { columns: 100, rows: 40 };
    assert!(!terminal.resize(size), "no driver yet");
    let device = console(&[&terminal]);
    let space = device.config_space();
    let (mut activation, vectors) = activation(&ram, &drivers.iter().collect::<Vec<_>>());
    activation.features |= SIZE;
    activation.interrupts.set_config_vector(1);
    let mut active = device.activate(activation).unwrap();
    assert!(terminal.resize(size));
    active.ready(BELL).unwrap();
    assert_eq!(space.to_vec()[..4], [100, 0, 40, 0]);
    assert_eq!(vectors[1].read().unwrap(), 1);
    active.ready(BELL).unwrap();
    assert!(vectors[1].read().is_err(), "told once");
}

#[test]
fn single_port_offers_no_multiport_and_tells_its_size() {
    let terminal = Terminal::with_size("console", None, None, WindowSize { columns: 0x84, rows: 0x32 });
    let device = console(&[&terminal]);
    assert_eq!(device.features() & (SIZE | MULTIPORT), SIZE);
    assert_eq!(device.config_space().to_vec(), [0x84, 0, 0x32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn emergency_writes_come_out_before_while_and_after_a_driver_uses_the_device() {
    let ram = ram();
    let ((first, mut host), (second, mut agent)) = (terminal("console"), terminal("agent"));
    let device = console(&[&first, &second]);
    assert_eq!(device.features() & EMERG_WRITE, EMERG_WRITE);
    let space = device.config_space();
    // Not even a feature is acknowledged.
    space.write(EMERG_WR, &u32::from(b'a').to_le_bytes());
    let mut drivers = drivers(&ram, 6);
    let (mut active, _) = activate(&ram, device, &drivers, 0);
    // The upper three bytes mean nothing.
    space.write(EMERG_WR, &[b'b', 0xff, 0xff, 0xff]);
    drivers[1].write(0x8_0000, b"-queue-");
    drivers[1].chain(&[(0x8_0000, 7, false)]);
    active.ready(1).unwrap();
    space.write(EMERG_WR, b"c");
    let device = active.deactivate().unwrap();
    device.config_space().write(EMERG_WR, b"d");

    let mut got = [0; 11];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ab-queue-cd");
    assert_eq!((agent.read(&mut got).unwrap_err().kind(), second.stats().out_bytes), (WouldBlock, 0), "port 0 alone");
    // Who comes late sees them as all other output.
    let late = first.attach(true).unwrap();
    let mut seen = [0; 11];
    UnixStream::from(late.client).read_exact(&mut seen).unwrap();
    assert_eq!((&seen, late.replayed, first.stats().out_bytes), (b"ab-queue-cd", 11, 11));
}

/// A console with the port `agent`, its driver ready, all news told.
fn multiport<'a>(ram: &'a Arc<GuestRam>, terminals: [&Arc<Terminal>; 2]) -> (Box<dyn ActiveDevice>, Vec<Driver<'a>>) {
    let mut drivers = drivers(ram, 6);
    let (mut active, _) = activate(ram, console(&terminals), &drivers, SIZE | MULTIPORT);
    offer_control(&mut drivers[2], 30, 0x100);
    say(&mut drivers[3], u32::MAX, DEVICE_READY, 1);
    say(&mut drivers[3], 0, PORT_READY, 1);
    say(&mut drivers[3], 1, PORT_READY, 1);
    say(&mut drivers[3], 0, PORT_OPEN, 1);
    assert_eq!(active.ready(CONTROL_TRANSMIT).unwrap(), Progress::Drained);
    (active, drivers)
}

#[test]
fn ports_are_announced_with_console_size_name_and_open() {
    let ram = ram();
    let ((first, _), (second, _)) = (terminal("console"), terminal("org.example.agent"));
    let (_active, drivers) = multiport(&ram, [&first, &second]);
    assert_eq!(
        heard(&drivers[2]),
        [
            (0, 1, 1, vec![]),
            (0, 4, 1, vec![]),
            (0, 6, 1, vec![]),
            (0, 5, 1, vec![80, 0, 24, 0]),
            (1, 1, 1, vec![]),
            (1, 7, 1, b"org.example.agent\0".to_vec()),
            (1, 6, 1, vec![]),
        ]
    );
}

#[test]
fn news_wait_for_control_buffers_and_repeated_questions_cost_one_answer() {
    let ram = ram();
    let mut drivers = drivers(&ram, 6);
    let ((first, _), (second, _)) = (terminal("console"), terminal("agent"));
    let (mut active, vectors) = activate(&ram, console(&[&first, &second]), &drivers, MULTIPORT);
    for _ in 0..50 {
        say(&mut drivers[3], u32::MAX, DEVICE_READY, 1);
    }
    active.ready(CONTROL_TRANSMIT).unwrap();
    assert_eq!(drivers[3].used().len(), 50);
    assert!(heard(&drivers[2]).is_empty());
    offer_control(&mut drivers[2], 10, 0x100);
    active.ready(CONTROL_RECEIVE).unwrap();
    assert_eq!(heard(&drivers[2]), [(0, 1, 1, vec![]), (1, 1, 1, vec![])]);
    assert_eq!(vectors[2].read().unwrap(), 1);
}

#[test]
fn named_port_carries_both_ways_once_the_guest_has_opened_it() {
    let ram = ram();
    let ((first, _), (second, mut host)) = (terminal("console"), terminal("agent"));
    let (mut active, mut drivers) = multiport(&ram, [&first, &second]);
    host.write_all(b"question").unwrap();
    drivers[4].chain(&[(0xa_0000, 64, true)]);
    active.ready(BELL + 1).unwrap();
    active.ready(4).unwrap();
    assert!(drivers[4].used().is_empty(), "nobody in the guest listens");
    // Twice: nothing of it is counted.
    say(&mut drivers[3], 1, PORT_OPEN, 1);
    say(&mut drivers[3], 1, PORT_OPEN, 1);
    active.ready(CONTROL_TRANSMIT).unwrap();
    active.ready(4).unwrap();
    assert_eq!(drivers[4].used(), [(0, 8)]);
    drivers[5].write(0xb_0000, b"answer");
    drivers[5].chain(&[(0xb_0000, 6, false)]);
    active.ready(5).unwrap();
    let mut got = [0; 6];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"answer");
    say(&mut drivers[3], 1, PORT_OPEN, 0);
    active.ready(CONTROL_TRANSMIT).unwrap();
    host.write_all(b"more").unwrap();
    assert!(second.ready(1));
    drivers[4].chain(&[(0xa_0000, 64, true)]);
    active.ready(BELL + 1).unwrap();
    assert_eq!(drivers[4].used().len(), 1, "closed again");
}

#[test]
fn another_window_size_is_told_once() {
    let ram = ram();
    let ((first, _), (second, _)) = (terminal("console"), terminal("agent"));
    let (mut active, drivers) = multiport(&ram, [&first, &second]);
    let before = heard(&drivers[2]).len();
    assert!(first.resize(WindowSize { columns: 100, rows: 40 }));
    assert!(!second.resize(WindowSize { columns: 100, rows: 40 }), "not a console");
    active.ready(BELL).unwrap();
    active.ready(BELL).unwrap();
    assert_eq!(heard(&drivers[2])[before..], [(0, 5, 1, vec![100, 0, 40, 0])]);
    drop(active.deactivate().unwrap());
    assert!(!first.resize(WindowSize { columns: 1, rows: 1 }), "no driver any more");
}

#[test]
fn work_that_arrives_while_paused_is_found_after_resume() {
    let ram = ram();
    let ((first, mut host), (second, _)) = (terminal("console"), terminal("agent"));
    let (mut active, mut drivers) = multiport(&ram, [&first, &second]);
    active.pause().unwrap();
    drivers[1].write(0xc_0000, b"out");
    drivers[1].chain(&[(0xc_0000, 3, false)]);
    active.resume().unwrap();
    let mut ready: Vec<u8> = Vec::new();
    for source in active.sources() {
        let mut poll = libc::pollfd { fd: source.fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, no waiting.
        if unsafe { libc::poll(&mut poll, 1, 0) } == 1 {
            ready.push(source.token);
        }
    }
    ready.sort_unstable();
    assert_eq!(ready, [0, 1, 2, 3, 4, 5], "each queue is looked at");
    active.ready(1).unwrap();
    let mut got = [0; 3];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"out");
}

#[test]
fn bell_rings_for_the_host() {
    let port = Port::new(None, Terminal::new("console", None, None)).unwrap();
    let (_, bell) = port.ends();
    bell.host_changed();
    assert_eq!(port.bell.read().unwrap(), 1);
}

/// What a hostile driver does, and a word of the fault that it is.
#[test]
fn broken_messages_and_buffers_are_named_faults() {
    type Act = fn(&mut [Driver<'_>]);
    let cases: [(u8, &[&str], Act); 10] = [
        (3, &["console: control message for port 2 of 2"], |d| say(&mut d[3], 2, PORT_READY, 1)),
        (3, &["console: control message for port 4294967295"], |d| say(&mut d[3], u32::MAX, PORT_OPEN, 1)),
        (3, &["console: control message with event 1"], |d| say(&mut d[3], 0, 1, 1)),
        (3, &["console: control message of 5 bytes"], |d| say_bytes(&mut d[3], &[0; 5])),
        (3, &["console: control message of 0 bytes"], |d| {
            d[3].chain(&[(0x8_0000, 0, false)]);
        }),
        (3, &["console queue 3", "for the device to read"], |d| {
            d[3].chain(&[(0x8_0000, 8, true)]);
        }),
        (2, &["console queue 2", "does not fit"], |d| {
            d[2].chain(&[(0x8_0000, 7, true)]);
        }),
        (2, &["console queue 2", "does not fit"], |d| {
            d[2].chain(&[(0x8_0000, 64, false)]);
        }),
        (4, &["console queue 4", "for the device to write"], |d| {
            d[4].chain(&[(0x8_0000, 64, false)]);
        }),
        (5, &["console queue 5", "for the device to read"], |d| {
            d[5].chain(&[(0x8_0000, 8, false), (0x9_0000, 8, true)]);
        }),
    ];
    for (queue, words, act) in cases {
        let ram = ram();
        let ((first, _), (second, mut host)) = (terminal("console"), terminal("agent"));
        let mut drivers = drivers(&ram, 6);
        let (mut active, _) = activate(&ram, console(&[&first, &second]), &drivers, MULTIPORT);
        host.write_all(b"input").unwrap();
        say(&mut drivers[3], u32::MAX, DEVICE_READY, 1);
        say(&mut drivers[3], 1, PORT_OPEN, 1);
        active.ready(CONTROL_TRANSMIT).unwrap();
        act(&mut drivers);
        let fault = active.ready(queue).unwrap_err();
        assert!(matches!(fault, DeviceFault::Guest { .. } | DeviceFault::Ring { .. }));
        let text = fault.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} not in {text:?}");
    }
}

#[test]
fn giant_control_message_is_read_as_far_as_it_means_something() {
    let ram = ram();
    let ((first, _), (second, _)) = (terminal("console"), terminal("agent"));
    let (mut active, mut drivers) = multiport(&ram, [&first, &second]);
    drivers[3].write(0x8_0000, &[1, 0, 0, 0, 6, 0, 1, 0]);
    drivers[3].chain(&[(0x8_0000, 1 << 20, false)]);
    assert_eq!(active.ready(CONTROL_TRANSMIT).unwrap(), Progress::Drained);
}

#[test]
fn missing_queues_are_a_named_fault() {
    let ram = ram();
    for (queues, features, words) in [(1, 0, "1 of 2 queues"), (4, MULTIPORT, "4 of 6 queues")] {
        let ((first, _), (second, _)) = (terminal("console"), terminal("agent"));
        let drivers = drivers(&ram, queues);
        let drivers: Vec<_> = drivers.iter().collect();
        let (mut activation, _) = activation(&ram, &drivers);
        activation.features |= features;
        let fault = console(&[&first, &second]).activate(activation).err().unwrap().to_string();
        assert!(fault.contains(words), "{words:?} not in {fault:?}");
    }
}
