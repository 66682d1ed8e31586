//! The app's network: loopback, one DHCP client per Ethernet interface, and the files that tell the app about it.

use crate::console::Console;
use crate::dhcp::{Client, Event, Lease};
use crate::inroot;
use crate::interface::Interfaces;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the app's start waits for addresses. An app without its network is started all the same: it may not need one.
const LEASE_TIMEOUT: Duration = Duration::from_secs(30);
/// Most interfaces that get a client.
const LIMIT_INTERFACES: usize = 16;
/// Longest sleep of a client, so that waits stay far from the limits of socket timeouts.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// What the network files are made of.
struct Files {
    /// The app's root; gone once the network is given up.
    root: Mutex<Option<OwnedFd>>,
    hostname: String,
    leases: Mutex<BTreeMap<String, Lease>>,
}

/// The running network. Dropped, it lets go of the app's root, so that this can be unmounted; leases are kept, but no longer told to the app.
pub struct Network(Arc<Files>);

impl Drop for Network {
    fn drop(&mut self) {
        self.0.root.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Brings the network up and keeps the leases for as long as the VM runs. Returns when every interface has its first lease, or after 30 s.
///
/// # Errors
/// When the loopback interface or the network files cannot be set up; a missing lease is only reported.
pub fn start(root: OwnedFd, hostname: &str, console: &Arc<Console>) -> io::Result<Network> {
    let interfaces = Interfaces::open()?;
    interfaces.up("lo")?;
    let files = Arc::new(Files { root: Mutex::new(Some(root)), hostname: hostname.into(), leases: Mutex::default() });
    files.write()?;

    let names = ethernet()?;
    let (sender, first_leases) = sync_channel(LIMIT_INTERFACES);
    for (index, name) in names.iter().enumerate() {
        let (name, files, console, sender) = (name.clone(), Arc::clone(&files), Arc::clone(console), sender.clone());
        // The first interface's default route wins.
        let metric = u8::try_from(index).unwrap_or(u8::MAX);
        std::thread::Builder::new().name(format!("dhcp-{name}")).stack_size(128 << 10).spawn(move || {
            if let Err(e) = serve(&name, metric, &files, &console, sender) {
                console.say(&format!("error: {name}: {e}"));
            }
        })?;
    }
    drop(sender);
    wait(&names, &first_leases, console);
    Ok(Network(files))
}

fn wait(names: &[String], first_leases: &Receiver<String>, console: &Console) {
    let started = Instant::now();
    let mut missing = names.to_vec();
    while !missing.is_empty() {
        match first_leases.recv_timeout(LEASE_TIMEOUT.saturating_sub(started.elapsed())) {
            Ok(name) => missing.retain(|m| *m != name),
            Err(RecvTimeoutError::Timeout) => {
                console.say(&format!(
                    "error: {}: no DHCP lease within {} s; starting the app without, still asking",
                    missing.join(", "),
                    LEASE_TIMEOUT.as_secs()
                ));
                return;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn ethernet() -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.strip_prefix("eth").is_some_and(|rest| rest.parse::<u16>().is_ok()))
        .collect();
    names.sort_by_key(|n| n[3..].parse::<u16>().unwrap_or(u16::MAX));
    names.truncate(LIMIT_INTERFACES);
    Ok(names)
}

/// One interface's client; ends only on an error.
fn serve(name: &str, metric: u8, files: &Files, console: &Console, first: SyncSender<String>) -> io::Result<Network> {
    let interfaces = Interfaces::open()?;
    interfaces.up(name)?;
    let mut xid = [0; 4];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut xid)?;
    let socket = client_socket(name)?;
    let started = Instant::now();
    let mut client = Client::new(interfaces.mac(name)?, &files.hostname, u32::from_ne_bytes(xid), Duration::ZERO);
    let mut first = Some(first);
    let mut buffer = [0; 2048];
    loop {
        let (send, event, wait) = client.poll(started.elapsed());
        if let Some(event) = event {
            apply(name, metric, &event, &interfaces, files, console)?;
        }
        if let Some(send) = send {
            // A link that is not up yet refuses to send; the next try comes with the client's own backoff.
            let _ = socket.send_to(&send.bytes, SocketAddrV4::new(send.to, 67));
        }
        socket.set_read_timeout(Some(wait.min(WAIT_MAX)))?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                if let Some(event) = client.receive(started.elapsed(), &buffer[..length]) {
                    apply(name, metric, &event, &interfaces, files, console)?;
                    if let (Event::Bound(_), Some(first)) = (&event, first.take()) {
                        let _ = first.send(name.into());
                    }
                }
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::NetworkDown
                ) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Port 68 of one interface, able to send and to take broadcasts before there is an address.
fn client_socket(name: &str) -> io::Result<UdpSocket> {
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::Broadcast, &true)?;
    setsockopt(&fd, sockopt::BindToDevice, &OsString::from(name))?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68)))?;
    Ok(UdpSocket::from(fd))
}

