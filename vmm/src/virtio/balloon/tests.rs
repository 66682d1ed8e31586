use super::device::{ACTUAL, F_DEFLATE_ON_OOM, F_PAGE_POISON, F_REPORTING, F_STATS, NUM_PAGES, POISON};
use super::*;
use crate::memory::GuestRam;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::interrupt::{ISR_CONFIG, Interrupts};
use crate::virtio::testing::{Driver, RAM_BYTES, activation, ram};
use crate::virtio::{ActiveDevice, Device, DeviceFault, F_VERSION_1, Order, Progress};
use holdfast_model::contract::vm::{BalloonConfig, GuestMemory};
use proptest::prelude::*;
use std::sync::Arc;

const ALL: u64 = F_VERSION_1 | F_STATS | F_REPORTING;
/// Where the tests keep arrays; the pages from `FREE` on are the guest's to give.
const ARRAY: u64 = 0x6_0000;
const FREE: u64 = 0x8_0000;

struct Bench<'a> {
    active: Box<dyn ActiveDevice>,
    config: DeviceConfig,
    interrupts: Arc<Interrupts>,
    inflate: Driver<'a>,
    deflate: Driver<'a>,
    stats: Driver<'a>,
    report: Driver<'a>,
}

fn device() -> Balloon {
    Balloon::new("balloon".into(), &BalloonConfig::default(), 64)
}

/// A device whose driver negotiated `features` and uses queues 0 to 3, as Linux does. Pages from `FREE` on hold ones.
fn bench(ram: &Arc<GuestRam>, features: u64) -> Bench<'_> {
    let driver = |n| Driver::new(ram, n, 16);
    let (inflate, deflate, stats, report) = (driver(0), driver(1), driver(2), driver(3));
    report.write(FREE, &vec![1; RAM_BYTES - FREE as usize]);
    let (mut activation, _) = activation(ram, &[&inflate, &deflate, &stats, &report]);
    activation.features = features;
    let interrupts = activation.interrupts.clone();
    let device = device();
    let config = device.config_space();
    let active = Box::new(device).activate(activation).unwrap();
    Bench { active, config, interrupts, inflate, deflate, stats, report }
}

fn array(pages: &[u64]) -> Vec<u8> {
    pages.iter().flat_map(|page| u32::try_from(*page).unwrap().to_le_bytes()).collect()
}

/// Guest pages from `FREE` on that read as zeros.
fn gone(driver: &Driver<'_>) -> Vec<u64> {
    let all = driver.bytes(FREE, RAM_BYTES - FREE as usize);
    let zero = |n: &usize| all[n * 4096..(n + 1) * 4096].iter().all(|byte| *byte == 0);
    (0..all.len() / 4096).filter(zero).map(|n| FREE / 4096 + n as u64).collect()
}

