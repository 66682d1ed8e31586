//! The inactive console.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::active::ActiveConsole;
use crate::output::Output;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, DeviceKind, F_COMMON};

/// Console with its host ends.
#[derive(Debug)]
pub struct Console {
    pub(super) name: String,
    pub(super) output: Output,
    pub(super) input: Option<File>,
}

impl Console {
    /// Guest output goes to `output`, guest input comes from `input`.
    pub fn new(name: String, output: OwnedFd, input: Option<OwnedFd>) -> Self {
        Self { name, output: Output::new(output), input: input.map(File::from) }
    }
}

impl Device for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        F_COMMON
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    /// `cols`, `rows`, `max_nr_ports`, `emerg_wr`: none negotiated, all zero.
    fn config_space(&self) -> DeviceConfig {
        vec![0; 12].into()
    }

    fn activate(self: Box<Self>, activation: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
        let [receive, transmit] = Activation::all_queues(activation.queues, &self.name)?;
        Ok(Box::new(ActiveConsole::new(*self, receive, transmit)))
    }
}
