//! Limits, pause, resume and reset: requests that wait, and requests in flight.

use std::time::Instant;

use super::*;
use holdfast_model::contract::vm::Limits;

#[test]
fn limited_disk_serves_its_burst_and_the_rest_at_its_deadlines() {
    const PERIOD: Duration = Duration::from_millis(20);
    const REQUESTS: usize = 4;
    let limits = Limits { ops_per_second: Some(50), burst_ops: Some(1), ..Limits::default() };
    let started = Instant::now();
    let block = Block::new(BlockOptions { limits, ..options(false) }, image()).unwrap();
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    header(&driver, IN, 0);
    for _ in 0..REQUESTS {
        driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    }
    let mut active = activated(block, &ram, &driver);
    active.ready(0).unwrap();
    // From here on as the event loop does it: no doorbell any more, only deadlines and completions.
    for _ in 0..2000 {
        if driver.used().len() == REQUESTS {
            break;
        }
        match active.deadline() {
            Some(at) if at <= Instant::now() => active.expired().unwrap(),
            _ => {
                std::thread::sleep(Duration::from_millis(1));
                active.ready(1).unwrap();
            }
        }
    }
    assert_eq!(driver.used().len(), REQUESTS);
    assert!(started.elapsed() >= PERIOD * (REQUESTS as u32 - 1), "served after {:?}", started.elapsed());
    assert_eq!(active.deadline(), None, "nothing waits");
}

#[test]
fn waiting_request_stays_the_drivers_across_a_pause() {
    let limits = Limits { bytes_per_second: Some(512), burst_bytes: Some(512), ..Limits::default() };
    let block = Block::new(BlockOptions { limits, ..options(false) }, image()).unwrap();
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    header(&driver, IN, 0);
    for _ in 0..2 {
        driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    }
    let mut active = activated(block, &ram, &driver);
    serve(&mut active, &driver, 1).unwrap();
    active.ready(0).unwrap();
    assert!(active.deadline().is_some());
    active.pause().unwrap();
    assert_eq!(active.deadline(), None);
    assert_eq!(driver.used().len(), 1);
    active.resume().unwrap();
    active.ready(0).unwrap();
    assert!(active.deadline().is_some() || driver.used().len() == 2, "found again after the pause");
}

#[test]
fn pause_leaves_nothing_in_flight() {
    both_engines(false, |block, _| {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0, 16);
        header(&driver, IN, 0);
        driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        let mut active = activated(block, &ram, &driver);
        active.ready(0).unwrap();
        active.pause().unwrap();
        assert_eq!(driver.used().len(), 1);
        active.resume().unwrap();
        active.deactivate().unwrap();
    });
}

#[test]
fn reset_waits_for_what_is_in_flight_and_the_disk_can_be_used_again() {
    let (block, mut writer) = disk_on_a_pipe();
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    header(&driver, IN, 0);
    driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    let mut active = activated(block, &ram, &driver);
    active.ready(0).unwrap();
    assert!(driver.used().is_empty(), "the pipe is empty");
    let storage = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        writer.write_all(&[0x77; 1024]).unwrap();
        writer
    });
    let device = active.deactivate().unwrap();
    let _writer = storage.join().unwrap();
    assert_eq!(driver.bytes(DATA, 512), vec![0x77; 512], "the buffers outlived the reset");
    assert!(driver.used().is_empty(), "a driver that has reset the device is told nothing");

    let mut driver = Driver::new(&ram, 0, 16);
    driver.set_avail_idx(0);
    header(&driver, IN, 0);
    driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    let (activation, _) = activation(&ram, &[&driver]);
    let mut active = device.activate(activation).unwrap();
    serve(&mut active, &driver, 1).unwrap();
    assert_eq!(status(&driver), OK);
    active.deactivate().unwrap();
}

#[test]
fn storage_that_never_answers_is_a_named_fault_and_its_buffers_stay_mapped() {
    let (mut block, _writer) = disk_on_a_pipe();
    block.drain_limit = Duration::from_millis(20);
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    header(&driver, IN, 0);
    driver.chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    let mut active = activated(block, &ram, &driver);
    active.ready(0).unwrap();
    let fault = active.deactivate().err().expect("the storage does not answer");
    let text = fault.to_string();
    assert!(
        matches!(fault, DeviceFault::Host { .. }) && text.contains("disk data: wait for the host's storage"),
        "{text}"
    );
    // The test's own handle, and one that nobody can drop any more.
    assert!(Arc::strong_count(&ram) > 1, "the memory would be freed under the kernel");
}
