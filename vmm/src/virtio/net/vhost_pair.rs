//! One queue pair whose rings the host's kernel works; we only hear of broken rings (and pass on interrupts when the driver
//! uses no MSI-X).

use holdfast_links::{Link, Tap};

use super::active::{Limiters, Pair};
use super::device::Lane;
use super::vhost::VhostNet;
use crate::virtio::vhost::rings::Rings;
use crate::virtio::{DeviceFault, Progress, Source};
use holdfast_model::contract::vm::DeviceStats;

pub(super) struct VhostPair {
    device: String,
    tap: Tap,
    vhost: VhostNet,
    rings: Rings,
}

impl VhostPair {
    /// Stands still until it is started; `rings` were set up with this `vhost`.
    pub(super) fn new(device: &str, tap: Tap, vhost: VhostNet, rings: Rings) -> Self {
        Self { device: device.to_string(), tap, vhost, rings }
    }

    fn set_backends(&self, running: bool) -> Result<(), DeviceFault> {
        let tap = running.then(|| self.tap.fd());
        for index in 0..2 {
            self.vhost
                .set_backend(index, tap)
                .map_err(DeviceFault::host(&self.device, "attach the tap to vhost-net"))?;
        }
        Ok(())
    }
}

impl Pair for VhostPair {
    fn link(&mut self) -> &mut dyn Link {
        &mut self.tap
    }

    fn sources(&self) -> Vec<Source> {
        self.rings.sources()
    }

    fn ready(&mut self, token: u8, _: &mut Limiters) -> Result<Progress, DeviceFault> {
        self.rings.ready(token)
    }

    fn start(&mut self) -> Result<(), DeviceFault> {
        self.rings.go_on(self.vhost.common())?;
        self.set_backends(true)?;
        self.rings.ring_all();
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DeviceFault> {
        self.set_backends(false)?;
        self.rings.suspend(self.vhost.common())
    }

    fn finish(self: Box<Self>) -> Lane {
        Lane::Vhost(self.tap, self.vhost)
    }

    /// The kernel counts on the tap interface instead.
    fn stats(&self) -> DeviceStats {
        DeviceStats::default()
    }
}
