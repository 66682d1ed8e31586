//! PCI: one bus, the host bridge and virtio functions, all with fixed BARs assigned before the guest starts.
//!
//! [`config`] (configuration space with write masks), [`msix`] (vector table), [`virtio`] (the virtio-pci transport),
//! [`bus`] (who answers at which address).

pub mod bus;
pub mod config;
pub mod msix;
pub mod virtio;
