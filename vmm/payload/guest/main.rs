//! The payload guest: a kernel that does only what its command line says, at native speed on any KVM.
//!
//! Principles:
//! 1. It runs in ring 3; only its entry and interrupt stubs run in ring 0 ([`cpu`] says why).
//! 2. It trusts the device nothing it can check: every request's status and every byte of a pattern is looked at.
//! 3. Results leave as lines `name value unit`, tab-separated, on the virtio console.
//!
//! Words of the command line are done in order:
//!
//! | word | what it does | results |
//! |--|--|--|
//! | `plain` | from here on devices are opened without the event index | |
//! | `blk` | serial, size, and a read past the end | `blk_id` `blk_sectors` `blk_past_end.status` |
//! | `blk_write=FIRST,COUNT,SEED` | writes patterned sectors and flushes | `blk_write.failed` |
//! | `blk_verify=FIRST,COUNT,SEED` | reads sectors and compares | `blk_verify.failed`, `.wrong` |
//! | `blk_random=BYTES,DEPTH,MS` | random reads | `blk_random.begin`, `.failed`, `.us`, `.done` |
//! | `net_echo=COUNT` | sends frames back | `net_ready`, `net_echo.frames`, `.bytes` |
//! | `net_send=BYTES,MS` | sends frames | `net_send.begin`, `.us`, `.frames` |
//! | `net_count=MS` | counts frames from the first on | `net_count.begin`, `.us`, `.frames`, `.bytes` |
//! | `rng=BYTES` | reads entropy | `rng.bytes`, `.values`, `.word` |
//! | `reopen=COUNT` | resets the entropy source and sets it up again | `reopen.done` |
//! | `console_echo` | reads a line and prints it | `console_echo` |
//! | `ticks` | ticks of the time stamp counter in a millisecond | `ticks_per_ms` |
//! | `pio=N` `mmio=N` | accesses that the VMM answers | `.min` `.median` `.max` |
//! | `doorbell=N` `irq=N` `irq_halt=N` | kicks; kick to interrupt, spinning or halted | `.min` `.median` `.max` |
//! | `off` `reset` `wait` `crash` `spin` | S5; reset; S5 at the power button; triple fault; nothing, for ever | |
//! | `misuse=RULE` | breaks a rule of virtio, see [`power::misuse`] | |
//!
//! Modules in reading order: [`cpu`], [`memory`], [`pci`], [`ring`], [`transport`], [`output`], [`block`], [`net`], [`rng`],
//! [`samples`], [`power`], [`pattern`].
#![no_std]
#![no_main]

mod block;
mod cpu;
mod memory;
mod net;
mod output;
mod pattern;
mod pci;
mod power;
mod ring;
mod rng;
mod samples;
mod transport;

use core::panic::PanicInfo;

use crate::block::Block;
use crate::net::Net;
use crate::rng::Rng;
use crate::samples::Samples;

/// Offset of `cmd_line_ptr` in the zero page (Linux x86 boot protocol).
const CMD_LINE_PTR: u64 = 0x228;
const MAX_COMMAND_LINE: usize = 2048;

/// What has been opened on the way.
#[derive(Default)]
struct Machine {
    plain: bool,
    block: Option<Block>,
    net: Option<Net>,
    rng: Option<Rng>,
    ticks_per_ms: Option<u64>,
}

/// Entered by `_start` in ring 3.
#[unsafe(no_mangle)]
extern "C" fn main(_: u64, zero_page: u64) -> ! {
    let entered = cpu::now();
    cpu::set_up_interrupts();
    output::set_up();
    output::result("up", cpu::now() - entered, "ticks");
    let mut machine = Machine::default();
    let line = memory::slice(cpu::read32(zero_page + CMD_LINE_PTR).into(), MAX_COMMAND_LINE);
    let len = line.iter().position(|byte| *byte == 0).unwrap_or(0);
    for word in core::str::from_utf8(&line[..len]).expect("command line is not text").split_ascii_whitespace() {
        let (name, values) = word.split_once('=').unwrap_or((word, ""));
        machine.run(name, values);
    }
    power::off()
}

impl Machine {
    fn run(&mut self, name: &str, values: &str) {
        let number = |n| values.split(',').nth(n).and_then(|v| v.parse::<u64>().ok()).expect("word lacks a number");
        let plain = self.plain;
        match name {
            "plain" => self.plain = true,
            "blk" => self.block().describe(),
            "blk_write" => self.block().write(number(0), number(1), number(2)),
            "blk_verify" => self.block().verify(number(0), number(1), number(2)),
            "blk_random" => {
                let ticks = self.ticks_per_ms();
                self.block().random_reads(number(0), number(1) as usize, number(2), ticks);
            }
            "net_echo" => self.net().echo(number(0)),
            "net_send" => {
                let ticks = self.ticks_per_ms();
                self.net().send(number(0) as usize, number(1), ticks);
            }
            "net_count" => {
                let ticks = self.ticks_per_ms();
                self.net().count(number(0), ticks);
            }
            "rng" => self.rng.get_or_insert_with(|| Rng::open(plain, true)).look(number(0) as u32),
            "reopen" => {
                let good = (0..number(0)).filter(|_| Rng::open(plain, false).read(64) == 64).count();
                output::result("reopen.done", good as u64, "times");
            }
            "console_echo" => {
                let mut text = [0; 256];
                let len = output::read_line(&mut text);
                output::line(format_args!("console_echo\t{}\ttext", core::str::from_utf8(&text[..len]).unwrap_or("?")));
            }
            "ticks" => output::result("ticks_per_ms", self.ticks_per_ms(), "ticks"),
            "pio" | "mmio" | "doorbell" | "irq" | "irq_halt" => self.measure(name, number(0) as usize),
            "off" => power::off(),
            "reset" => power::reset(),
            "wait" => power::wait_for_button(),
            "crash" => cpu::triple_fault(),
            "spin" => loop {
                core::hint::spin_loop();
            },
            "misuse" => power::misuse(values),
            _ => panic!("unknown word {name}"),
        }
    }

    fn measure(&mut self, name: &str, count: usize) {
        let ticks = self.ticks_per_ms();
        let plain = self.plain;
        let rng = self.rng.get_or_insert_with(|| Rng::open(plain, true));
        let mut samples = Samples::new(count);
        match name {
            "pio" => samples.run(|| _ = cpu::in16(0x600)),
            "mmio" => samples.run(|| _ = cpu::read8(rng.common + transport::STATUS)),
            "doorbell" => rng.doorbells(&mut samples),
            _ => rng.round_trips(&mut samples, name == "irq_halt"),
        }
        samples.print(name, ticks);
    }

    fn block(&mut self) -> &mut Block {
        let plain = self.plain;
        self.block.get_or_insert_with(|| Block::open(plain))
    }

    fn net(&mut self) -> &mut Net {
        let plain = self.plain;
        self.net.get_or_insert_with(|| Net::open(plain))
    }

    fn ticks_per_ms(&mut self) -> u64 {
        *self.ticks_per_ms.get_or_insert_with(cpu::ticks_per_ms)
    }
}

/// Says why, then faults: a VM that ends well has done all it was asked.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    output::line(format_args!("panic\t{}\t{info}", 1));
    cpu::triple_fault()
}
