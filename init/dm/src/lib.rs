//! Device-mapper devices by ioctl: PID 1 opens the verity slot with it, the vault its encrypted volume.
//!
//! What this crate guards:
//! 1. One activation is create, load, resume; when a later step fails the half-made device is removed again.
//! 2. No key bytes pass through here: a crypt table names a key of the kernel keyring.
//! 3. Small enough for the static PID 1: libc only, no udev, no allocation beyond one buffer per call.
//! 4. What the kernel returns is still read with bounds checks.
//!
//! Modules, in reading order: [`table`] (targets and their parameter strings), [`wire`] (the ioctl
//! buffer, byte for byte), [`control`] (the ioctls themselves), [`partition`] (growing one in place).

pub mod control;
pub mod partition;
pub mod table;
pub mod wire;

pub use control::{Control, DmError};
pub use table::Target;
pub use wire::{DeviceNumber, Listed};
