use super::testing::function;
use super::*;
use crate::terminal::Terminal;
use crate::virtio::balloon::Balloon;
use crate::virtio::console::{Console, Port};
use holdfast_model::contract::end::ExitClass;
use holdfast_model::contract::vm::BalloonConfig;
use proptest::prelude::*;

fn write(function: &mut VirtioFunction, offset: u64, value: u64, len: usize) -> Result<(), End> {
    function.bar_write(offset, &value.to_le_bytes()[..len])
}

fn read(function: &mut VirtioFunction, offset: u64, len: usize) -> u64 {
    let mut value = [0; 8];
    function.bar_read(offset, &mut value[..len]).unwrap();
    u64::from_le_bytes(value)
}

fn negotiate(function: &mut VirtioFunction, features: u64) {
    write(function, 0x14, 3, 1).unwrap();
    for select in 0..2u64 {
        write(function, 0x08, select, 4).unwrap();
        write(function, 0x0c, features >> (32 * select), 4).unwrap();
    }
    write(function, 0x14, 0x0b, 1).unwrap();
}

/// Negotiates, gives queue 0 its areas, and says DRIVER_OK.
fn set_up(function: &mut VirtioFunction, areas: [u64; 3]) -> Result<(), End> {
    set_up_queue(function, 0, 16, areas)
}

#[test]
fn driver_bring_up_activates_and_connects_the_doorbell() {
    let (mut function, host) = function().unwrap();
    function.config_write(4, &[6, 0]).unwrap();
    negotiate(&mut function, F_VERSION_1);
    assert_eq!(read(&mut function, 0x14, 1), 0x0b);
    assert_eq!(read(&mut function, 0x18, 2), 64, "queue size");
    write(&mut function, 0x18, 16, 2).unwrap();
    write(&mut function, 0x20, 0x1000, 8).unwrap();
    write(&mut function, 0x28, 0x2000, 8).unwrap();
    write(&mut function, 0x30, 0x3000, 8).unwrap();
    write(&mut function, 0x1c, 1, 2).unwrap();
    write(&mut function, 0x14, 0x0f, 1).unwrap();
    assert_eq!(*host.activated.lock().unwrap(), [(F_VERSION_1, 1)]);
    assert_eq!(*host.connected.lock().unwrap(), [0xc000_3000]);
    write(&mut function, 0x14, 0, 1).unwrap();
    assert!(host.connected.lock().unwrap().is_empty());
    assert_eq!((*host.resets.lock().unwrap(), read(&mut function, 0x14, 1)), (1, 0));
}

#[test]
fn doorbells_of_two_devices_at_one_address_are_the_guests_fault() {
    let (mut function, host) = function().unwrap();
    host.connected.lock().unwrap().push(0xc000_3000);
    function.config_write(4, &[6, 0]).unwrap();
    let end = set_up(&mut function, [0x1000, 0x2000, 0x3000]).unwrap_err();
    assert_eq!(end.class, ExitClass::GuestFault);
    assert!(end.reason.contains("put BAR 0 at 0xc0000000"), "{}", end.reason);
}

#[test]
fn foreign_features_are_refused_by_clearing_features_ok() {
    let (mut function, _) = function().unwrap();
    negotiate(&mut function, F_VERSION_1 | 1 << 60);
    assert_eq!(read(&mut function, 0x14, 1), 3);
    let (mut legacy, _) = super::testing::function().unwrap();
    negotiate(&mut legacy, 0);
    assert_eq!(read(&mut legacy, 0x14, 1), 3, "legacy drivers have no place here");
}

#[test]
fn misused_registers_end_the_vm_with_a_reason() {
    type Misuse = fn(&mut VirtioFunction) -> Result<(), End>;
    let cases: [(&str, Misuse); 10] = [
        ("DRIVER_OK without FEATURES_OK", |f| write(f, 0x14, 0x07, 1)),
        ("size of queue 0 to 3", |f| write(f, 0x18, 3, 2)),
        ("size of queue 0 to 128", |f| write(f, 0x18, 128, 2)),
        ("size of queue 0 to 0", |f| write(f, 0x18, 0, 2)),
        // §2.7: alignment of the table, the available ring, the used ring.
        ("queue 0 wrongly", |f| set_up(f, [0x1008, 0x2000, 0x3000])),
        ("queue 0 wrongly", |f| set_up(f, [0x1000, 0x2001, 0x3000])),
        ("queue 0 wrongly", |f| set_up(f, [0x1000, 0x2000, 0x3002])),
        ("queue_enable", |f| write(f, 0x1c, 0, 2)),
        ("cleared status bits", |f| {
            write(f, 0x14, 3, 1)?;
            write(f, 0x14, 1, 1)
        }),
        ("queue 0 wrongly", |f| set_up(f, [0xffff_f000, 0x2000, 0x3000])),
    ];
    for (words, misuse) in cases {
        let (mut function, _) = function().unwrap();
        let end = misuse(&mut function).unwrap_err();
        assert!(end.reason.contains(words) && end.reason.starts_with("rng"), "{words:?} not in {:?}", end.reason);
    }
}

/// Selects `queue` of a device whose other queues the driver leaves alone, gives it `size` entries and its areas, and says
/// DRIVER_OK.
fn set_up_queue(function: &mut VirtioFunction, queue: u64, size: u64, areas: [u64; 3]) -> Result<(), End> {
    negotiate(function, F_VERSION_1);
    write(function, 0x16, queue, 2)?;
    write(function, 0x18, size, 2)?;
    for (register, area) in [0x20, 0x28, 0x30].into_iter().zip(areas) {
        write(function, register, area, 8)?;
    }
    write(function, 0x1c, 1, 2)?;
    write(function, 0x14, 0x0f, 1)
}

