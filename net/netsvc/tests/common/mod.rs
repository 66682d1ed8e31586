//! Network namespaces, cables between taps, and `netsvc` processes for the tests.
#![allow(dead_code)] // Each test file uses its part.

use holdfast_model::contract::network::{Reply, Request};
use holdfast_netkernel::{Prepared, Rtnl, Services, prepare, sys, tap};
use holdfast_plan::kinds::service::{Service, ServiceKind};
use holdfast_unit::Channel;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long an attempt may take that is expected to be dropped.
pub const DROPPED: Duration = Duration::from_millis(600);
/// How long anything may take that is expected to work.
pub const WORKS: Duration = Duration::from_secs(10);

/// A network namespace that lives as long as this value.
pub struct Namespace(File);

impl Namespace {
    /// A fresh one with its loopback up; `None` (and a printed line) without root.
    pub fn new() -> Option<Self> {
        let made = std::thread::spawn(|| {
            sys::unshare_network()?;
            File::open("/proc/thread-self/ns/net")
        });
        match made.join().expect("thread") {
            Ok(file) => {
                let ns = Self(file);
                ns.run(|| up("lo"));
                Some(ns)
            }
            Err(e) => {
                println!("not run: a network namespace needs root ({e})");
                None
            }
        }
    }

    pub fn fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Runs in this namespace, on a thread of its own.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|s| {
            s.spawn(|| {
                sys::enter_network(&self.0).expect("enter namespace");
                f()
            })
            .join()
            .expect("thread in namespace")
        })
    }

    /// Moves the calling thread into this namespace for good.
    pub fn enter(&self) {
        sys::enter_network(&self.0).expect("enter namespace");
    }
}

/// A runtime for the actuators, on the calling thread and so in its namespace.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

pub fn up(name: &str) {
    runtime().block_on(async {
        let n = Rtnl::new().expect("netlink");
        let link = n.link(name).await.expect("link");
        n.set_up(&link, true).await.expect("up");
    });
}

/// A pair of joined interfaces, one end in another namespace.
pub fn veth(name: &str, peer: &str, peer_mac: [u8; 6], peer_namespace: &Namespace) {
    runtime().block_on(async {
        let n = Rtnl::new().expect("netlink");
        n.add_veth(name, peer, Some(peer_mac), Some(peer_namespace.fd())).await.expect("veth");
    });
}

/// What a service inherits, opened in that namespace.
pub fn sockets(ns: &Namespace, service: &Service) -> Prepared {
    ns.run(|| {
        runtime().block_on(async {
            let n = Rtnl::new().expect("netlink");
            prepare(&n, service).await.expect("sockets")
        })
    })
}

/// Address (with prefix length) on an interface.
pub fn address(name: &str, prefix: &str) {
    runtime().block_on(async {
        let n = Rtnl::new().expect("netlink");
        let link = n.link(name).await.expect("link");
        n.add_address(&link, prefix.parse().expect("prefix")).await.expect("address");
    });
}

/// Route over a router on an interface.
pub fn route(destination: &str, router: Ipv4Addr, name: &str) {
    runtime().block_on(async {
        let n = Rtnl::new().expect("netlink");
        let link = n.link(name).await.expect("link");
        let route = holdfast_netkernel::route::KernelRoute {
            table: 254,
            destination: destination.parse().expect("prefix"),
            metric: 0,
            output: Some(link.index),
            router: Some(router.into()),
            source: None,
            unreachable: false,
            ours: true,
        };
        n.add_route(&route).await.expect("route");
    });
}

