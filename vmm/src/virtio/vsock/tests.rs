use super::testing::{PaperKernel, vsock};
use super::*;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::testing::{Driver, activation, ram};
use crate::virtio::{ActiveDevice, Device, DeviceFault, F_COMMON, F_VERSION_1, Order};
use proptest::prelude::*;

const EVENT: u8 = 3;

struct Bench<'a> {
    active: Box<dyn ActiveDevice>,
    kernel: PaperKernel,
    config: DeviceConfig,
    events: Driver<'a>,
}

impl Bench<'_> {
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.kernel.0.lock().unwrap().asked)
    }

    fn change(&mut self, cid: u32) {
        self.active.order(Order::VsockCid { cid }).unwrap().unwrap();
    }
}

fn bench(ram: &std::sync::Arc<crate::memory::GuestRam>) -> Bench<'_> {
    let (device, kernel) = vsock(3).unwrap();
    let config = device.config_space();
    let (receive, transmit, events) = (Driver::new(ram, 0, 16), Driver::new(ram, 1, 16), Driver::new(ram, 2, 16));
    let (activation, _) = activation(ram, &[&receive, &transmit, &events]);
    let active = Box::new(device).activate(activation).unwrap();
    Bench { active, kernel, config, events }
}

#[test]
fn kernel_works_the_data_rings_after_all_is_set() {
    let ram = ram();
    let bench = bench(&ram);
    let asked = bench.asked();
    let features = format!("features {F_VERSION_1:#x}");
    assert_eq!(asked, ["cid 3", features.as_str(), "ring 0", "call 0", "ring 1", "call 1", "run"]);
    assert_eq!(bench.config.to_vec(), [3, 0, 0, 0, 0, 0, 0, 0]);
    let tokens: Vec<_> = bench.active.sources().iter().map(|source| source.token).collect();
    assert_eq!(tokens, [0, EVENT], "errors of the kernel's rings, and the event queue's doorbell");
}

#[test]
fn pause_stops_the_kernel_and_resume_goes_on_where_it_was() {
    let ram = ram();
    let mut bench = bench(&ram);
    bench.asked();
    bench.kernel.0.lock().unwrap().bases = [7, 65535];
    bench.active.pause().unwrap();
    assert_eq!(bench.asked(), ["stop", "base of 0?", "base of 1?"]);
    bench.active.resume().unwrap();
    assert_eq!(bench.asked(), ["base of 0: 7", "base of 1: 65535", "run"]);
    let device = bench.active.deactivate().unwrap();
    assert_eq!(std::mem::take(&mut bench.kernel.0.lock().unwrap().asked), ["stop"]);
    assert_eq!(device.config_space().le32(0), 3, "a reset device keeps its address");
}

