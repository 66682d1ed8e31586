//! The payload guest, and the host's side of it: start the VMM with it, read its results, look at the process.
//!
//! Linux guests need hardware virtualisation, or patience. The payload needs any `/dev/kvm`: it runs in ring 3, which
//! even paravirtual hosts run natively, and it drives every device with data that is checked. So what is measured is the
//! true VMM, data path and jail included.
//!
//! Principles:
//! 1. The VMM is the unmodified program, configured by its public JSON and seen from outside only.
//! 2. Nothing outlives a [`Machine`]: dropping it ends the VM.
//! 3. Every wait has a deadline and names what was waited for.
//!
//! Modules in reading order: [`machine`] (a VM that runs the payload), [`process`] (memory and CPU time of its process),
//! [`tap`] (a network card's other end), [`pattern`] (disk contents both sides know). The guest's own front door is
//! `guest/main.rs`; its words and results are listed there.

pub mod machine;
#[path = "../guest/pattern.rs"]
pub mod pattern;
pub mod process;
pub mod tap;

pub use machine::{Machine, Setup};

/// The guest, an ELF kernel for the 64-bit boot protocol.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/payload"));

/// Why this machine cannot run the payload, if it cannot.
pub fn missing() -> Option<String> {
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    kvm.err().map(|e| format!("/dev/kvm: {e}"))
}
