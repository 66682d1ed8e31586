//! The power button: ACPI's, as the kernel's input layer reports it (`drivers/acpi/button.c`).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `struct input_event` of 64-bit Linux: time 16 bytes, type u16, code u16, value i32.
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// Buttons listened to; ACPI defines at most one fixed and a few control method ones.
const LIMIT_BUTTONS: usize = 8;

/// Opens every input device named "Power Button".
///
/// # Errors
/// When the input class cannot be listed; a VM without a button gives an empty list.
pub fn buttons(sys_class_input: &Path, dev_input: &Path) -> io::Result<Vec<File>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(sys_class_input)? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("device/name")).unwrap_or_default();
        if entry.file_name().to_string_lossy().starts_with("event")
            && name.trim_end() == "Power Button"
            && found.len() < LIMIT_BUTTONS
        {
            found.push(
                File::options().read(true).custom_flags(libc::O_NONBLOCK).open(dev_input.join(entry.file_name()))?,
            );
        }
    }
    Ok(found)
}

/// Reads the waiting events of a button: whether it was pressed.
pub fn pressed(button: &mut impl Read) -> bool {
    let mut events = [0; EVENT_BYTES * 16];
    // The kernel hands out whole events; nothing waiting is an error of kind WouldBlock.
    button.read(&mut events).is_ok_and(|length| events[..length].chunks_exact(EVENT_BYTES).any(is_press))
}

fn is_press(event: &[u8]) -> bool {
    event[16..18] == EV_KEY.to_ne_bytes()
        && event[18..20] == KEY_POWER.to_ne_bytes()
        && event[20..24] == 1_i32.to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        [&[0; 16][..], &kind.to_ne_bytes(), &code.to_ne_bytes(), &value.to_ne_bytes()].concat()
    }

    #[test]
    fn only_the_press_counts() {
        let synchronise = event(0, 0, 0);
        assert!(pressed(&mut [event(EV_KEY, KEY_POWER, 1), synchronise.clone()].concat().as_slice()));
        assert!(!pressed(&mut [event(EV_KEY, KEY_POWER, 0), synchronise].concat().as_slice()));
        assert!(!pressed(&mut event(EV_KEY, 30, 1).as_slice()));
        assert!(!pressed(&mut io::empty()));
        assert!(!pressed(&mut &event(EV_KEY, KEY_POWER, 1)[..20]));
    }

    #[test]
    fn buttons_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (class, dev) = (dir.path().join("class"), dir.path().join("dev"));
        fs::create_dir(&dev).unwrap();
        for (event, name) in [("event0", "Power Button\n"), ("event1", "Keyboard\n"), ("input0", "Power Button\n")] {
            fs::create_dir_all(class.join(event).join("device")).unwrap();
            fs::write(class.join(event).join("device/name"), name).unwrap();
            fs::write(dev.join(event), "").unwrap();
        }
        assert_eq!(buttons(&class, &dev).unwrap().len(), 1);
    }
}
