//! The activated network card, vhost path: the kernel works the rings, we only hear of ring errors (and pass on
//! interrupts when the driver uses no MSI-X).

use std::sync::Arc;

use super::Net;
use super::device::Backend;
use super::vhost::VhostNet;
use crate::memory::GuestRam;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::queue::VirtQueue;
use crate::virtio::vhost::rings::Rings;
use crate::virtio::{ActiveDevice, Device, DeviceFault, DeviceStats, Progress, Source};

pub(super) struct ActiveVhost {
    device: Net,
    rings: Rings,
}

impl ActiveVhost {
    pub(super) fn start(
        device: Net,
        queues: [VirtQueue; 2],
        ram: &GuestRam,
        features: u64,
        interrupts: Arc<Interrupts>,
    ) -> Result<Self, DeviceFault> {
        let name = &device.options.name;
        let rings = Rings::set_up(vhost(&device)?.common(), name, queues.into(), (ram, features), interrupts, 0)?;
        let active = Self { device, rings };
        active.set_backends(true)?;
        Ok(active)
    }

    fn set_backends(&self, running: bool) -> Result<(), DeviceFault> {
        let tap = running.then(|| self.device.tap.fd());
        for index in 0..2 {
            vhost(&self.device)?
                .set_backend(index, tap)
                .map_err(DeviceFault::host(&self.device.options.name, "attach the tap to vhost-net"))?;
        }
        Ok(())
    }
}

fn vhost(device: &Net) -> Result<&VhostNet, DeviceFault> {
    match &device.backend {
        Backend::Vhost(vhost) => Ok(vhost),
        Backend::User => {
            Err(DeviceFault::Guest { device: device.options.name.clone(), reason: "has no vhost back end".into() })
        }
    }
}

impl ActiveDevice for ActiveVhost {
    fn sources(&self) -> Vec<Source> {
        self.rings.sources()
    }

    fn ready(&mut self, token: u8) -> Result<Progress, DeviceFault> {
        self.rings.ready(token)
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        self.set_backends(false)?;
        self.rings.suspend(vhost(&self.device)?.common())
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        self.rings.go_on(vhost(&self.device)?.common())?;
        self.set_backends(true)?;
        self.rings.ring_all();
        Ok(())
    }

    fn deactivate(self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        self.set_backends(false)?;
        Ok(Box::new(self.device))
    }

    /// The kernel counts on the tap interface instead.
    fn stats(&self) -> DeviceStats {
        DeviceStats::default()
    }
}
