//! The inactive console.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::active::ActiveConsole;
use super::space;
use crate::terminal::Terminal;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, DeviceKind, F_COMMON};

/// VIRTIO_CONSOLE_F_SIZE: the configuration space tells columns and rows.
pub(super) const F_SIZE: u64 = 1 << 0;
/// VIRTIO_CONSOLE_F_MULTIPORT: ports beyond 0, and control queues.
pub(super) const F_MULTIPORT: u64 = 1 << 1;
/// VIRTIO_CONSOLE_F_EMERG_WRITE: what is written to a field of the configuration space comes out, with or without queues.
pub(super) const F_EMERG_WRITE: u64 = 1 << 2;
/// Most ports of a console, port 0 included.
pub const MAX_PORTS: usize = 16;
/// Queues of a console without control: those of port 0.
pub(super) const PORT_QUEUES: usize = 2;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;

/// A port with the host's side of it.
#[derive(Debug)]
pub struct Port {
    /// Name the guest sees; port 0 has none.
    pub(super) name: Option<String>,
    pub(super) terminal: Arc<Terminal>,
    /// Rung when the host's side has input or another size.
    pub(super) bell: Arc<EventFd>,
}

impl Port {
    /// A port called `name` with `terminal` at the host's side.
    ///
    /// # Errors
    /// When eventfds run out.
    pub fn new(name: Option<String>, terminal: Arc<Terminal>) -> io::Result<Self> {
        Ok(Self { name, terminal, bell: Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?) })
    }

    /// The terminal and its guest's end, for the event loop.
    pub fn ends(&self) -> (Arc<Terminal>, Arc<EventFd>) {
        (self.terminal.clone(), self.bell.clone())
    }
}

/// Console with its ports; the first is the guest's console.
#[derive(Debug)]
pub struct Console {
    pub(super) name: String,
    pub(super) ports: Vec<Port>,
    /// Its first two fields change with the window's size.
    pub(super) space: DeviceConfig,
    queue_sizes: Vec<u16>,
}

impl Console {
    /// A console with 1 to [`MAX_PORTS`] ports.
    ///
    /// # Panics
    /// Without a port.
    pub fn new(name: String, ports: Vec<Port>) -> Self {
        debug_assert!((1..=MAX_PORTS).contains(&ports.len()));
        let queues = if ports.len() > 1 { PORT_QUEUES * (ports.len() + 1) } else { PORT_QUEUES };
        let space = space::declare(ports.len(), ports[0].terminal.clone());
        Self { name, ports, space, queue_sizes: vec![QUEUE_SIZE; queues] }
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
        F_COMMON | F_SIZE | F_EMERG_WRITE | if self.ports.len() > 1 { F_MULTIPORT } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config_space(&self) -> DeviceConfig {
        self.space.clone()
    }

    fn activate(self: Box<Self>, activation: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
        Ok(Box::new(ActiveConsole::new(*self, activation)?))
    }
}
