//! PID 1: started by the kernel from the UKI's initramfs, alive as long as the machine is. It opens the OS slot,
//! starts `node`, owns every process, and ends the machine in order.
//!
//! What it guards:
//! 1. It never exits and never waits without a deadline; a panic records its reason and resets the machine.
//! 2. It needs nothing from the slot: its text is in the measured UKI, so it can tell and act when the slot is bad.
//! 3. Nothing of a slot is used before all of it was verified against the command line; a slot that fails is given up
//!    for the other one, with the reason in STATE.
//! 4. What it cannot have (TPM, watchdog, SITE) it goes on without, and says so in the facts for `node`.
//! 5. Small: no async, no TLS, no protobuf; at most 4 MiB resident.
//!
//! Modules in reading order: [`boot`] (the order of a boot, step by step), [`node`] (the first unit), [`supervisor`] (units, clients, the way
//! down), [`kernel_log`], [`clock`].

pub mod boot;
pub mod clock;
pub mod kernel_log;
pub mod node;
pub mod supervisor;
