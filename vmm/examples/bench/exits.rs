//! What leaving the guest costs it: doorbell, port, register, and the way from a doorbell to an interrupt.

use holdfast_payload::Setup;

use crate::figures::note;
use crate::{Bench, Outcome};

const RUNS: usize = 5;

pub fn measure(bench: &Bench) -> Outcome {
    for _ in 0..RUNS {
        let mut machine = Setup::new(&bench.vmm, "doorbell=4000 pio=2000 mmio=2000 irq=2000 irq_halt=2000").start()?;
        for (word, name) in [
            ("doorbell", "doorbell (ioeventfd)"),
            ("pio", "port read answered by the VMM"),
            ("mmio", "register read answered by the VMM"),
            ("irq", "doorbell to interrupt handler, guest spinning"),
            ("irq_halt", "doorbell to interrupt handler, guest halted"),
        ] {
            let median = machine.number(&format!("{word}.median"));
            note(name, median as f64 / 1000.0, "us");
        }
        machine.finish();
    }
    Ok(())
}
