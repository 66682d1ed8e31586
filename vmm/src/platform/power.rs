//! ACPI fixed power management (ACPI 6.5 §4.8.3) with its timer, the reset register, the keyboard controller's reset line,
//! and what is left of the speaker's port.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::bus::BusDevice;
use crate::virtio::interrupt::IrqLine;
use holdfast_model::contract::end::{End, ExitClass};

/// First port of the block.
pub const BASE: u16 = 0x600;
/// Ports of the block.
pub const LEN: u16 = 0x10;
/// Offset of PM1a status, then enable: the event block.
pub const PM1_EVENT: u16 = 0;
/// Offset of PM1a control.
pub const PM1_CONTROL: u16 = 4;
/// Offset of the reset register.
pub const RESET: u16 = 8;
/// Offset of the timer: a counter of 24 bits in a register of 32.
pub const TIMER: u16 = 12;
/// Value that resets.
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of S5, as the DSDT's `_S5` says.
pub const SLEEP_TYPE_S5: u16 = 5;
/// System control interrupt.
pub const SCI: u8 = 9;
/// Status and command port of the keyboard controller, only for its reset command.
pub const KEYBOARD_PORT: u16 = 0x64;
/// System control port B: NMI reasons, and the gate and output of timer 2.
pub const SPEAKER_PORT: u16 = 0x61;

const TIMER_2_OUT: u8 = 1 << 5;
/// Ticks of the timer each second (ACPI 6.5 §4.8.3.3).
const TIMER_HZ: u128 = 3_579_545;
const POWER_BUTTON: u16 = 1 << 8;
const SCI_ENABLE: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;

#[derive(Debug, Default)]
struct Registers {
    status: u16,
    enable: u16,
}

/// The power management block.
#[derive(Debug)]
pub struct Power {
    registers: Mutex<Registers>,
    sci: Arc<dyn IrqLine>,
    started: Instant,
}

impl Power {
    /// A block that interrupts over `sci`.
    pub fn new(sci: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { registers: Mutex::new(Registers::default()), sci, started: Instant::now() })
    }

    /// Presses the power button.
    pub fn press_button(&self) {
        self.change(|registers| registers.status |= POWER_BUTTON);
    }

    fn change(&self, change: impl FnOnce(&mut Registers)) {
        let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut registers);
        self.sci.set(registers.status & registers.enable != 0);
    }

    fn byte(&self, offset: u64) -> u8 {
        let registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        let word = match offset & !1 {
            0 => registers.status,
            2 => registers.enable,
            4 => SCI_ENABLE,
            _ => 0,
        };
        word.to_le_bytes()[(offset & 1) as usize]
    }
}

/// What the timer shows so long after it started.
fn ticks(elapsed: Duration) -> u32 {
    let ticks = elapsed.as_nanos() * TIMER_HZ / 1_000_000_000;
    (ticks & 0xff_ffff) as u32
}

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End> {
        // All of it at one moment.
        let timer = ticks(self.started.elapsed()).to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = match at.checked_sub(TIMER.into()) {
                Some(place) => timer.get(place as usize).copied().unwrap_or(0),
                None => self.byte(at),
            };
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), End> {
        let low = u16::from(data.first().copied().unwrap_or(0));
        let high = u16::from(data.get(1).copied().unwrap_or(0));
        let (word, mask) = match data.len() {
            1 if offset & 1 == 1 => (low << 8, 0xff00),
            1 => (low, 0x00ff),
            _ => (high << 8 | low, 0xffff),
        };
        match offset & !1 {
            // Write one to clear.
            0 => self.change(|r| r.status &= !word),
            2 => self.change(|r| r.enable = r.enable & !mask | word),
            4 if word & SLEEP_ENABLE != 0 && word >> 10 & 7 == SLEEP_TYPE_S5 => {
                return Err(End::new(ExitClass::PowerOff, "guest powered off"));
            }
            8 if offset == u64::from(RESET) && low == u16::from(RESET_VALUE) => {
                return Err(End::new(ExitClass::GuestReset, "guest reset"));
            }
            _ => {}
        }
        Ok(())
    }

    fn describe(&self, offset: u64) -> String {
        format!("ACPI power management {offset:#x}")
    }
}

/// Port 0x64: reads as an idle controller, 0xFE resets.
#[derive(Debug)]
pub struct KeyboardReset;

