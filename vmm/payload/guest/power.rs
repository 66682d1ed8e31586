//! Ways to end: ACPI S5, reset, the power button, and misuse of every kind the VMM names (ports as the FADT says).

use crate::ring::Buffer;
use crate::transport::{Device, QUEUE_SIZE, RNG, STATUS};
use crate::{cpu, output};

const PM1_STATUS: u16 = 0x600;
const PM1_ENABLE: u16 = 0x602;
const PM1_CONTROL: u16 = 0x604;
const RESET: u16 = 0x608;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_S5: u16 = 1 << 13 | 5 << 10;
/// Pin of the system control interrupt, and its stub.
const SCI: u32 = 9;
const SCI_STUB: usize = 0;
/// Far above the smallest VM's memory.
const NOT_RAM: u64 = 0x8000_0000;

/// S5.
pub fn off() -> ! {
    cpu::out16(PM1_CONTROL, SLEEP_S5);
    stay()
}

/// The reset register.
pub fn reset() -> ! {
    cpu::out8(RESET, 1);
    stay()
}

/// Sleeps until the power button is pressed, then S5.
pub fn wait_for_button() -> ! {
    cpu::route_pin(SCI, SCI_STUB);
    cpu::out16(PM1_ENABLE, POWER_BUTTON);
    output::result("waiting", 0, "");
    loop {
        let seen = cpu::all_interrupts();
        if cpu::in16(PM1_STATUS) & POWER_BUTTON != 0 {
            output::result("button", 1, "press");
            off();
        }
        cpu::halt(seen);
    }
}

/// Breaks one rule of virtio with the entropy source; the VMM must end this VM.
pub fn misuse(rule: &str) -> ! {
    let device = Device::open(RNG, 0, 0, false).expect("no entropy source");
    if rule == "size" {
        cpu::write16(device.common + QUEUE_SIZE, 3);
        stay();
    }
    if rule == "status" {
        cpu::write8(device.common + STATUS, 1);
        stay();
    }
    let (mut ring, _) = device.queue(0, false);
    device.start();
    let good = Buffer { address: ring.descriptors, len: 8, writable: true };
    match rule {
        // More chains than the ring holds.
        "index" => ring.skip(0x4000),
        "head" => ring.publish(0xfff0),
        "loop" => {
            ring.write_descriptor(0, good, 3, 1);
            ring.write_descriptor(1, good, 3, 0);
            ring.publish(0);
        }
        "next" => {
            ring.write_descriptor(0, good, 3, 0xfff0);
            ring.publish(0);
        }
        "address" => {
            ring.write_descriptor(0, Buffer { address: NOT_RAM, ..good }, 2, 0);
            ring.publish(0);
        }
        _ => panic!("unknown rule {rule}"),
    }
    ring.ring_doorbell();
    stay()
}

/// The VMM ends the VM while this spins.
fn stay() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
