use super::*;
use crate::virtio::testing::{Driver, activation, ram};
use crate::virtio::{Device, DeviceFault, Progress};

#[test]
fn request_is_filled_and_interrupts() {
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    driver.chain(&[(0x8_0000, 64, true), (0x9_0000, 64, true)]);
    let (activation, vectors) = activation(&ram, &[&driver]);
    let mut active = Box::new(Rng::new("rng".into())).activate(activation).unwrap();
    assert_eq!(active.ready(0).unwrap(), Progress::Drained);
    assert_eq!(driver.used(), [(0, 128)]);
    assert_ne!(driver.bytes(0x9_0000, 64), vec![0; 64]);
    assert_eq!(vectors[0].read().unwrap(), 1);
    assert_eq!(active.stats().in_bytes, 128);
}

#[test]
fn readable_buffer_is_a_named_fault() {
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    driver.chain(&[(0x8_0000, 64, false)]);
    let (activation, _) = activation(&ram, &[&driver]);
    let mut active = Box::new(Rng::new("rng".into())).activate(activation).unwrap();
    let fault = active.ready(0).unwrap_err();
    assert!(matches!(fault, DeviceFault::Ring { .. }));
    assert!(fault.to_string().contains("rng queue 0"), "{fault}");
}

#[test]
fn activation_without_its_queue_is_a_named_fault() {
    let ram = ram();
    let (activation, _) = activation(&ram, &[]);
    let fault = Box::new(Rng::new("rng".into())).activate(activation).err().unwrap();
    assert!(fault.to_string().contains("0 of 1 queues"), "{fault}");
}
