//! A device under QEMU: firmware with Secure Boot, a TPM, disks, networks, a watchdog, and a hand on its power switch.
//!
//! Principles:
//! 1. A [`Device`] is what stays when the power is off: disk, NVRAM, TPM state. Powered on, it also has processes; those never outlive
//!    the test, however it ends.
//! 2. A test sees what an operator sees: the serial line, the network, the power. It waits for something with a deadline, never for a
//!    length of time.
//! 3. A failure names the files that tell why (serial log, QEMU's messages, disk), and those are kept.
//! 4. Tests are cheap: disks are overlays over one image, ports are free ones, nothing needs root.
//! 5. TCG unless the machine has true hardware virtualisation with nesting ([`machine::accelerator`]): the device needs a working `/dev/kvm` of its own.
//!
//! ```no_run
//! # use holdfast_harness::{Device, Nic, secs};
//! # fn main() -> anyhow::Result<()> {
//! let mut device = Device::builder("first-boot").image("out/holdfast.img").memory_mib(1024).nic(Nic::user().forward(8080)).build()?;
//! device.power_on()?;
//! device.serial().wait_for("holdfast: node is up", secs(120))?;
//! let web = device.forwarded(8080);
//! device.power_cut()?;
//! # Ok(()) }
//! ```
//!
//! Reading order: [`builder`], [`device`], [`machine`], [`serial`], [`qmp`], [`tpm`], [`process`], [`ports`].

pub mod builder;
pub mod device;
pub mod machine;
pub mod ports;
pub mod process;
pub mod qmp;
pub mod serial;
pub mod tpm;

pub use builder::{Boot, Builder, Bus, Disk, Nic};
pub use device::{Device, Snapshot};

use std::time::Duration;

/// A deadline of `seconds`, lengthened by `$HOLDFAST_PATIENCE` (a factor, for slow or loaded machines).
pub fn secs(seconds: u64) -> Duration {
    let factor = std::env::var("HOLDFAST_PATIENCE")
        .ok()
        .and_then(|v| v.parse::<f64>().ok())
        .filter(|f| (0.1..=100.0).contains(f));
    Duration::from_secs(seconds).mul_f64(factor.unwrap_or(1.0))
}
