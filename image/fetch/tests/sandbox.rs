//! What the sandboxed process cannot do any more. One test, alone in its process: there is no way back out.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::net::{TcpListener, ToSocketAddrs as _};
use std::process::Command;

#[test]
fn inside_only_given_descriptors_the_resolver_and_outgoing_connections_work() {
    let mut given = tempfile::tempfile().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let listening = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listening.local_addr().unwrap();

    holdfast_fetch::sandbox::enter().unwrap();

    given.write_all(b"still mine").unwrap();
    given.rewind().unwrap();
    let mut text = String::new();
    given.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still mine");
    assert!(("localhost", 80).to_socket_addrs().unwrap().next().is_some());
    std::net::TcpStream::connect(address).unwrap();

    let denied = |e: std::io::Error| e.kind() == ErrorKind::PermissionDenied;
    assert!(Command::new("/bin/true").status().is_err_and(denied), "a program was started");
    // SAFETY: numbers only.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
    assert!(socket < 0, "a unix socket was made");
    // Landlock, where the kernel has it.
    let lsm = std::fs::read_to_string("/sys/kernel/security/lsm");
    match File::open("/etc/passwd") {
        Err(e) => {
            assert!(denied(e));
            assert!(File::create(dir.path().join("new")).is_err_and(denied), "a file was made");
            assert!(TcpListener::bind(("127.0.0.1", 0)).is_err(), "it listens");
        }
        Ok(_) => println!("NOT CHECKED: this kernel has no Landlock ({lsm:?})"),
    }
    std::mem::forget(dir); // it cannot be removed from in here
}
