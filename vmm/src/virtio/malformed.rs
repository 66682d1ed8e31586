//! Everything that virtio 1.3 §2.7 forbids a driver, and that each queue of each device answers it with the same named
//! fault, which ends the VM as the guest's.
//!
//! The wrong way to see this would be one device for all: each has a loop of its own around its queues. Not here: the data
//! queues of vhost back ends, which the host's kernel reads.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use holdfast_links::{UnixLink, unix};
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT as INDIRECT, VRING_DESC_F_NEXT as NEXT, VRING_DESC_F_WRITE as WRITE,
};

use super::balloon::Balloon;
use super::block::{Block, BlockOptions};
use super::chain::RingFault;
use super::console::{Console, Port};
use super::net::{Lane, Net, NetOptions};
use super::rng::Rng;
use super::testing::{Driver, RAM_BYTES, activation, memory_file, ram};
use super::{ActiveDevice, Device, DeviceFault, Order};
use crate::event_loop::end_of;
use crate::memory::GuestRam;
use crate::terminal::Terminal;
use holdfast_model::contract::end::ExitClass;
use holdfast_model::contract::vm::{BalloonConfig, MacAddress};

/// Of every queue here.
pub(super) const SIZE: u16 = 16;
/// Where shapes put buffers and indirect tables.
pub(super) const BUFFER: u64 = 0x8_0000;
pub(super) const INDIRECT_TABLE: u64 = 0x9_0000;
pub(super) const END: u64 = RAM_BYTES as u64;

