//! The inactive entropy device.

use super::active::ActiveRng;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, DeviceKind, F_COMMON};

/// Entropy source.
#[derive(Debug)]
pub struct Rng {
    pub(super) name: String,
}

impl Rng {
    /// A new device; `name` is used in messages.
    pub fn new(name: String) -> Self {
        Self { name }
    }
}

impl Device for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        F_COMMON
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn config_space(&self) -> DeviceConfig {
        Vec::new().into()
    }

    fn activate(self: Box<Self>, activation: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
        let [queue] = Activation::all_queues(activation.queues, &self.name)?;
        Ok(Box::new(ActiveRng::new(*self, queue)))
    }
}