fn record(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn inflated_pages_go_and_no_others() {
    let ram = ram();
    let mut bench = bench(&ram, ALL);
    let pages = [0x80, 0x81, 0x83, 0x1ff, 0x90, 0x8f, 0x8e];
    bench.inflate.write(ARRAY, &array(&pages));
    // A number may lie across two buffers.
    bench.inflate.chain(&[(ARRAY, 6, false), (ARRAY + 6, 22, false)]);
    assert_eq!(bench.active.ready(0).unwrap(), Progress::Drained);
    assert_eq!(bench.inflate.used(), [(0, 0)]);
    let mut expected = pages.to_vec();
    expected.sort_unstable();
    assert_eq!(gone(&bench.inflate), expected);
    assert_eq!((bench.active.stats().out_bytes, bench.active.stats().out_ops), (7 * 4096, 1));
}

#[test]
fn page_inflated_twice_and_deflated_is_whole_again_when_written() {
    let ram = ram();
    let mut bench = bench(&ram, ALL);
    bench.inflate.write(ARRAY, &array(&[0x80, 0x80]));
    bench.inflate.chain(&[(ARRAY, 8, false)]);
    bench.inflate.chain(&[(ARRAY, 4, false)]);
    bench.active.ready(0).unwrap();
    bench.deflate.chain(&[(ARRAY, 4, false)]);
    bench.active.ready(1).unwrap();
    assert_eq!((bench.inflate.used().len(), bench.deflate.used()), (2, vec![(0, 0)]));
    bench.deflate.write(FREE, &[7; 4096]);
    assert_eq!(bench.deflate.bytes(FREE, 4096), [7; 4096]);
    let stats = bench.active.stats();
    assert_eq!((stats.out_bytes, stats.in_bytes, stats.in_ops, stats.errors), (3 * 4096, 4096, 1, 0));
}

#[test]
fn reported_ranges_go_whole_at_either_place_of_the_queue() {
    for place in [3u16, 4] {
        let ram = ram();
        let driver = |n| Driver::new(&ram, n, 16);
        let drivers = [driver(0), driver(1), driver(2), driver(3), driver(4)];
        drivers[0].write(FREE, &vec![1; RAM_BYTES - FREE as usize]);
        let (mut activation, _) = activation(&ram, &drivers.each_ref());
        activation.features = ALL;
        activation.queues.retain(|queue| queue.index < 3 || queue.index == place);
        let mut active = Box::new(device()).activate(activation).unwrap();
        let [.., third, fourth] = drivers;
        let mut report = if place == 3 { third } else { fourth };
        report.chain(&[(FREE, 0x4000, true), (FREE + 0x1_0000, 0x1000, true)]);
        active.ready(u8::try_from(place).unwrap()).unwrap();
        assert_eq!(gone(&report), [0x80, 0x81, 0x82, 0x83, 0x90]);
        assert_eq!(report.used(), [(0, 0)]);
        assert_eq!(active.memory().unwrap().reported_bytes, 5 * 4096);
    }
}

#[test]
fn filled_pages_are_not_dropped_when_reported() {
    for (poison, dropped) in [(0u32, 1), (0xaaaa_aaaa, 0)] {
        let ram = ram();
        let mut bench = bench(&ram, ALL | F_PAGE_POISON);
        bench.config.write(POISON, &poison.to_le_bytes());
        bench.report.chain(&[(FREE, 0x1000, true)]);
        bench.active.ready(3).unwrap();
        assert_eq!((gone(&bench.report).len(), bench.report.used().len()), (dropped, 1));
    }
}

#[test]
fn figures_come_at_the_start_and_again_after_each_question() {
    let ram = ram();
    let mut bench = bench(&ram, ALL);
    assert_eq!(bench.active.memory().unwrap().guest, None);
    bench.stats.write(ARRAY, &[record(5, 1 << 20), record(4, 1000), record(77, 5)].concat());
    bench.stats.chain(&[(ARRAY, 30, false)]);
    // The question that found no buffer to give back is forgotten.
    bench.active.ready(2).unwrap();
    assert!(bench.stats.used().is_empty(), "the buffer is kept");
    bench.active.ready(2).unwrap();
    assert!(bench.stats.used().is_empty(), "a spurious doorbell asks for nothing");
    let memory = bench.active.memory().unwrap();
    let expected = GuestMemory { total_bytes: Some(1 << 20), free_bytes: Some(1000), ..Default::default() };
    assert_eq!((memory.guest, memory.age_ms.is_some()), (Some(expected), true));
    bench.active.ready(2).unwrap();
    assert_eq!(bench.stats.used(), [(0, 0)], "given back, to be filled anew");
    bench.stats.write(ARRAY, &record(4, 2000));
    bench.stats.chain(&[(ARRAY, 10, false)]);
    bench.active.ready(2).unwrap();
    let free = bench.active.memory().unwrap().guest.unwrap().free_bytes;
    assert_eq!(free, Some(2000));
}

#[test]
fn target_is_told_by_config_space_and_interrupt() {
    let ram = ram();
    let mut bench = bench(&ram, ALL);
    bench.interrupts.set_msix_enabled(false);
    let order = |bench: &mut Bench<'_>, mib| bench.active.order(Order::BalloonTarget { mib }).unwrap();
    order(&mut bench, 32).unwrap();
    assert_eq!((bench.config.le32(NUM_PAGES), bench.config.generation()), (32 * 256, 1));
    assert_eq!(bench.interrupts.take_isr(), ISR_CONFIG);
    order(&mut bench, 32).unwrap();
    assert_eq!(bench.interrupts.take_isr(), 0, "no news");
    let refusal = order(&mut bench, 33).unwrap_err();
    assert!(refusal.contains("target_mib is 33, expected at most 32"), "{refusal}");
    assert!(order(&mut bench, u32::MAX).is_err());
    assert!(bench.active.order(Order::VsockCid { cid: 3 }).is_none());
    bench.config.write(ACTUAL, &4096u32.to_le_bytes());
    bench.config.write(NUM_PAGES, &[0xff; 4]);
    let memory = bench.active.memory().unwrap();
    assert_eq!((memory.balloon_target_bytes, memory.balloon_bytes), (32 << 20, RAM_BYTES as u64), "cut to its RAM");
}

#[test]
fn reset_forgets_the_drivers_words_and_keeps_the_target() {
    let ram = ram();
    let mut bench = bench(&ram, ALL);
    bench.active.order(Order::BalloonTarget { mib: 1 }).unwrap().unwrap();
    bench.config.write(ACTUAL, &7u32.to_le_bytes());
    bench.config.write(POISON, &7u32.to_le_bytes());
    let mut device = bench.active.deactivate().unwrap();
    let config = device.config_space();
    assert_eq!((config.le32(NUM_PAGES), config.le32(ACTUAL), config.le32(POISON)), (256, 0, 0));
    device.order(Order::BalloonTarget { mib: 2 }).unwrap().unwrap();
    assert_eq!(config.le32(NUM_PAGES), 512, "an unused device takes orders too");
}

#[test]
fn paused_balloon_asks_the_driver_for_nothing_until_resumed() {
    let ram = ram();
    let mut bench = bench(&ram, ALL);
    bench.stats.write(ARRAY, &record(4, 1));
    bench.stats.chain(&[(ARRAY, 10, false)]);
    bench.active.ready(2).unwrap();
    bench.active.pause().unwrap();
    assert!(bench.active.memory().unwrap().guest.is_some());
    assert!(bench.stats.used().is_empty());
    bench.active.resume().unwrap();
    bench.active.ready(2).unwrap();
    assert_eq!(bench.stats.used().len(), 1);
}

#[test]
fn malformed_requests_are_named_faults() {
    type Misuse = fn(&mut Bench<'_>) -> u8;
    let cases: [(&str, Misuse); 22] = [
        ("queue 0: page numbers are readable only", |b| {
            b.inflate.chain(&[(ARRAY, 4, true)]);
            0
        }),
        ("queue 0: page numbers are readable only", |b| {
            b.inflate.chain(&[(ARRAY, 4, false), (ARRAY, 4, true)]);
            0
        }),
        ("of 4 bytes each", |b| {
            b.inflate.chain(&[(ARRAY, 7, false)]);
            0
        }),
        ("at most 16 KiB", |b| {
            b.inflate.chain(&[(ARRAY, 16 * 1024 + 4, false)]);
            0
        }),
        ("queue 1: page numbers", |b| {
            b.deflate.chain(&[(ARRAY, 5, false)]);
            1
        }),
        // The first page past RAM, a device window, the last number there is.
        ("inflates 4096 bytes at 0x200000", |b| {
            b.inflate.write(ARRAY, &array(&[0x80, 0x200]));
            b.inflate.chain(&[(ARRAY, 8, false)]);
            0
        }),
        ("inflates 4096 bytes at 0xc0000000", |b| {
            b.inflate.write(ARRAY, &array(&[0xc_0000]));
            b.inflate.chain(&[(ARRAY, 4, false)]);
            0
        }),
        ("inflates 4096 bytes at 0xffffffff000", |b| {
            b.inflate.write(ARRAY, &[0xff; 4]);
            b.inflate.chain(&[(ARRAY, 4, false)]);
            0
        }),
        ("inflates 8192 bytes at 0x1ff000", |b| {
            b.inflate.write(ARRAY, &array(&[0x1ff, 0x200]));
            b.inflate.chain(&[(ARRAY, 8, false)]);
            0
        }),
        ("deflates 4096 bytes at 0x200000", |b| {
            b.deflate.write(ARRAY, &array(&[0x200]));
            b.deflate.chain(&[(ARRAY, 4, false)]);
            1
        }),
        ("queue 3: reported pages are writable only", |b| {
            b.report.chain(&[(FREE, 0x1000, false)]);
            3
        }),
        ("reports 4096 bytes at 0x80800", |b| {
            b.report.chain(&[(FREE + 0x800, 0x1000, true)]);
            3
        }),
        ("reports 2048 bytes", |b| {
            b.report.chain(&[(FREE, 0x1000, true), (FREE + 0x1000, 0x800, true)]);
            3
        }),
        ("reports 0 bytes", |b| {
            b.report.chain(&[(FREE, 0, true)]);
            3
        }),
        ("outside guest memory", |b| {
            b.report.chain(&[(RAM_BYTES as u64 - 0x1000, 0x2000, true)]);
            3
        }),
        ("outside guest memory", |b| {
            b.report.chain(&[(0xc000_0000, 0x1000, true)]);
            3
        }),
        ("queue 2: statistics are at most 64", |b| {
            b.stats.chain(&[(ARRAY, 11, false)]);
            2
        }),
        ("queue 2: statistics are at most 64", |b| {
            b.stats.chain(&[(ARRAY, 650, false)]);
            2
        }),
        ("queue 2: statistics are at most 64", |b| {
            b.stats.chain(&[(ARRAY, 10, true)]);
            2
        }),
        ("one statistics buffer", |b| {
            b.stats.chain(&[(ARRAY, 10, false)]);
            b.stats.chain(&[(ARRAY, 10, false)]);
            2
        }),
        ("queue 0: available ring names descriptor 16", |b| {
            b.inflate.offer(16);
            0
        }),
        ("queue 3: available index is 17 entries ahead", |b| {
            b.report.set_avail_idx(17);
            3
        }),
    ];
    for (words, misuse) in cases {
        let ram = ram();
        let mut bench = bench(&ram, ALL);
        let queue = misuse(&mut bench);
        let fault = bench.active.ready(queue).unwrap_err();
        assert!(matches!(fault, DeviceFault::Ring { .. } | DeviceFault::Guest { .. }), "{words}");
        let text = fault.to_string();
        assert!(text.starts_with("balloon") && text.contains(words), "{words:?} not in {text:?}");
    }
}

#[test]
fn queues_of_features_that_were_not_taken_are_left_alone() {
    let ram = ram();
    let mut bench = bench(&ram, F_VERSION_1);
    bench.report.chain(&[(FREE, 0x1000, true)]);
    bench.stats.chain(&[(ARRAY, 11, false)]);
    assert_eq!(bench.active.sources().len(), 2);
    for token in [2, 3, 9] {
        assert_eq!(bench.active.ready(token).unwrap(), Progress::Drained);
    }
    assert!(gone(&bench.report).is_empty() && bench.report.used().is_empty());
}

#[test]
fn activation_without_its_queues_is_a_named_fault() {
    let ram = ram();
    let inflate = Driver::new(&ram, 0, 16);
    let (activation, _) = activation(&ram, &[&inflate]);
    let fault = Box::new(device()).activate(activation).err().unwrap();
    assert!(fault.to_string().contains("deflate queue"), "{fault}");
}

#[test]
fn options_decide_what_is_offered() {
    let with = |free_page_reporting, deflate_on_oom| {
        let device = Balloon::new("b".into(), &BalloonConfig { free_page_reporting, deflate_on_oom }, 64);
        (device.features(), device.queue_sizes().len())
    };
    let bits = F_REPORTING | F_PAGE_POISON | F_DEFLATE_ON_OOM;
    assert_eq!((with(true, true).0 & bits, with(true, true).1), (bits, 5));
    assert_eq!((with(false, false).0 & bits, with(false, true).1), (0, 3));
    assert_ne!(with(false, false).0 & F_STATS, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn hostile_drivers_never_panic(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz_balloon(&data);
    }
}
