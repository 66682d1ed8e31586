//! PCI: one bus, the host bridge and virtio functions, all with fixed BARs assigned before the guest starts.
//!
//! [`registers`] (tables that declare registers), [`config`] (configuration space with write masks), [`msix`] (vector
//! table), [`virtio`] (the virtio-pci transport), [`bus`] (who answers at which address), [`pages`] (configuration space
//! that is read without an exit).

pub mod bus;
pub mod config;
pub mod msix;
pub mod pages;
pub mod registers;
pub mod virtio;
