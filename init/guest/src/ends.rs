//! How the guest ended, told to the VMM on the console port of that purpose.
#![forbid(unsafe_code)]

use holdfast_model::contract::end::End;
use holdfast_model::contract::vm::GUEST_END_PORT;
use holdfast_unit::last_words;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// How long the VMM may take to take it.
const TIMEOUT_MS: u16 = 1000;

/// Says how this guest ends. Returns when the VMM has taken it, so that a power-off right after cannot overtake it.
///
/// # Errors
/// When the VM has no such port, or the VMM does not take it.
pub fn say(end: &End) -> io::Result<()> {
    let port = find(Path::new("/sys/class/virtio-ports"), Path::new("/dev"))?;
    let mut file = File::options().write(true).open(port)?;
    // A write waits for the other end to open; then for the bytes to be taken.
    if poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(TIMEOUT_MS))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut line = last_words::encode(end);
    line.push(b'\n');
    file.write_all(&line)
}

/// The device in `devices` of the port that the kernel lists under its name in `ports`.
fn find(ports: &Path, devices: &Path) -> io::Result<PathBuf> {
    for entry in fs::read_dir(ports)? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == GUEST_END_PORT) {
            return Ok(devices.join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("the VM has no console port {GUEST_END_PORT}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let ports = tempfile::tempdir().unwrap();
        assert!(find(ports.path(), Path::new("/dev")).is_err());
        for (device, name) in [("vport0p1", "org.example.agent\n"), ("vport0p2", "holdfast.end\n")] {
            fs::create_dir(ports.path().join(device)).unwrap();
            fs::write(ports.path().join(device).join("name"), name).unwrap();
        }
        assert_eq!(find(ports.path(), Path::new("/dev")).unwrap(), Path::new("/dev/vport0p2"));
    }
}
