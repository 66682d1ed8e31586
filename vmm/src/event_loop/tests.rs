use super::*;
use crate::control::{ControlClient, listen};
use crate::pci::virtio::DeviceLoop;
use crate::vcpu::Buses;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::interrupt::IrqLine;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{Driver, activation, ram};
use crate::virtio::{DeviceKind, DeviceStats, F_COMMON};
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

#[derive(Debug)]
struct NoLine;

impl IrqLine for NoLine {
    fn set(&self, _: bool) {}
}

struct Running {
    handle: Arc<LoopHandle>,
    end: Arc<EndSlot>,
    thread: JoinHandle<End>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

/// A device that does nothing but ask to be called a few times.
struct Alarm {
    calls: Arc<AtomicU32>,
    next: Option<Instant>,
}

const ALARM_CALLS: u32 = 3;
const ALARM_PERIOD: Duration = Duration::from_millis(5);

impl Device for Alarm {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn name(&self) -> &str {
        "alarm"
    }

    fn features(&self) -> u64 {
        F_COMMON
    }

    fn queue_sizes(&self) -> &[u16] {
        &[]
    }

    fn config_space(&self) -> DeviceConfig {
        Vec::new().into()
    }

    fn activate(mut self: Box<Self>, _: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
        self.next = Some(Instant::now() + ALARM_PERIOD);
        Ok(self)
    }
}

impl ActiveDevice for Alarm {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn ready(&mut self, _: u8) -> Result<Progress, DeviceFault> {
        Ok(Progress::Drained)
    }

    fn deadline(&self) -> Option<Instant> {
        self.next
    }

    fn expired(&mut self) -> Result<(), DeviceFault> {
        let now = Instant::now();
        assert!(self.next.is_some_and(|at| at <= now), "called early or unasked");
        let calls = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.next = (calls < ALARM_CALLS).then_some(now + ALARM_PERIOD);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn deactivate(self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        Ok(self)
    }

    fn stats(&self) -> DeviceStats {
        DeviceStats::default()
    }
}

/// A device thread with an entropy device in slot 0 and no vCPUs.
fn start() -> Running {
    start_with(Box::new(Rng::new("rng".into())))
}

/// A device thread with `device` in slot 0 and no vCPUs.
fn start_with(device: Box<dyn Device>) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control");
    let control = ControlServer::new(listen(&socket).unwrap()).unwrap();
    let (handle, end) = (LoopHandle::new().unwrap(), EndSlot::new().unwrap());
    let terminate = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let power = Power::new(Arc::new(NoLine));
    let mut event_loop = EventLoop::new(handle.clone(), end.clone(), power, terminate, Some(control)).unwrap();
    event_loop.add(device);
    let buses = Arc::new(Buses { pio: Default::default(), mmio: Default::default() });
    let vcpus = VcpuSet::start(Vec::new(), &buses, &end, &Arc::new(Barrier::new(1)), false).unwrap();
    vcpus.resume();
    let thread = std::thread::spawn(move || event_loop.run(&vcpus));
    Running { handle, end, thread, socket, _directory: directory }
}

fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn activated_device_serves_kicks_until_reset_and_can_be_activated_again() {
    let running = start();
    let ram = ram();
    for _ in 0..2 {
        let mut driver = Driver::new(&ram, 0, 16);
        driver.set_avail_idx(0);
        driver.clear_used();
        let (activation, _vectors) = activation(&ram, &[&driver]);
        running.handle.activate(0, activation).unwrap();
        driver.chain(&[(0x8_0000, 16, true)]);
        driver.kick();
        eventually("request served", || driver.used().len() == 1);
        running.handle.reset(0).unwrap();
    }
    running.end.finish(End::new(ExitClass::PowerOff, "test"));
    assert_eq!(running.thread.join().unwrap().class, ExitClass::PowerOff);
}

#[test]
fn paused_device_serves_nothing_and_catches_up_after_resume() {
    let running = start();
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    let (activation, _vectors) = activation(&ram, &[&driver]);
    running.handle.activate(0, activation).unwrap();
    let mut client = ControlClient::connect(&running.socket).unwrap();
    client.pause().unwrap();
    assert_eq!(client.ping().unwrap(), RunState::Paused);
    driver.chain(&[(0x8_0000, 16, true)]);
    driver.kick();
    std::thread::sleep(Duration::from_millis(20));
    assert!(driver.used().is_empty());
    client.resume().unwrap();
    eventually("request served", || driver.used().len() == 1);
    assert_eq!(client.stats().unwrap().devices[0].1.in_bytes, 16);
    client.pause().unwrap();
    client.stop(Duration::from_secs(60)).unwrap();
    assert_eq!(running.thread.join().unwrap().class, ExitClass::Stopped);
}

#[test]
fn device_is_called_at_its_deadlines_but_not_while_paused() {
    let calls = Arc::new(AtomicU32::new(0));
    let running = start_with(Box::new(Alarm { calls: calls.clone(), next: None }));
    let mut client = ControlClient::connect(&running.socket).unwrap();
    client.pause().unwrap();
    let ram = ram();
    running.handle.activate(0, activation(&ram, &[]).0).unwrap();
    std::thread::sleep(4 * ALARM_PERIOD);
    assert_eq!(calls.load(Ordering::SeqCst), 0, "called while paused");
    client.resume().unwrap();
    eventually("all deadlines", || calls.load(Ordering::SeqCst) == ALARM_CALLS);
    std::thread::sleep(4 * ALARM_PERIOD);
    assert_eq!(calls.load(Ordering::SeqCst), ALARM_CALLS, "called without a deadline");
    running.handle.reset(0).unwrap();
    running.end.finish(End::new(ExitClass::PowerOff, "test"));
    assert_eq!(running.thread.join().unwrap().class, ExitClass::PowerOff);
}

#[test]
fn broken_ring_ends_the_vm_as_the_guests_fault() {
    let running = start();
    let ram = ram();
    let mut driver = Driver::new(&ram, 0, 16);
    let (activation, _vectors) = activation(&ram, &[&driver]);
    running.handle.activate(0, activation).unwrap();
    driver.offer(99);
    driver.kick();
    let end = running.thread.join().unwrap();
    assert_eq!(end.class, ExitClass::GuestFault);
    assert!(end.reason.contains("rng queue 0"), "{end}");
    drop(running.handle);
}

#[test]
fn stop_deadline_ends_a_guest_that_does_not_obey() {
    let running = start();
    let mut client = ControlClient::connect(&running.socket).unwrap();
    client.stop(Duration::from_millis(30)).unwrap();
    assert_eq!(running.thread.join().unwrap().class, ExitClass::Stopped);
}

#[test]
fn order_for_a_device_that_is_not_there_is_refused_by_name() {
    let running = start();
    let mut client = ControlClient::connect(&running.socket).unwrap();
    let refusal = client.balloon(1).unwrap_err().to_string();
    assert!(refusal.contains("no balloon device"), "{refusal}");
    let refusal = client.vsock_cid(7).unwrap_err().to_string();
    assert!(refusal.contains("no vsock device"), "{refusal}");
    running.end.finish(End::new(ExitClass::PowerOff, "test"));
    running.thread.join().unwrap();
}
