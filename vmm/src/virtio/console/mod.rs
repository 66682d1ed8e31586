//! virtio console (virtio 1.3 §5.3): port 0 is the guest's `hvc0`, further ports are byte streams with names
//! (`/dev/vport0p1`, its name in sysfs).
//!
//! The host's side of each port is a [`Terminal`](crate::terminal::Terminal), so a port never makes the guest wait. Without
//! named ports the device offers no VIRTIO_CONSOLE_F_MULTIPORT and has two queues; a driver that does not take the feature
//! sees port 0 alone.
//!
//! ```text
//!  queue  0 receive, 1 transmit      port 0
//!         2 receive, 3 transmit      control, only with VIRTIO_CONSOLE_F_MULTIPORT
//!         4 receive, 5 transmit ..   port 1 ..
//! ```
//!
//! [`space`] has the configuration space; what a driver writes to its `emerg_wr` is output of port 0, whatever state the
//! device is in. [`control`] has the control messages, which go both ways; [`port`] the two data queues of one port.

mod active;
mod control;
mod device;
mod port;
mod space;
#[cfg(test)]
mod tests;

pub use device::{Console, MAX_PORTS, Port};

/// Fuzz entry: a hostile driver against the configuration space and the queues of three ports and of control.
#[doc(hidden)]
pub fn fuzz_console(data: &[u8]) {
    use super::{Device, fuzzing};
    use crate::terminal::Terminal;
    let (terminal, other) = (Terminal::new("console", None, None), Terminal::new("other", None, None));
    let name = |name: &str| Some(name.to_string());
    let ports = [(None, &terminal), (name("org.example.a"), &other), (name("org.example.b"), &other)];
    let ports = ports.into_iter().map(|(name, terminal)| Port::new(name, terminal.clone())).collect::<Result<_, _>>();
    let Ok(ports) = ports else {
        return;
    };
    let device = Console::new("console".into(), ports);
    let space = device.config_space();
    let write = || {
        let (bytes, mut out) = (space.to_vec(), terminal.stats().out_bytes);
        for (at, data) in fuzzing::config_writes(data) {
            space.write(at, data);
            out += u64::from(at == 8 && !data.is_empty());
        }
        assert_eq!(
            (space.to_vec(), terminal.stats().out_bytes),
            (bytes, out),
            "emergency writes come out, nothing else"
        );
    };
    write();
    fuzzing::drive_with(Box::new(device), data, |_| write());
}
