//! 16550 at COM1, for kernel debugging. Output only: input belongs to the virtio console.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::bus::BusDevice;
use crate::exit::End;
use crate::output::Output;
use crate::virtio::interrupt::IrqLine;

/// First port of COM1.
pub const BASE: u16 = 0x3f8;
/// Ports.
pub const LEN: u16 = 8;
/// Interrupt of COM1.
pub const IRQ: u8 = 4;

struct Pulse(Arc<dyn IrqLine>);

impl Trigger for Pulse {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        // Edge-triggered in the IO-APIC.
        self.0.set(true);
        self.0.set(false);
        Ok(())
    }
}

/// The serial port.
pub struct SerialPort(Mutex<Serial<Pulse, NoEvents, Output>>);

impl SerialPort {
    /// A port that writes to `output` and interrupts over `line`.
    pub fn new(output: Output, line: Arc<dyn IrqLine>) -> Self {
        Self(Mutex::new(Serial::new(Pulse(line), output)))
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End> {
        let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(0);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = serial.read(offset);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), End> {
        let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // Output never fails; a full receive buffer cannot happen without input.
            let _ = serial.write(offset, byte);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    #[derive(Debug)]
    struct Nothing;

    impl IrqLine for Nothing {
        fn set(&self, _: bool) {}
    }

    #[test]
    fn bytes_written_to_the_data_port_come_out() {
        let (mut reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let port = SerialPort::new(Output::new(OwnedFd::from(writer)), Arc::new(Nothing));
        for byte in b"ok" {
            port.write(0, &[*byte]).unwrap();
        }
        port.write(0, &[0; 4]).unwrap();
        port.read(300, &mut [0]).unwrap();
        drop(port);
        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert_eq!(got, "ok");
    }
}
