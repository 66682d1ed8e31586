//! 16550 at COM1: `ttyS0`, output and input.
//!
//! Input goes into the receive FIFO only while the driver has the received-data interrupt enabled: a driver that probes
//! the chip (loopback, stray reads) would throw it away. A byte read from an emptied FIFO fetches the next ones.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::bus::BusDevice;
use crate::terminal::{GuestEnd, Terminal, Writer};
use crate::virtio::interrupt::IrqLine;
use holdfast_model::contract::end::End;

/// First port of COM1.
pub const BASE: u16 = 0x3f8;
/// Ports.
pub const LEN: u16 = 8;
/// Interrupt of COM1.
pub const IRQ: u8 = 4;

/// Receive buffer, and interrupt enable when DLAB is clear (PC16550D, table 2).
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
/// Interrupt enable: received data.
const RECEIVED_DATA: u8 = 1;
/// Line control: the first two registers are the divisor.
const DLAB: u8 = 0x80;
/// Modem control: output comes back as input.
const LOOP: u8 = 0x10;

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

type Chip = Serial<Pulse, NoEvents, Writer>;

/// The serial port.
pub struct SerialPort {
    chip: Mutex<Chip>,
    terminal: Arc<Terminal>,
    fifo_bytes: usize,
}

impl SerialPort {
    /// A port with `terminal` at the host's side, which interrupts over `line`.
    pub fn new(terminal: Arc<Terminal>, line: Arc<dyn IrqLine>) -> Self {
        let chip = Serial::new(Pulse(line), Writer(terminal.clone()));
        let fifo_bytes = chip.fifo_capacity();
        Self { chip: Mutex::new(chip), terminal, fifo_bytes }
    }

    /// Fills the receive FIFO if the driver wants to know of received data.
    fn receive(&self, chip: &mut Chip) {
        let listens = chip.read(LINE_CONTROL) & DLAB == 0
            && chip.read(MODEM_CONTROL) & LOOP == 0
            && chip.read(INTERRUPT_ENABLE) & RECEIVED_DATA != 0;
        if !listens {
            return;
        }
        let mut buf = [0u8; 64];
        loop {
            let room = chip.fifo_capacity().min(buf.len());
            let got = self.terminal.take(&mut buf[..room]);
            if got == 0 {
                return;
            }
            // There is room, and the interrupt cannot fail.
            let _ = chip.enqueue_raw_bytes(&buf[..got]);
        }
    }
}

impl GuestEnd for SerialPort {
    fn host_changed(&self) {
        self.receive(&mut self.chip.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End> {
        let mut chip = self.chip.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(0);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = chip.read(offset);
            if offset == DATA && chip.fifo_capacity() == self.fifo_bytes {
                self.receive(&mut chip);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), End> {
        let mut chip = self.chip.lock().unwrap_or_else(PoisonError::into_inner);
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // Output never fails; in loopback a full FIFO drops, as the chip does.
            let _ = chip.write(offset, byte);
            if matches!(offset, INTERRUPT_ENABLE | LINE_CONTROL | MODEM_CONTROL) {
                self.receive(&mut chip);
            }
        }
        Ok(())
    }

    fn describe(&self, offset: u64) -> String {
        format!("serial port {offset:#x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts rising edges.
    #[derive(Debug, Default)]
    struct Edges(AtomicUsize);

    impl IrqLine for Edges {
        fn set(&self, asserted: bool) {
            self.0.fetch_add(usize::from(asserted), Ordering::Relaxed);
        }
    }

    /// A port, the host's end of its stream, and its interrupts.
    fn port() -> (SerialPort, UnixStream, Arc<Edges>) {
        let (host, ours) = UnixStream::pair().unwrap();
        let input = ours.try_clone().unwrap();
        let terminal = Terminal::new("serial", Some(OwnedFd::from(ours)), Some(input.into()));
        let edges = Arc::new(Edges::default());
        (SerialPort::new(terminal, edges.clone()), host, edges)
    }

    fn register(port: &SerialPort, offset: u8) -> u8 {
        let mut byte = [0];
        port.read(offset.into(), &mut byte).unwrap();
        byte[0]
    }

    const LINE_STATUS: u8 = 5;
    const DATA_READY: u8 = 1;

    #[test]
    fn bytes_written_to_the_data_port_come_out() {
        let (port, mut host, _) = port();
        for byte in b"ok" {
            port.write(0, &[*byte]).unwrap();
        }
        port.write(0, &[0; 4]).unwrap();
        port.read(300, &mut [0]).unwrap();
        drop(port);
        let mut got = String::new();
        host.read_to_string(&mut got).unwrap();
        assert_eq!(got, "ok");
    }

    #[test]
    fn input_interrupts_and_is_read_byte_by_byte() {
        let (port, mut host, edges) = port();
        port.write(INTERRUPT_ENABLE.into(), &[RECEIVED_DATA]).unwrap();
        // More than the FIFO holds at once.
        let line: Vec<u8> = (0..200).collect();
        host.write_all(&line).unwrap();
        // As the event loop does: place 1 is the main input.
        assert!(port.terminal.ready(1));
        port.host_changed();
        assert_eq!(edges.0.load(Ordering::Relaxed), 1);
        let mut got = Vec::new();
        while register(&port, LINE_STATUS) & DATA_READY != 0 {
            got.push(register(&port, DATA));
        }
        assert_eq!(got, line);
        assert!(edges.0.load(Ordering::Relaxed) > 1, "later parts interrupt too");
    }

    #[test]
    fn input_waits_until_the_driver_listens() {
        let (port, mut host, edges) = port();
        host.write_all(b"early").unwrap();
        port.host_changed();
        assert_eq!(register(&port, LINE_STATUS) & DATA_READY, 0);
        // The driver probes: loopback with the interrupt enabled, then the divisor.
        port.write(MODEM_CONTROL.into(), &[LOOP]).unwrap();
        port.write(INTERRUPT_ENABLE.into(), &[RECEIVED_DATA]).unwrap();
        assert_eq!(edges.0.load(Ordering::Relaxed), 0);
        port.write(LINE_CONTROL.into(), &[DLAB]).unwrap();
        port.write(MODEM_CONTROL.into(), &[0]).unwrap();
        assert_eq!(edges.0.load(Ordering::Relaxed), 0);
        port.write(LINE_CONTROL.into(), &[3]).unwrap();
        assert_eq!(edges.0.load(Ordering::Relaxed), 1);
        let got: Vec<u8> = (0..5).map(|_| register(&port, DATA)).collect();
        assert_eq!(got, b"early");
    }
}
