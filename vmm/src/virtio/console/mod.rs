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
//! [`control`] has the control messages, which go both ways; [`port`] the two data queues of one port.

mod active;
mod control;
mod device;
mod port;
#[cfg(test)]
mod tests;

pub use device::{Console, MAX_PORTS, Port};

/// Fuzz entry: a hostile driver against the queues of three ports and of control.
#[doc(hidden)]
pub fn fuzz_console(data: &[u8]) {
    let terminal = crate::terminal::Terminal::new("console", None, None);
    let names = [None, Some("org.example.a".to_string()), Some("org.example.b".to_string())];
    let ports = names.into_iter().map(|name| Port::new(name, terminal.clone())).collect::<Result<_, _>>();
    if let Ok(ports) = ports {
        super::fuzzing::drive(Box::new(Console::new("console".into(), ports)), data);
    }
}