/// What a driver lays into a ring.
type Lay = fn(&mut Driver<'_>);

/// One descriptor at an entry of an indirect table.
pub(super) fn entry(driver: &Driver<'_>, index: u64, len: u32, flags: u32, next: u16) {
    driver.raw_at(INDIRECT_TABLE + 16 * index, BUFFER, len, flags, next);
}

/// The chain that begins at descriptor 0: the clause of virtio 1.3 that it breaks, the fault, the descriptors.
pub(super) fn chains() -> Vec<(&'static str, RingFault, Lay)> {
    let outside = |addr, len| RingFault::Buffer { addr, len };
    let table = |addr| RingFault::Ring { what: "indirect descriptor table", addr };
    vec![
        ("2.7.5 next past the table", RingFault::Next { next: SIZE, size: SIZE.into() }, |d| {
            d.raw(0, BUFFER, 8, NEXT, SIZE)
        }),
        ("2.7.5 next far past the table", RingFault::Next { next: 0xffff, size: SIZE.into() }, |d| {
            d.raw(0, BUFFER, 8, NEXT, 0xffff)
        }),
        ("2.7.5 a descriptor that follows itself", RingFault::Loop { size: SIZE.into() }, |d| {
            d.raw(0, BUFFER, 8, NEXT, 0)
        }),
        ("2.7.5 a loop of two behind the head", RingFault::Loop { size: SIZE.into() }, |d| {
            d.raw(0, BUFFER, 8, NEXT, 1);
            d.raw(1, BUFFER, 8, NEXT, 2);
            d.raw(2, BUFFER, 8, NEXT, 1);
        }),
        ("2.7.5 a loop through the whole table", RingFault::Loop { size: SIZE.into() }, |d| {
            (0..SIZE).for_each(|n| d.raw(n, BUFFER, 8, NEXT, (n + 1) % SIZE))
        }),
        ("2.7.4.2 readable after writable", RingFault::Order, |d| {
            d.raw(0, BUFFER, 8, NEXT | WRITE, 1);
            d.raw(1, BUFFER, 8, 0, 0);
        }),
        ("2.7.4.2 readable after an empty writable one", RingFault::Order, |d| {
            d.raw(0, BUFFER, 0, NEXT | WRITE, 1);
            d.raw(1, BUFFER, 8, 0, 0);
        }),
        ("2.7.5 a buffer behind memory", outside(END, 1), |d| d.raw(0, END, 1, 0, 0)),
        ("2.7.5 a buffer across the end of memory", outside(END - 4, 5), |d| d.raw(0, END - 4, 5, WRITE, 0)),
        ("2.7.5 a buffer around the address space", outside(u64::MAX - 3, 8), |d| d.raw(0, u64::MAX - 3, 8, 0, 0)),
        ("2.7.5 the longest buffer", outside(0, u32::MAX), |d| d.raw(0, 0, u32::MAX, 0, 0)),
        ("2.7.5.3.1 indirect and next", RingFault::Indirect, |d| {
            d.raw(0, INDIRECT_TABLE, 16, INDIRECT | NEXT, 1);
            d.raw(1, BUFFER, 8, 0, 0);
        }),
        ("2.7.5.3.1 indirect in indirect", RingFault::Indirect, |d| {
            d.raw(0, INDIRECT_TABLE, 16, INDIRECT, 0);
            entry(d, 0, 16, INDIRECT, 0);
        }),
        ("2.7.5.3 an empty indirect table", RingFault::IndirectSize { bytes: 0 }, |d| {
            d.raw(0, INDIRECT_TABLE, 0, INDIRECT, 0)
        }),
        ("2.7.5.3 half a descriptor", RingFault::IndirectSize { bytes: 8 }, |d| {
            d.raw(0, INDIRECT_TABLE, 8, INDIRECT, 0)
        }),
        ("2.7.5.3 a descriptor and a byte", RingFault::IndirectSize { bytes: 17 }, |d| {
            d.raw(0, INDIRECT_TABLE, 17, INDIRECT, 0)
        }),
        ("2.7.5.3 more entries than 16 bits count", RingFault::IndirectSize { bytes: 16 * 0x8001 }, |d| {
            d.raw(0, 0, 16 * 0x8001, INDIRECT, 0)
        }),
        ("2.7.5.3 an indirect table behind memory", table(END), |d| d.raw(0, END, 16, INDIRECT, 0)),
        ("2.7.5.3 an indirect table across the end of memory", table(END - 16), |d| {
            d.raw(0, END - 16, 32, INDIRECT, 0);
            d.raw_at(END - 16, BUFFER, 8, 0, 0);
        }),
        ("2.7.5.3 next past the indirect table", RingFault::Next { next: 2, size: 2 }, |d| {
            d.raw(0, INDIRECT_TABLE, 32, INDIRECT, 0);
            entry(d, 0, 8, NEXT, 2);
        }),
        ("2.7.5.3 a loop in the indirect table", RingFault::Loop { size: 2 }, |d| {
            d.raw(0, INDIRECT_TABLE, 32, INDIRECT, 0);
            entry(d, 0, 8, NEXT, 1);
            entry(d, 1, 8, NEXT, 0);
        }),
    ]
}

/// A ring that lies: clause, fault, the driver's writes.
fn rings() -> Vec<(&'static str, RingFault, Lay)> {
    let ahead = |ahead| RingFault::AvailIndex { ahead, size: SIZE };
    let head = |head| RingFault::Head { head, size: SIZE };
    vec![
        ("2.7.6 an index one past a full queue", ahead(SIZE + 1), |d| d.jump(SIZE + 1)),
        ("2.7.6 an index half around", ahead(0x8000), |d| d.jump(0x8000)),
        ("2.7.6 an index that goes backwards", ahead(0xffff), |d| d.jump(0xffff)),
        ("2.7.6 a head past the table", head(SIZE), |d| d.offer(SIZE)),
        ("2.7.6 a head far past the table", head(0xffff), |d| d.offer(0xffff)),
    ]
}

/// A device that works, with whatever must live as long as it does.
struct Bench {
    active: Box<dyn ActiveDevice>,
    _held: Vec<Box<dyn std::any::Any>>,
}

/// Activates `device` with every feature it offers.
fn start(device: Box<dyn Device>, drivers: &[Driver<'_>]) -> Box<dyn ActiveDevice> {
    let all: Vec<&Driver<'_>> = drivers.iter().collect();
    let (mut activation, _) = activation(drivers[0].ram, &all);
    activation.features = device.features();
    device.activate(activation).unwrap()
}

/// Calls the device for all its sources; its first fault.
fn serve(active: &mut dyn ActiveDevice) -> Result<(), DeviceFault> {
    for _ in 0..3 {
        for source in active.sources() {
            active.ready(source.token)?;
        }
    }
    Ok(())
}

fn rng(drivers: &mut [Driver<'_>]) -> Bench {
    Bench { active: start(Box::new(Rng::new("rng".into())), drivers), _held: Vec::new() }
}

fn block(drivers: &mut [Driver<'_>]) -> Bench {
    let file = memory_file();
    file.set_len(64 * 512).unwrap();
    let options = BlockOptions { id: "data".into(), ..BlockOptions::default() };
    Bench { active: start(Box::new(Block::new(options, file).unwrap()), drivers), _held: Vec::new() }
}

/// Two pairs, both in use.
fn net(drivers: &mut [Driver<'_>]) -> Bench {
    let (mut lanes, mut held) = (Vec::new(), Vec::<Box<dyn std::any::Any>>::new());
    for _ in 0..2 {
        let (here, there) = unix::pair().unwrap();
        lanes.push(Lane::User(Box::new(UnixLink::adopt(here).unwrap())));
        held.push(Box::new(there));
    }
    let card = Net::new(lanes, NetOptions::new("net0", MacAddress([2, 0, 0, 0, 0, 1])));
    let mut active = start(Box::new(card), drivers);
    // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET 2
    drivers[4].write(BUFFER, &[4, 0, 2, 0]);
    drivers[4].chain(&[(BUFFER, 4, false), (BUFFER + 0x100, 1, true)]);
    serve(&mut *active).unwrap();
    assert_eq!(drivers[4].bytes(BUFFER + 0x100, 1), [0], "both pairs are in use");
    Bench { active, _held: held }
}

/// Two ports, both open, with input waiting and news to tell.
fn console(drivers: &mut [Driver<'_>]) -> Bench {
    let (mut ports, mut held) = (Vec::new(), Vec::<Box<dyn std::any::Any>>::new());
    for name in [None, Some("agent".to_string())] {
        let (mut host, ours) = UnixStream::pair().unwrap();
        host.write_all(b"input").unwrap();
        let input = ours.try_clone().unwrap();
        let terminal = Terminal::new(name.as_deref().unwrap_or("console"), Some(ours.into()), Some(input.into()));
        ports.push(Port::new(name, terminal).unwrap());
        held.push(Box::new(host));
    }
    let mut active = start(Box::new(Console::new("console".into(), ports)), drivers);
    // DEVICE_READY, then PORT_OPEN of each: id le32, event le16, value le16.
    for (n, (id, event)) in [(u32::MAX, 0u16), (0, 6), (1, 6)].into_iter().enumerate() {
        let at = BUFFER + 8 * n as u64;
        drivers[3].write(at, &[&id.to_le_bytes()[..], &event.to_le_bytes(), &[1, 0]].concat());
        drivers[3].chain(&[(at, 8, false)]);
    }
    serve(&mut *active).unwrap();
    assert_eq!(drivers[3].used().len(), 3, "the driver's messages are heard");
    Bench { active, _held: held }
}

fn balloon(drivers: &mut [Driver<'_>]) -> Bench {
    let device = Balloon::new("balloon".into(), &BalloonConfig::default(), 64);
    Bench { active: start(Box::new(device), drivers), _held: Vec::new() }
}

/// With an event to tell.
fn vsock(drivers: &mut [Driver<'_>]) -> Bench {
    let (device, kernel) = super::vsock::testing::vsock(3).unwrap();
    let mut active = start(Box::new(device), drivers);
    active.order(Order::VsockCid { cid: 4 }).unwrap().unwrap();
    Bench { active, _held: vec![Box::new(kernel)] }
}

/// Every device: its name in messages, its queues, those that this process reads, how it is brought to work.
type Row = (&'static str, u16, &'static [u16], fn(&mut [Driver<'_>]) -> Bench);
const DEVICES: [Row; 6] = [
    ("net0", 5, &[0, 1, 2, 3, 4], net),
    ("disk data", 1, &[0], block),
    ("console", 6, &[0, 1, 2, 3, 4, 5], console),
    ("rng", 1, &[0], rng),
    ("balloon", 4, &[0, 1, 2, 3], balloon),
    ("vsock", 3, &[2], vsock),
];

fn drivers(ram: &Arc<GuestRam>, count: u16) -> Vec<Driver<'_>> {
    (0..count).map(|n| Driver::new(ram, n, SIZE)).collect()
}

#[test]
fn every_queue_of_every_device_names_what_the_standard_forbids() {
    let chains = chains().into_iter().map(|case| (case, true));
    let cases: Vec<_> = chains.chain(rings().into_iter().map(|case| (case, false))).collect();
    for (name, count, queues, bring_up) in DEVICES {
        for queue in queues {
            for ((clause, expected, lay), offered) in &cases {
                let ram = ram();
                let mut drivers = drivers(&ram, count);
                let mut bench = bring_up(&mut drivers);
                let driver = &mut drivers[usize::from(*queue)];
                lay(driver);
                if *offered {
                    driver.offer(0);
                }
                let fault = serve(&mut *bench.active).expect_err(&format!("{name} queue {queue}: {clause}"));
                let DeviceFault::Ring { device, queue: at, fault: found } = &fault else {
                    panic!("{name} queue {queue}: {clause}: {fault}");
                };
                assert_eq!((device.as_str(), *at, found), (name, *queue, expected), "{clause}");
                assert_eq!(end_of(&fault).class, ExitClass::GuestFault, "{clause}");
            }
        }
    }
}

/// The table above would prove nothing for a device that looks at none of its queues.
#[test]
fn working_devices_without_a_malformed_chain_have_no_fault() {
    for (name, count, _, bring_up) in DEVICES {
        let ram = ram();
        let mut drivers = drivers(&ram, count);
        let mut bench = bring_up(&mut drivers);
        assert!(serve(&mut *bench.active).is_ok(), "{name}");
    }
}

/// A descriptor that is offered again while the device has it: it ends after a queueful, whatever the device does with them.
#[test]
fn devices_that_keep_buffers_name_a_descriptor_offered_too_often() {
    // Buffers for frames that have not come, of both pairs.
    for queue in [0u16, 2] {
        let ram = ram();
        let mut drivers = drivers(&ram, 5);
        let mut bench = net(&mut drivers);
        let driver = &mut drivers[usize::from(queue)];
        driver.raw(0, BUFFER, 2048, WRITE, 0);
        let mut ended = None;
        for _ in 0..=2 * SIZE {
            driver.offer(0);
            if let Err(fault) = serve(&mut *bench.active) {
                ended = Some(fault.to_string());
                break;
            }
        }
        let text = ended.unwrap_or_default();
        assert!(text.starts_with(&format!("net0 queue {queue}: more than {SIZE} requests")), "{text:?}");
    }
}
