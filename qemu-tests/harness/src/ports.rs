//! Free TCP and UDP ports on loopback for QEMU's port forwarding.

use anyhow::{Context, Result};
use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

/// Tries before giving up.
const TRIES: usize = 64;

/// Ports handed out by this process: a port is free only until QEMU listens on it, so none is given twice.
static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port on 127.0.0.1 that nobody listens on, for TCP and UDP alike. Another process may still take it before it is used: whoever uses
/// it must be ready to ask again.
///
/// # Errors
/// When the kernel has none left.
pub fn free() -> Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    for _ in 0..TRIES {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free TCP port on 127.0.0.1")?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && given.insert(port) {
            return Ok(port);
        }
    }
    anyhow::bail!("no port on 127.0.0.1 is free for both TCP and UDP after {TRIES} tries")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let ports: HashSet<u16> = (0..20).map(|_| free().unwrap()).collect();
        assert_eq!(ports.len(), 20);
        for port in ports {
            // A process being started by another thread holds copies of our sockets until it execs: the port may be taken for a moment.
            let free = (0..100).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            });
            assert!(free, "port {port} is not free");
        }
    }
}
