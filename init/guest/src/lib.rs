//! Init inside container guests: mounts the app's disks, takes a DHCP lease, runs one program and reports how it ended.
//!
//! Principles:
//! 1. The VM is the wall between apps; this program owes its app an ordinary container and the host a truthful report.
//! 2. PID 1 stays in the initramfs: the app has its own mount namespace and root, so every file system can be unmounted at the end.
//! 3. Whatever happens, the last line on the console is the exit line, and then the VM is powered off.
//! 4. The app's output is passed on line by line and can never look like a line of ours.
//! 5. Every wait has a deadline.
//!
//! Contract: `docs/design.md` 8.5. Disks are virtio-blk devices found by serial number: `rootfs`, `overlay`, `config` and the
//! volumes that the [`holdfast_model::contract::guest::AppDocument`] on `config` names.
//!
//! Reading order: [`lifecycle`] (the whole run), [`document`], [`disks`], [`root`], [`inroot`], [`account`], [`network`], [`dhcp`],
//! [`interface`], [`app`], [`console`], [`power`].

pub mod account;
pub mod app;
pub mod console;
pub mod dhcp;
pub mod disks;
pub mod document;
pub mod ends;
pub mod inroot;
pub mod interface;
pub mod lifecycle;
pub mod network;
pub mod power;
pub mod root;
