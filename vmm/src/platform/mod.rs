//! What a PC has beside PCI: [`power`] (ACPI power management, reset) and [`serial`] (16550 for kernel debugging).

pub mod power;
pub mod serial;
