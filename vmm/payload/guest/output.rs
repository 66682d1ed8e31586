//! Lines out: over the first virtio console, or the serial port where there is none.

use core::fmt::{self, Write};

use crate::ring::{Buffer, Ring};
use crate::transport::{CONSOLE, Device};
use crate::{cpu, memory};

const SERIAL: u16 = 0x3f8;
const LINE: usize = 512;

/// The console's queues and a buffer for each direction.
pub struct Console {
    receive: Ring,
    transmit: Ring,
    input: u64,
    output: u64,
}

static mut OUTPUT: Option<Console> = None;

/// Finds the console. Before this, lines go to the serial port.
pub fn set_up() {
    let Some(device) = Device::open(CONSOLE, 0, 0, false) else { return };
    let (receive, _) = device.queue(0, false);
    let (transmit, _) = device.queue(1, false);
    device.start();
    let (input, output) = (memory::allocate(4096), memory::allocate(4096));
    // SAFETY: one processor; nobody holds a reference yet.
    unsafe { OUTPUT = Some(Console { receive, transmit, input, output }) };
}

fn console() -> Option<&'static mut Console> {
    // SAFETY: one processor, and no caller keeps the reference across a call to another.
    unsafe { (&raw mut OUTPUT).as_mut() }.and_then(Option::as_mut)
}

/// One line that is sent when it is dropped.
struct Line {
    text: [u8; LINE],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let take = text.len().min(LINE - 1 - self.len);
        self.text[self.len..self.len + take].copy_from_slice(&text.as_bytes()[..take]);
        self.len += take;
        Ok(())
    }
}

/// Prints one line.
pub fn line(text: fmt::Arguments<'_>) {
    let mut line = Line { text: [0; LINE], len: 0 };
    let _ = line.write_fmt(text);
    line.text[line.len] = b'\n';
    let bytes = &line.text[..=line.len];
    let Some(console) = console() else {
        for byte in bytes {
            cpu::out8(SERIAL, *byte);
        }
        return;
    };
    memory::slice(console.output, bytes.len()).copy_from_slice(bytes);
    console.transmit.put(&[Buffer { address: console.output, len: bytes.len() as u32, writable: false }]);
    console.transmit.kick();
    console.transmit.wait();
}

/// Prints `name value unit`, the form of every result.
pub fn result(name: &str, value: u64, unit: &str) {
    line(format_args!("{name}\t{value}\t{unit}"));
}

/// One line of input.
///
/// # Panics
/// Without a console.
pub fn read_line(text: &mut [u8]) -> usize {
    let console = console().expect("no console");
    let mut len = 0;
    loop {
        console.receive.put(&[Buffer { address: console.input, len: 4096, writable: true }]);
        console.receive.kick();
        let (_, got) = console.receive.wait();
        for byte in memory::slice(console.input, got as usize) {
            if *byte == b'\n' || len == text.len() {
                return len;
            }
            text[len] = *byte;
            len += 1;
        }
    }
}