#[test]
fn changed_address_reaches_config_space_and_event_queue() {
    let ram = ram();
    let mut bench = bench(&ram);
    bench.asked();
    bench.events.write(0x8_0000, &[0xff; 8]);
    bench.events.chain(&[(0x8_0000, 4, true)]);
    bench.active.ready(EVENT).unwrap();
    assert!(bench.events.used().is_empty(), "nothing has happened yet");
    bench.change(9);
    assert_eq!(bench.asked(), ["cid 9"]);
    assert_eq!((bench.config.le32(0), bench.config.generation()), (9, 1));
    bench.active.ready(EVENT).unwrap();
    assert_eq!(bench.events.used(), [(0, 4)]);
    assert_eq!(bench.events.bytes(0x8_0000, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    bench.events.chain(&[(0x8_0000, 4, true)]);
    bench.change(9);
    bench.active.ready(EVENT).unwrap();
    assert_eq!(bench.events.used().len(), 1, "the same address is no change");
}

#[test]
fn event_waits_for_a_buffer_and_for_the_end_of_a_pause() {
    let ram = ram();
    let mut bench = bench(&ram);
    bench.change(4);
    bench.active.ready(EVENT).unwrap();
    bench.active.pause().unwrap();
    bench.change(5);
    bench.events.chain(&[(0x8_0000, 8, true)]);
    assert!(bench.events.used().is_empty());
    bench.active.resume().unwrap();
    bench.active.ready(EVENT).unwrap();
    assert_eq!(bench.events.used(), [(0, 4)], "two changes are one reset");
}

#[test]
fn refused_address_is_a_sentence_and_changes_nothing() {
    let ram = ram();
    let mut bench = bench(&ram);
    bench.kernel.0.lock().unwrap().refuse = Some(libc::EADDRINUSE);
    let reason = bench.active.order(Order::VsockCid { cid: 8 }).unwrap().unwrap_err();
    assert!(reason.contains("cid 8 belongs to another VM"), "{reason}");
    assert_eq!(bench.config.le32(0), 3);
    bench.events.chain(&[(0x8_0000, 4, true)]);
    bench.active.ready(EVENT).unwrap();
    assert!(bench.events.used().is_empty());
    assert!(bench.active.order(Order::BalloonTarget { mib: 1 }).is_none());
    let kernel = PaperKernel::default();
    kernel.0.lock().unwrap().refuse = Some(libc::EADDRINUSE);
    assert!(Vsock::with("vsock".into(), Box::new(kernel), 3).is_err());
}

#[test]
fn malformed_events_are_named_faults() {
    type Misuse = fn(&mut Driver<'_>);
    let cases: [(&str, Misuse); 9] = [
        ("4 writable bytes", |d| _ = d.chain(&[(0x8_0000, 4, false)])),
        ("4 writable bytes", |d| _ = d.chain(&[(0x8_0000, 3, true)])),
        ("4 writable bytes", |d| _ = d.chain(&[(0x8_0000, 4, false), (0x9_0000, 4, true)])),
        ("outside guest memory", |d| _ = d.chain(&[(0x20_0000, 4, true)])),
        ("outside guest memory", |d| _ = d.chain(&[(u64::MAX - 1, 4, true)])),
        ("longer than its table", |d| {
            d.raw(0, 0x8_0000, 4, 2 | 1, 0);
            d.offer(0);
        }),
        ("continues at 16", |d| {
            d.raw(0, 0x8_0000, 4, 2 | 1, 16);
            d.offer(0);
        }),
        ("names descriptor 16", |d| d.offer(16)),
        ("17 entries ahead", |d| d.set_avail_idx(17)),
    ];
    for (words, misuse) in cases {
        let ram = ram();
        let mut bench = bench(&ram);
        misuse(&mut bench.events);
        bench.change(6);
        let fault = bench.active.ready(EVENT).unwrap_err();
        assert!(matches!(fault, DeviceFault::Ring { .. }), "{words}");
        let text = fault.to_string();
        assert!(text.starts_with("vsock queue 2") && text.contains(words), "{words:?} not in {text:?}");
    }
}

#[test]
fn driver_may_leave_out_events_but_not_data() {
    let ram = ram();
    let (receive, transmit) = (Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16));
    let (device, _) = vsock(3).unwrap();
    let (two, _) = activation(&ram, &[&receive, &transmit]);
    let mut active = Box::new(device).activate(two).unwrap();
    active.order(Order::VsockCid { cid: 4 }).unwrap().unwrap();
    active.ready(EVENT).unwrap();
    let (device, _) = vsock(3).unwrap();
    let (one, _) = activation(&ram, &[&receive]);
    let fault = Box::new(device).activate(one).err().unwrap().to_string();
    assert!(fault.contains("vsock") && fault.contains("1 of 2 queues"), "{fault}");
}

#[test]
fn kernel_that_does_not_start_is_the_hosts_fault() {
    let ram = ram();
    let drivers = [Driver::new(&ram, 0, 16), Driver::new(&ram, 1, 16)];
    let (device, kernel) = vsock(3).unwrap();
    kernel.0.lock().unwrap().refuse = Some(libc::EFAULT);
    let (activation, _) = activation(&ram, &[&drivers[0], &drivers[1]]);
    let fault = Box::new(device).activate(activation).err().unwrap();
    assert!(matches!(&fault, DeviceFault::Host { .. }) && fault.to_string().contains("vsock"), "{fault}");
}

#[test]
fn sequenced_packets_are_offered_when_the_kernel_has_them() {
    let (device, _) = vsock(3).unwrap();
    assert_eq!(device.features(), F_COMMON | 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn hostile_drivers_never_panic(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz_vsock(&data);
    }
}