impl BusDevice for KeyboardReset {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), End> {
        data.fill(0);
        Ok(())
    }

    fn write(&self, _: u64, data: &[u8]) -> Result<(), End> {
        if data == [0xfe] {
            return Err(End::new(ExitClass::GuestReset, "guest reset"));
        }
        Ok(())
    }

    fn describe(&self, _: u64) -> String {
        "keyboard controller".into()
    }
}

/// Port 0x61 of a VM without a PIT: no memory or bus error (bits 6 and 7), timer 2 has always run out (bit 5), so that
/// a kernel that calibrates against it finds nonsense at once and looks elsewhere instead of waiting for ever.
#[derive(Debug)]
pub struct NoSpeaker;

impl BusDevice for NoSpeaker {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), End> {
        data.fill(TIMER_2_OUT);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), End> {
        Ok(())
    }

    fn describe(&self, _: u64) -> String {
        "system control port".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn port_61_reports_no_error_and_an_expired_timer() {
        let mut byte = [0];
        NoSpeaker.write(0, &[3]).unwrap();
        NoSpeaker.read(0, &mut byte).unwrap();
        assert_eq!((byte[0] & 0xc0, byte[0] & 0x20), (0, 0x20));
    }

    #[derive(Debug, Default)]
    struct Line(AtomicBool);

    impl IrqLine for Line {
        fn set(&self, asserted: bool) {
            self.0.store(asserted, Ordering::Relaxed);
        }
    }

    fn power() -> (Arc<Power>, Arc<Line>) {
        let line = Arc::new(Line::default());
        (Power::new(line.clone()), line)
    }

    #[test]
    fn button_interrupts_once_enabled_until_its_status_is_cleared() {
        let (power, line) = power();
        power.press_button();
        assert!(!line.0.load(Ordering::Relaxed), "not enabled yet");
        power.write(2, &POWER_BUTTON.to_le_bytes()).unwrap();
        assert!(line.0.load(Ordering::Relaxed));
        let mut status = [0; 2];
        power.read(0, &mut status).unwrap();
        assert_eq!(u16::from_le_bytes(status), POWER_BUTTON);
        power.write(0, &POWER_BUTTON.to_le_bytes()).unwrap();
        assert!(!line.0.load(Ordering::Relaxed));
    }

    #[test]
    fn bytes_of_the_registers_can_be_accessed_alone() {
        let (power, line) = power();
        power.write(3, &[1]).unwrap();
        power.press_button();
        assert!(line.0.load(Ordering::Relaxed));
        let mut byte = [0];
        power.read(1, &mut byte).unwrap();
        assert_eq!(byte, [1]);
        power.write(1, &[1]).unwrap();
        assert!(!line.0.load(Ordering::Relaxed));
    }

    #[test]
    fn timer_counts_at_its_rate_in_24_bits() {
        for (elapsed, shown) in [
            (Duration::ZERO, 0),
            (Duration::from_secs(1), 3_579_545),
            (Duration::from_millis(4_686), 16_773_747),
            (Duration::from_secs(5), 17_897_725 - (1 << 24)),
            (Duration::from_secs(u64::from(u32::MAX)), ((u64::from(u32::MAX) * 3_579_545) & 0xff_ffff) as u32),
        ] {
            assert_eq!(ticks(elapsed), shown, "{elapsed:?}");
        }
        let (power, _) = power();
        let read = |offset: u16, bytes: usize| {
            let mut data = [0; 4];
            power.read(offset.into(), &mut data[..bytes]).unwrap();
            u32::from_le_bytes(data)
        };
        let first = read(TIMER, 4);
        std::thread::sleep(Duration::from_millis(1));
        assert!(read(TIMER, 4).wrapping_sub(first) & 0xff_ffff >= 3579);
        assert_eq!((read(TIMER + 3, 1), read(15, 4)), (0, 0), "the high byte, and a read past the end");
    }

    #[test]
    fn sleep_and_reset_end_the_vm_with_their_class() {
        let (power, _) = power();
        let s5 = SLEEP_ENABLE | SLEEP_TYPE_S5 << 10;
        assert_eq!(power.write(4, &s5.to_le_bytes()).unwrap_err().class, ExitClass::PowerOff);
        assert!(power.write(4, &(SLEEP_ENABLE | 1 << 10).to_le_bytes()).is_ok(), "S1 does not exist");
        assert_eq!(power.write(8, &[1]).unwrap_err().class, ExitClass::GuestReset);
        assert!(power.write(8, &[2]).is_ok());
        assert_eq!(KeyboardReset.write(0, &[0xfe]).unwrap_err().class, ExitClass::GuestReset);
    }
}
