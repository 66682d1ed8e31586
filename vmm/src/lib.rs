//! The virtual machine monitor: one process runs one app's virtual machine on KVM, and nothing else.
//!
//! What this crate guards:
//!
//! 1. **The guest is hostile from its first instruction.** Every byte it can write (rings, registers, config space,
//!    its whole memory) is bounded and checked; misuse ends this VM with a named reason and disturbs nobody.
//! 2. **Nothing is opened after start.** Every file is an inherited descriptor in production (`--config-fd`); the jail
//!    closes before the first guest instruction.
//! 3. **vCPU threads own registers, the device thread owns devices.** They meet only through [`event_loop`] commands,
//!    eventfds and guest memory, so no lock is ever taken on the data path.
//! 4. **A device is inactive or activated**, never something in between ([`virtio::Device`], [`virtio::ActiveDevice`]).
//! 5. **Exits cost.** Doorbells are ioeventfds, interrupts are irqfds, MSI routes are written when a vector is unmasked.
//!
//! Modules in reading order: [`config`] (checks what a VM is made of), [`vm`] (builds and runs it), [`memory`], [`boot`]
//! (kernel, CPU state, ACPI), [`vcpu`], [`bus`], [`pci`], [`irq`], [`virtio`] (the device contract, then one folder per
//! device), [`rate`] (token buckets), [`event_loop`], [`terminal`] (the host's side of consoles), [`platform`] (power,
//! serial port), [`control`] (the socket to the agent), [`guest_end`] (what a guest says of its end), [`jail`], [`signal`] (SIGTERM is the power button), [`random`],
//! [`resources`] (opens or adopts every file). What the agent and a VM say to each other is [`holdfast_model::contract::vm`].

pub mod boot;
pub mod bus;
pub mod config;
pub mod control;
pub mod event_loop;
pub mod guest_end;
pub mod irq;
pub mod jail;
pub mod memory;
pub mod pci;
pub mod platform;
pub mod random;
pub mod rate;
pub mod resources;
pub mod signal;
pub mod terminal;
pub mod vcpu;
pub mod virtio;
pub mod vm;

pub use control::ControlClient;
