//! The power button, as the input device that ACPI makes of it.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `struct input_event` of 64-bit Linux: two times of 8 bytes, u16 type, u16 code, i32 value.
const EVENT_BYTES: usize = 24;
/// `EV_KEY` and `KEY_POWER` of linux/input-event-codes.h.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// An open button.
#[derive(Debug)]
pub struct PowerButton(File);

impl PowerButton {
    /// The first input device that calls itself a power button.
    pub fn find() -> Option<PowerButton> {
        (0..32).find_map(|n| {
            let name = fs::read_to_string(format!("/sys/class/input/event{n}/device/name")).ok()?;
            if !name.contains("Power Button") {
                return None;
            }
            let path = format!("/dev/input/event{n}");
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok().map(PowerButton)
        })
    }

    /// Takes the events; true when it was pressed.
    pub fn pressed(&mut self) -> bool {
        let mut buffer = [0u8; EVENT_BYTES * 16];
        let mut pressed = false;
        while let Ok(n @ 1..) = self.0.read(&mut buffer) {
            pressed |= buffer[..n].chunks_exact(EVENT_BYTES).any(is_press);
        }
        pressed
    }
}

impl AsFd for PowerButton {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn is_press(event: &[u8]) -> bool {
    let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    half(16) == EV_KEY && half(18) == KEY_POWER && event[20..24] == 1i32.to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut e = vec![0u8; 16];
            e.extend(kind.to_ne_bytes());
            e.extend(code.to_ne_bytes());
            e.extend(value.to_ne_bytes());
            e
        };
        assert!(is_press(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_press(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!is_press(&event(EV_KEY, 30, 1)));
        assert!(!is_press(&event(0, 0, 0)));
    }
}
