//! Layer 1: the physical Ethernet ports of the hardware model.

use serde::{Deserialize, Serialize};

/// Who may use a port (`PhyIoMemberUsage`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortUsage {
    /// Nobody.
    None,
    /// Management and apps.
    ManagementAndApps,
    /// Apps only, shared among them.
    Shared,
    /// Given whole to one app.
    Dedicated,
    /// Switched off.
    Disabled,
    /// Management only.
    Management,
}

impl PortUsage {
    /// True when the device may reach its controller through the port.
    #[must_use]
    pub fn is_management(self) -> bool {
        matches!(self, Self::ManagementAndApps | Self::Management)
    }
}

/// A physical port of the hardware model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Logical label; what lies over the port names it by this.
    pub label: String,
    /// Text on the box.
    pub physical_label: String,
    /// Kernel interface name (`phyaddrs["ifname"]`), if the model gives one.
    pub interface: String,
    /// PCI address, if the model gives one.
    pub pci: String,
    /// Who may use it.
    pub usage: PortUsage,
}