fn apply(
    name: &str,
    metric: u8,
    event: &Event,
    interfaces: &Interfaces,
    files: &Files,
    console: &Console,
) -> io::Result<()> {
    let mut leases = files.leases.lock().unwrap_or_else(PoisonError::into_inner);
    match event {
        Event::Bound(lease) => {
            let before = leases.insert(name.into(), lease.clone());
            if before.as_ref() == Some(lease) {
                return Ok(());
            }
            if let Some(mtu) = lease.mtu {
                interfaces.set_mtu(name, mtu)?;
            }
            interfaces.set_address(name, lease.address, lease.prefix_len)?;
            for (destination, prefix_len, gateway) in &lease.routes {
                if !gateway.is_unspecified() && !same_network(lease, *gateway) {
                    interfaces.add_route(name, *gateway, 32, Ipv4Addr::UNSPECIFIED, metric)?;
                }
                if let Err(e) = interfaces.add_route(name, *destination, *prefix_len, *gateway, metric) {
                    console.say(&format!("error: {name}: route {destination}/{prefix_len} by {gateway}: {e}"));
                }
            }
            console.say(&format!("{name}: {}/{}", lease.address, lease.prefix_len));
        }
        Event::Lost => {
            leases.remove(name);
            interfaces.set_address(name, Ipv4Addr::UNSPECIFIED, 0)?;
            console.say(&format!("error: {name}: the DHCP lease has ended; asking again"));
        }
    }
    drop(leases);
    files.write()
}

fn same_network(lease: &Lease, gateway: Ipv4Addr) -> bool {
    let host_bits = 32 - u32::from(lease.prefix_len.min(32));
    let network = |a: Ipv4Addr| u32::from(a).checked_shr(host_bits).unwrap_or(0);
    network(lease.address) == network(gateway)
}

impl Files {
    fn write(&self) -> io::Result<()> {
        let root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(root) = root.as_ref() else { return Ok(()) };
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        inroot::replace(root, "/etc", "hostname", &format!("{}\n", self.hostname))?;
        inroot::replace(root, "/etc", "hosts", &hosts(&self.hostname, leases.values()))?;
        inroot::replace(root, "/etc", "resolv.conf", &resolv_conf(leases.values()))
    }
}

fn hosts<'a>(hostname: &str, leases: impl Iterator<Item = &'a Lease>) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let mut leases = leases.peekable();
    if leases.peek().is_none() && !hostname.is_empty() {
        let _ = writeln!(text, "127.0.1.1\t{hostname}");
    }
    for lease in leases {
        let full = lease.domain.as_ref().map(|d| format!("{hostname}.{d} ")).unwrap_or_default();
        let _ = writeln!(text, "{}\t{full}{hostname}", lease.address);
    }
    text
}

fn resolv_conf<'a>(leases: impl Iterator<Item = &'a Lease>) -> String {
    let mut servers: Vec<Ipv4Addr> = Vec::new();
    let mut domains: Vec<&str> = Vec::new();
    for lease in leases {
        servers.extend(&lease.dns);
        domains.extend(lease.domain.as_deref());
    }
    let mut text = String::new();
    if !domains.is_empty() {
        domains.dedup();
        let _ = writeln!(text, "search {}", domains.join(" "));
    }
    // The resolver of glibc reads three servers.
    for server in servers.iter().take(3) {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            address: Ipv4Addr::new(10, 1, 0, 7),
            prefix_len: 24,
            routes: vec![],
            dns: vec![Ipv4Addr::new(10, 1, 0, 1)],
            domain: Some("lan".into()),
            mtu: None,
            server: Ipv4Addr::new(10, 1, 0, 1),
            lease_seconds: 60,
            renew_seconds: 30,
            rebind_seconds: 50,
        }
    }

    #[test]
    fn files_tell_the_lease() {
        assert_eq!(resolv_conf([&lease()].into_iter()), "search lan\nnameserver 10.1.0.1\n");
        assert!(hosts("web", [&lease()].into_iter()).ends_with("\n10.1.0.7\tweb.lan web\n"));
    }

    #[test]
    fn without_a_lease_the_name_still_resolves() {
        assert_eq!(resolv_conf(std::iter::empty()), "");
        assert!(hosts("web", std::iter::empty()).ends_with("\n127.0.1.1\tweb\n"));
    }

    #[test]
    fn more_name_servers_than_the_resolver_reads_are_left_out() {
        let mut many = lease();
        many.dns = vec![Ipv4Addr::LOCALHOST; 9];
        assert_eq!(resolv_conf([&many, &lease()].into_iter()).matches("nameserver").count(), 3);
    }

    #[test]
    fn a_gateway_outside_the_network_needs_a_route_of_its_own() {
        assert!(same_network(&lease(), Ipv4Addr::new(10, 1, 0, 254)));
        assert!(!same_network(&lease(), Ipv4Addr::new(10, 1, 1, 1)));
        let host = Lease { prefix_len: 32, ..lease() };
        assert!(!same_network(&host, Ipv4Addr::new(10, 1, 0, 1)));
    }
}
