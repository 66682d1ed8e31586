//! Control messages (virtio 1.3 §5.3.6.2): `struct virtio_console_control { le32 id; le16 event; le16 value; }`, some with
//! more behind.
//!
//! What the device has to say is a set of bits for each port, not a queue of messages: a driver that asks the same thing a
//! thousand times gets one answer, and a driver that gives no buffers costs nothing.
#![forbid(unsafe_code)]

use holdfast_model::contract::vm::WindowSize;

/// Bytes of a message without what may follow.
pub(super) const HEADER: usize = 8;
/// Longest message the device sends: a name with its terminating zero.
pub(super) const LONGEST: usize = HEADER + MAX_NAME + 1;
/// Longest name of a port.
const MAX_NAME: usize = 64;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A message from the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FromDriver {
    /// The driver takes ports, or failed to start.
    DeviceReady(bool),
    /// Port: the driver has set it up, or failed to.
    PortReady(usize, bool),
    /// Port: a program in the guest has opened or closed it.
    PortOpen(usize, bool),
}

/// Reads a message of `len` bytes of which `bytes` is the beginning; `ports` ports are known.
///
/// # Errors
/// The rule that it breaks, in words.
pub(super) fn parse(bytes: [u8; HEADER], len: u64, ports: usize) -> Result<FromDriver, String> {
    if len < HEADER as u64 {
        return Err(format!("control message of {len} bytes, expected at least {HEADER}"));
    }
    let [a, b, c, d, event @ .., e, f] = bytes;
    let (id, event, value) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes(event), u16::from_le_bytes([e, f]));
    // The device has no id: drivers send any.
    if event == DEVICE_READY {
        return Ok(FromDriver::DeviceReady(value == 1));
    }
    let port = usize::try_from(id).ok().filter(|id| *id < ports);
    let port = port.ok_or_else(|| format!("control message for port {id} of {ports}"))?;
    match event {
        PORT_READY => Ok(FromDriver::PortReady(port, value == 1)),
        PORT_OPEN => Ok(FromDriver::PortOpen(port, value == 1)),
        _ => Err(format!("control message with event {event}, which is not a driver's")),
    }
}

/// Something to tell the driver about one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum News {
    /// The port exists.
    Add = 1 << 0,
    /// It is a console.
    Console = 1 << 1,
    /// Its name.
    Name = 1 << 2,
    /// The host's side is open; it always is.
    Open = 1 << 3,
    /// The window's size.
    Resize = 1 << 4,
}

impl News {
    /// In the order in which a driver expects them.
    pub(super) const ALL: [News; 5] = [News::Add, News::Console, News::Name, News::Open, News::Resize];

    /// The message about port `id`.
    pub(super) fn message(self, id: usize, name: Option<&str>, size: WindowSize) -> Vec<u8> {
        let event = match self {
            News::Add => PORT_ADD,
            News::Console => CONSOLE_PORT,
            News::Name => PORT_NAME,
            News::Open => PORT_OPEN,
            News::Resize => RESIZE,
        };
        let mut message = Vec::with_capacity(LONGEST);
        message.extend(u32::try_from(id).unwrap_or(u32::MAX).to_le_bytes());
        message.extend(event.to_le_bytes());
        message.extend(1u16.to_le_bytes());
        match self {
            News::Name => {
                message.extend(name.unwrap_or("").bytes().take(MAX_NAME));
                message.push(0);
            }
            // struct virtio_console_resize { le16 cols; le16 rows; }
            News::Resize => {
                message.extend(size.columns.to_le_bytes());
                message.extend(size.rows.to_le_bytes());
            }
            News::Add | News::Console | News::Open => {}
        }
        message
    }
}

/// News that the driver has not been told yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Untold(u8);

impl Untold {
    pub(super) fn add(&mut self, news: News) {
        self.0 |= news as u8;
    }

    /// The next one to tell.
    pub(super) fn first(self) -> Option<News> {
        News::ALL.into_iter().find(|news| self.0 & *news as u8 != 0)
    }

    pub(super) fn told(&mut self, news: News) {
        self.0 &= !(news as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_have_the_layout_of_the_specification() {
        let size = WindowSize { columns: 0x0102, rows: 0x0304 };
        assert_eq!(News::Add.message(3, None, size), [3, 0, 0, 0, 1, 0, 1, 0]);
        assert_eq!(News::Name.message(1, Some("ab"), size), [1, 0, 0, 0, 7, 0, 1, 0, b'a', b'b', 0]);
        assert_eq!(News::Resize.message(0, None, size), [0, 0, 0, 0, 5, 0, 1, 0, 2, 1, 4, 3]);
        assert_eq!(News::Name.message(1, Some(&"x".repeat(300)), size).len(), LONGEST);
    }

    #[test]
    fn driver_messages_are_read_and_broken_ones_named() {
        let message = |id: u32, event: u16, value: u16| {
            let mut bytes = [0; HEADER];
            bytes[..4].copy_from_slice(&id.to_le_bytes());
            bytes[4..6].copy_from_slice(&event.to_le_bytes());
            bytes[6..].copy_from_slice(&value.to_le_bytes());
            bytes
        };
        assert_eq!(parse(message(u32::MAX, 0, 1), 8, 2), Ok(FromDriver::DeviceReady(true)));
        assert_eq!(parse(message(1, 3, 1), 8, 2), Ok(FromDriver::PortReady(1, true)));
        assert_eq!(parse(message(0, 6, 0), 4096, 2), Ok(FromDriver::PortOpen(0, false)));
        for (bytes, len, word) in [
            (message(0, 3, 1), 7, "7 bytes"),
            (message(2, 3, 1), 8, "port 2 of 2"),
            (message(u32::MAX, 6, 1), 8, "port 4294967295"),
            (message(0, 1, 1), 8, "event 1"),
            (message(0, 99, 1), 8, "event 99"),
        ] {
            let reason = parse(bytes, len, 2).unwrap_err();
            assert!(reason.contains(word), "{word:?} not in {reason:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn accepted_messages_name_a_port_that_exists(bytes: [u8; HEADER], len in 0u64..20, ports in 1usize..16) {
            match parse(bytes, len, ports) {
                Ok(FromDriver::PortReady(port, _) | FromDriver::PortOpen(port, _)) => prop_assert!(port < ports && len >= 8),
                Ok(FromDriver::DeviceReady(_)) => prop_assert!(len >= 8),
                Err(reason) => prop_assert!(reason.starts_with("control message")),
            }
        }
    }
}
