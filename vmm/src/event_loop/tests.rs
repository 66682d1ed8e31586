use super::*;
use crate::control::{ControlClient, listen};
use crate::pci::virtio::DeviceLoop;
use crate::vcpu::Buses;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::interrupt::IrqLine;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{Driver, activation, ram};
use crate::virtio::{DeviceKind, F_COMMON};
use holdfast_model::contract::vm::DeviceStats;
use holdfast_model::contract::vm::RunState;
use holdfast_model::contract::vm::WindowSize;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
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
    terminal: Arc<Terminal>,
    /// Rung for the guest's end of the console.
    bell: Arc<EventFd>,
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

/// A device thread with an entropy device in slot 0, a console of which the guest's end is the test, and no vCPUs.
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
    let terminal = Terminal::new("console", None, None);
    let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    event_loop.add_console(terminal.clone(), bell.clone()).unwrap();
    let buses = Arc::new(Buses { pio: Default::default(), mmio: Default::default() });
    let vcpus = VcpuSet::start(Vec::new(), &[], &buses, &end, &Arc::new(Barrier::new(1)), false).unwrap();
    vcpus.resume();
    let thread = std::thread::spawn(move || event_loop.run(&vcpus));
    Running { handle, end, terminal, bell, thread, socket, _directory: directory }
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

impl Running {
    fn client(&self) -> ControlClient {
        ControlClient::connect(&self.socket).unwrap()
    }

    fn stop(self) {
        self.end.finish(End::new(ExitClass::PowerOff, "test"));
        assert_eq!(self.thread.join().unwrap().class, ExitClass::PowerOff);
    }

    /// What the guest can read, once it has been told that there is something.
    fn guest_reads(&self, len: usize) -> Vec<u8> {
        let mut got = Vec::new();
        eventually("input announced", || self.bell.read().is_ok());
        let deadline = Instant::now() + Duration::from_secs(5);
        while got.len() < len && Instant::now() < deadline {
            let mut buf = [0; 64];
            let count = self.terminal.take(&mut buf);
            got.extend_from_slice(&buf[..count]);
        }
        got
    }
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut got = vec![0; len];
    stream.read_exact(&mut got).unwrap();
    got
}

#[test]
fn attached_client_sees_what_was_and_what_comes_and_types() {
    let running = start();
    running.terminal.put(b"was ");
    let (mut stream, name, replayed) = running.client().attach(None, true).unwrap();
    assert_eq!((name.as_str(), replayed), ("console", 4));
    // The control connection is closed by now; the stream is not.
    running.terminal.put(b"comes");
    assert_eq!(read(&mut stream, 9), b"was comes");
    stream.write_all(b"typed").unwrap();
    assert_eq!(running.guest_reads(5), b"typed");
    let (mut second, ..) = running.client().attach(Some("console"), false).unwrap();
    running.terminal.put(b"both");
    assert_eq!((read(&mut stream, 4), read(&mut second, 4)), (b"both".to_vec(), b"both".to_vec()));
    let stats = running.client().stats().unwrap().consoles;
    assert_eq!((stats[0].0.as_str(), stats[0].1.attached, stats[0].1.in_bytes), ("console", 2, 5));
    drop((stream, second));
    eventually("detached", || running.client().stats().unwrap().consoles[0].1.attached == 0);
    running.stop();
}

#[test]
fn input_is_kept_while_paused() {
    let running = start();
    let mut client = running.client();
    let (mut stream, ..) = client.attach(None, true).unwrap();
    client.pause().unwrap();
    stream.write_all(b"later").unwrap();
    // Output of before the pause is still to be had.
    assert_eq!(client.ping().unwrap(), RunState::Paused);
    std::thread::sleep(Duration::from_millis(20));
    assert!(running.bell.read().is_err(), "the guest is told nothing");
    client.resume().unwrap();
    assert_eq!(running.guest_reads(5), b"later");
    running.stop();
}

#[test]
fn clients_far_behind_are_fed_as_they_read() {
    let running = start();
    let (mut slow, ..) = running.client().attach(None, true).unwrap();
    let mut expected = Vec::new();
    for n in 0..40u8 {
        running.terminal.put(&[n; 1024]);
        expected.extend([n; 1024]);
    }
    assert!(read(&mut slow, expected.len()) == expected);
    running.stop();
}

#[test]
fn requests_for_consoles_that_cannot_be_had_are_refused_with_what_can() {
    let running = start();
    let mut client = running.client();
    let reason = client.attach(Some("serial"), true).unwrap_err().to_string();
    assert!(reason.contains("no console \"serial\"; there is console"), "{reason}");
    let size = WindowSize { columns: 80, rows: 25 };
    let reason = client.resize(None, size).unwrap_err().to_string();
    assert!(reason.contains("console console: its driver"), "{reason}");
    running.terminal.set_follows_size(true);
    client.resize(None, size).unwrap();
    assert_eq!(running.terminal.size(), size);
    assert!(running.bell.read().is_ok());
    let streams: Vec<_> = (0..crate::terminal::MAX_ATTACHED).map(|_| client.attach(None, true).unwrap()).collect();
    let reason = client.attach(None, true).unwrap_err().to_string();
    assert!(reason.contains("detach one"), "{reason}");
    drop(streams);
    eventually("room again", || running.client().attach(None, true).is_ok());
    running.stop();
}

#[test]
fn counters_outlive_a_driver_that_resets() {
    let running = start();
    let ram = ram();
    let mut seen = 0;
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
        seen += 16;
        assert_eq!(running.client().stats().unwrap().devices[0].1.in_bytes, seen);
    }
    running.stop();
}