/// Joins a tap of the device with a fresh interface `eth0` in an app's namespace, as a VMM would.
pub struct Cable {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// The only queue of a tap.
fn attach(name: &str) -> OwnedFd {
    holdfast_links::tap::attach(name, 1).expect("attach").remove(0)
}

impl Cable {
    pub fn plug(device: &Namespace, tap_name: &str, app: &Namespace, mac: [u8; 6]) -> Self {
        let host = device.run(|| attach(tap_name));
        let guest = app.run(|| {
            runtime().block_on(async {
                let n = Rtnl::new().expect("netlink");
                if n.find_link("eth0").await.expect("links").is_none() {
                    tap::create(&n, "eth0", 0, false).await.expect("tap");
                }
                let link = n.link("eth0").await.expect("link");
                n.set_mac(&link, mac).await.expect("mac");
                let fd = attach("eth0");
                let link = n.link("eth0").await.expect("link");
                n.set_up(&link, true).await.expect("up");
                fd
            })
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (host, guest) = (File::from(host), File::from(guest));
        let pairs = [(host.try_clone().expect("dup"), guest.try_clone().expect("dup")), (guest, host)];
        let threads = pairs
            .into_iter()
            .map(|(mut from, mut to)| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    let mut frame = vec![0; 70_000];
                    while !stop.load(Ordering::Relaxed) {
                        match from.read(&mut frame) {
                            Ok(n) => drop(to.write(&frame[..n])),
                            Err(_) => std::thread::sleep(Duration::from_millis(1)),
                        }
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

/// Runs `netsvc` as child processes of the test, as PID 1 would as units.
pub struct Processes {
    directory: tempfile::TempDir,
    children: RefCell<BTreeMap<String, (Child, Service)>>,
    pub started: RefCell<Vec<String>>,
}

impl Processes {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("directory"),
            children: RefCell::default(),
            started: RefCell::default(),
        }
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.sock"))
    }

    pub fn control(&self, name: &str) -> Channel {
        Channel::connect(&self.socket(name)).expect("control")
    }

    /// One question to a service, whose refusal fails the test.
    pub fn ask(&self, name: &str, request: &Request) -> Reply {
        match self.control(name).ask(request, WORKS).expect("answer") {
            Reply::Error { text } => panic!("{name} refused: {text}"),
            reply => reply,
        }
    }

    pub fn launch(&self, service: &Service, prepared: Prepared) {
        let listener = sys::seqpacket_listener(&self.socket(&service.name)).expect("listener");
        let mut config = tempfile::tempfile().expect("file");
        let text = holdfast_model::contract::write(&prepared.config).expect("json");
        config.write_all(&text).expect("write");
        let mut fds: Vec<OwnedFd> = vec![config.into(), listener];
        fds.extend(prepared.sockets);
        let numbers: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        // Another build of the program, for example the static one of an image, may take the stand.
        let program = std::env::var_os("HOLDFAST_NETSVC").unwrap_or_else(|| env!("CARGO_BIN_EXE_netsvc").into());
        let mut command = Command::new(program);
        command.args(["--config-fd", "3"]).stdin(Stdio::null()).uid(1100).gid(1100);
        // SAFETY: only fcntl and dup2 between fork and exec; both may be called there.
        unsafe {
            command.pre_exec(move || {
                let mut high = [0; 64];
                for (to, fd) in high.iter_mut().zip(&numbers) {
                    *to = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 200);
                }
                for (i, fd) in high.iter().take(numbers.len()).enumerate() {
                    if libc::dup2(*fd, 3 + i as i32) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("netsvc");
        self.started.borrow_mut().push(service.name.clone());
        self.children.borrow_mut().insert(service.name.clone(), (child, service.clone()));
    }

    pub fn end(&self, name: &str) {
        let child = self.children.borrow_mut().remove(name);
        if let Some((mut child, _)) = child {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    pub fn is_alive(&self, name: &str) -> bool {
        let mut children = self.children.borrow_mut();
        let child = children.get_mut(name);
        child.is_some_and(|(c, _)| c.try_wait().expect("wait").is_none())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let names: Vec<String> = self.children.borrow().keys().cloned().collect();
        for name in names {
            self.end(&name);
        }
    }
}

impl Services for Processes {
    async fn start(&self, service: &Service, prepared: Prepared) -> Result<(), String> {
        self.end(&service.name);
        self.launch(service, prepared);
        Ok(())
    }

    async fn update(&self, _old: &Service, new: &Service) -> Result<(), String> {
        let request = match &new.kind {
            ServiceKind::Network { service, .. } => Request::Update { service: service.clone() },
            ServiceKind::DhcpClient(c) => Request::SetHostName { host_name: c.host_name.clone() },
        };
        self.ask(&new.name, &request);
        if let Some((_, s)) = self.children.borrow_mut().get_mut(&new.name) {
            *s = new.clone();
        }
        Ok(())
    }

    async fn stop(&self, service: &Service) -> Result<(), String> {
        self.end(&service.name);
        Ok(())
    }

    async fn running(&self) -> Vec<Service> {
        self.children.borrow().values().map(|(_, s)| s.clone()).collect()
    }
}

/// The lease of a DHCP client, waited for.
pub fn wait_for_lease(processes: &Processes, name: &str) -> holdfast_model::contract::network::Lease {
    let mut control = processes.control(name);
    control.send_within(&Request::Subscribe, &[], WORKS).expect("subscribe");
    let end = Instant::now() + WORKS;
    while Instant::now() < end {
        if let Reply::Lease { lease: Some(lease), .. } =
            control.receive_within(WORKS).expect("event").parse().expect("reply")
        {
            return lease;
        }
    }
    panic!("no lease");
}

/// Answers each TCP connection on `at` with the peer's address as text, until the value is dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub fn echo(ns: &Namespace, port: u16) -> Echo {
    let listener = ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("listen"));
    listener.set_nonblocking(true).expect("nonblocking");
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let thread = std::thread::spawn(move || {
        let mut open = Vec::new();
        while !flag.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((mut s, from)) => {
                    let _ = s.write_all(format!("{}\n", from.ip()).as_bytes());
                    s.set_nonblocking(true).expect("nonblocking");
                    open.push(s);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
            // What comes is sent back.
            open.retain_mut(|s: &mut TcpStream| {
                let mut b = [0; 256];
                match s.read(&mut b) {
                    Ok(0) => false,
                    Ok(n) => s.write_all(&b[..n]).is_ok(),
                    Err(_) => true,
                }
            });
        }
    });
    Echo { stop, thread: Some(thread) }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

/// Connects from a namespace; the address that the other side saw, or `None` when nothing came back in time.
pub fn seen_as(ns: &Namespace, to: (Ipv4Addr, u16), wait: Duration) -> Option<IpAddr> {
    ns.run(|| open(to, wait)).map(|(_, ip)| ip)
}

pub fn open(to: (Ipv4Addr, u16), wait: Duration) -> Option<(TcpStream, IpAddr)> {
    let mut s = TcpStream::connect_timeout(&SocketAddr::from(to), wait).ok()?;
    s.set_read_timeout(Some(WORKS)).expect("timeout");
    let mut text = Vec::new();
    let mut b = [0; 1];
    while s.read(&mut b).ok()? == 1 && b[0] != b'\n' {
        text.push(b[0]);
    }
    Some((s, String::from_utf8(text).ok()?.parse().ok()?))
}

/// Asks a DNS server for the A records of a name: response code and addresses.
pub fn resolve(ns: &Namespace, server: Ipv4Addr, name: &str, tcp: bool) -> Option<(u8, Vec<Ipv4Addr>)> {
    let mut q = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    q.extend(holdfast_netsvc::dns::message::encode_name(name));
    q.extend([0, 1, 0, 1]);
    let len = q.len();
    let reply = ns.run(|| -> Option<Vec<u8>> {
        let mut b = vec![0; 4096];
        if tcp {
            let mut s = TcpStream::connect_timeout(&(server, 53).into(), WORKS).ok()?;
            s.set_read_timeout(Some(WORKS)).ok()?;
            let mut framed = (q.len() as u16).to_be_bytes().to_vec();
            framed.extend(&q);
            s.write_all(&framed).ok()?;
            let mut l = [0; 2];
            s.read_exact(&mut l).ok()?;
            b.truncate(u16::from_be_bytes(l).into());
            s.read_exact(&mut b).ok()?;
        } else {
            let s = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
            s.set_read_timeout(Some(WORKS)).ok()?;
            s.send_to(&q, (server, 53)).ok()?;
            let n = s.recv(&mut b).ok()?;
            b.truncate(n);
        }
        Some(b)
    })?;
    let count = usize::from(reply[7]);
    let records = &reply[len..];
    let ips = (0..count).map(|i| {
        let r = &records[i * 16..];
        Ipv4Addr::new(r[12], r[13], r[14], r[15])
    });
    Some((reply[3] & 15, ips.collect()))
}

/// True when the program can be started; else prints that the test is not run.
pub fn installed(program: &str, package: &str) -> bool {
    let found =
        Command::new(program).arg("--help").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("not run: {program} is not installed (package {package})");
    }
    found.is_ok()
}

/// Keeps a raw descriptor open for good (tests).
pub fn leak(fd: OwnedFd) -> i32 {
    fd.into_raw_fd()
}