/// Rings that virtio 1.3 §2.7 forbids, in each queue of each device.
#[test]
fn every_queue_of_every_device_refuses_a_ring_that_cannot_be() {
    const SOUND: [u64; 3] = [0x1000, 0x2000, 0x3000];
    /// Of the machine here.
    const END: u64 = 0x1_0000;
    // (clause, size, descriptor table, available ring, used ring)
    let areas: [(&str, u64, [u64; 3]); 15] = [
        ("2.7 a table at no multiple of 16", 16, [0x1008, 0x2000, 0x3000]),
        ("2.7 an available ring at no multiple of 2", 16, [0x1000, 0x2001, 0x3000]),
        ("2.7 a used ring at no multiple of 4", 16, [0x1000, 0x2000, 0x3002]),
        ("2.7 a table behind memory", 16, [END, 0x2000, 0x3000]),
        ("2.7 a table across the end of memory", 16, [END - 16 * 15, 0x2000, 0x3000]),
        ("2.7 a table around the address space", 16, [!15, 0x2000, 0x3000]),
        ("2.7 an available ring behind memory", 16, [0x1000, END, 0x3000]),
        ("2.7 an available ring across the end of memory", 16, [0x1000, END - 6 - 2 * 16 + 2, 0x3000]),
        ("2.7 an available ring around the address space", 16, [0x1000, !1, 0x3000]),
        ("2.7 a used ring behind memory", 16, [0x1000, 0x2000, END]),
        ("2.7 a used ring across the end of memory", 16, [0x1000, 0x2000, END - 6 - 8 * 16 + 2]),
        ("2.7 a used ring around the address space", 16, [0x1000, 0x2000, !3]),
        ("no table", 16, [0, 0x2000, 0x3000]),
        ("no available ring", 16, [0x1000, 0, 0x3000]),
        ("no used ring", 16, [0x1000, 0x2000, 0]),
    ];
    for which in 0..super::testing::DEVICES {
        let device = super::testing::any_device(which).unwrap();
        let name = device.name().to_string();
        for (queue, largest) in (0u64..).zip(device.queue_sizes()) {
            let refused = |clause: &str, size: u64, areas: [u64; 3], words: String| {
                let (mut function, host) = super::testing::function_of(&*device).unwrap();
                let end = set_up_queue(&mut function, queue, size, areas).expect_err(clause);
                assert_eq!(end.class, ExitClass::GuestFault, "{clause}");
                assert!(end.reason.starts_with(&name) && end.reason.contains(&words), "{clause}: {}", end.reason);
                assert!(host.activated.lock().unwrap().is_empty(), "{clause}");
            };
            for (clause, size, areas) in areas {
                refused(clause, size, areas, format!("set up queue {queue} wrongly"));
            }
            for size in [0, 3, 24, 2 * u64::from(*largest), 0x8000, 0xffff] {
                refused("2.7 the size of a queue", size, SOUND, format!("set the size of queue {queue} to {size}"));
            }
            let (mut function, host) = super::testing::function_of(&*device).unwrap();
            set_up_queue(&mut function, queue, 16, SOUND).unwrap();
            assert_eq!(host.activated.lock().unwrap().len(), 1, "{name} queue {queue}: sound");
        }
    }
}

#[test]
fn configuration_window_reaches_the_bar() {
    let (mut function, _) = function().unwrap();
    let places = function.places;
    assert!(!function.config_reads_act(), "closed: length 0");
    function.config_write(places.window(Field::Offset), &0x12u32.to_le_bytes()).unwrap();
    function.config_write(places.window(Field::Length), &2u32.to_le_bytes()).unwrap();
    assert!(function.config_reads_act());
    let mut value = [0; 2];
    function.config_read(places.window(Field::Data), &mut value).unwrap();
    assert_eq!(u16::from_le_bytes(value), 1, "num_queues");
}

#[test]
fn configuration_space_is_shared_with_its_device() {
    let device = Balloon::new("balloon".into(), &BalloonConfig::default(), 64);
    let config = device.config_space();
    let (mut function, _) = super::testing::function_of(&device).unwrap();
    assert_eq!(read(&mut function, 0x15, 1), 0, "generation");
    config.update(0, &7u32.to_le_bytes());
    assert_eq!((read(&mut function, 0x2000, 4), read(&mut function, 0x15, 1)), (7, 1));
    write(&mut function, 0x2000, u64::MAX, 8).unwrap();
    write(&mut function, 0x2ffc, u64::MAX, 8).unwrap();
    assert_eq!((config.le32(0), config.le32(4)), (7, u32::MAX), "only the driver's field is the driver's");
    assert_eq!(read(&mut function, 0x2008, 8), 0);
}

#[test]
fn emergency_write_of_a_console_needs_no_driver() {
    let terminal = Terminal::new("console", None, None);
    let port = Port::new(None, terminal.clone()).unwrap();
    let (mut function, host) = super::testing::function_of(&Console::new("console".into(), vec![port])).unwrap();
    write(&mut function, 0x2008, b'x'.into(), 4).unwrap();
    assert_eq!((read(&mut function, 0x14, 1), terminal.stats().out_bytes), (0, 1), "status, output");
    assert_eq!(read(&mut function, 0x2008, 4), 0, "for writing only");
    assert!(host.activated.lock().unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_accesses_never_panic(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz_virtio_pci(&data);
    }
}
