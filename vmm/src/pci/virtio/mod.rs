//! The virtio-pci transport (virtio 1.3 §4.1), modern only: registers of one function, on vCPU threads.
//!
//! [`layout`] (where what lies in BAR 0, and the capabilities that say so), [`common`] (the common configuration).
//!
//! The device itself lives on the device thread; writing DRIVER_OK or 0 to the status register sends it there.

mod common;
mod layout;
pub(super) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::common::QueueRegisters;
pub use self::layout::BAR_SIZE;
use self::layout::{DEVICE, Field, ISR, NOTIFY, NOTIFY_STRIDE, PENDING, Places, TABLE};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::bus::Function;
use super::config::{self, ConfigSpace, Header, Identity, SPACE};
use super::msix::Msix;
use crate::irq::{IrqError, MsiRouter};
use crate::memory::GuestRam;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::interrupt::{Interrupts, IrqLine};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{Activation, Device, DeviceKind, F_EVENT_IDX, F_INDIRECT, F_VERSION_1};
use holdfast_model::contract::end::End;

const STATUS_FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const STATUS_DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const STATUS_NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// Where the transport sends a device's life-cycle; implemented by the device thread's handle.
pub trait DeviceLoop: Send + Sync {
    /// Activates device `slot`; returns when it works.
    ///
    /// # Errors
    /// When the VM must end.
    fn activate(&self, slot: usize, activation: Activation) -> Result<(), End>;
    /// Deactivates device `slot`; returns when it touches guest memory no more.
    ///
    /// # Errors
    /// When the VM must end.
    fn reset(&self, slot: usize) -> Result<(), End>;
}

/// Connects guest addresses to eventfds in the kernel.
pub trait Doorbells: Send + Sync {
    /// A guest write to `address` signals `eventfd` without an exit.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn connect(&self, address: u64, eventfd: &EventFd) -> Result<(), IrqError>;
    /// Undoes [`Doorbells::connect`].
    ///
    /// # Errors
    /// When the kernel refuses.
    fn disconnect(&self, address: u64, eventfd: &EventFd) -> Result<(), IrqError>;
}

/// What a transport needs of its machine.
#[derive(Clone)]
pub struct Machine {
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// Message interrupts.
    pub router: Arc<dyn MsiRouter>,
    /// Kernel doorbells.
    pub doorbells: Arc<dyn Doorbells>,
    /// The device thread.
    pub devices: Arc<dyn DeviceLoop>,
}

/// One virtio function.
pub struct VirtioFunction {
    slot: usize,
    name: String,
    machine: Machine,
    space: ConfigSpace,
    places: Places,
    msix: Msix,
    interrupts: Arc<Interrupts>,
    offered: u64,
    device_config: DeviceConfig,
    queues: Vec<QueueRegisters>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    status: u8,
    /// Address of BAR 0 that the kernel's doorbells are connected at.
    doorbells_at: Option<u64>,
}

impl VirtioFunction {
    /// Registers for `device`, which the device thread knows as `slot`.
    ///
    /// # Errors
    /// When eventfds run out.
    pub fn new(
        slot: usize,
        device: &dyn Device,
        bar: u32,
        gsi: u8,
        line: Option<Arc<dyn IrqLine>>,
        machine: Machine,
    ) -> Result<Self, IrqError> {
        let kind = device.kind();
        let class = match kind {
            DeviceKind::Net => 0x02_0000,
            DeviceKind::Block => 0x01_8000,
            DeviceKind::Console => 0x07_8000,
            DeviceKind::Rng => 0xff_0000,
            DeviceKind::Balloon => 0x05_8000,
            DeviceKind::Vsock => 0x02_8000,
        };
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1040 + kind as u16,
            revision: 1,
            class,
            subsystem_vendor: 0x1af4,
            subsystem: 0x0040,
            interrupt_pin: 1,
            interrupt_line: gsi,
        });
        space.set_bar0(bar, BAR_SIZE);
        let sizes = device.queue_sizes();
        let device_config = device.config_space();
        let vectors = sizes.len() as u16 + 1;
        let places = layout::declare(&mut space, device_config.len(), sizes.len(), vectors);

        let msix = Msix::new(vectors, machine.router.clone())?;
        let interrupts = Arc::new(Interrupts::new(msix.eventfds(), sizes.len(), line));
        let queues = sizes
            .iter()
            .map(|&max_size| {
                let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                    .map_err(|source| IrqError::Io { what: "make an eventfd", source })?;
                Ok(QueueRegisters {
                    max_size,
                    size: max_size,
                    enabled: false,
                    descriptors: 0,
                    available: 0,
                    used: 0,
                    kick: Arc::new(kick),
                })
            })
            .collect::<Result<_, IrqError>>()?;
        Ok(Self {
            slot,
            name: device.name().to_string(),
            machine,
            space,
            places,
            msix,
            interrupts,
            offered: device.features(),
            device_config,
            queues,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            status: 0,
            doorbells_at: None,
        })
    }

    fn active(&self) -> bool {
        self.status & STATUS_DRIVER_OK != 0
    }

    fn misuse(&self, what: impl std::fmt::Display) -> End {
        End::guest_fault(format!("{}: driver {what}", self.name))
    }

    fn host(&self, error: &IrqError) -> End {
        End::host_fault(format!("{}: {error}", self.name))
    }

    fn write_status(&mut self, status: u8) -> Result<(), End> {
        if status == 0 {
            return self.reset();
        }
        if self.status & !status & !STATUS_NEEDS_RESET != 0 {
            return Err(self.misuse(format_args!("cleared status bits: {:#x} after {:#x}", status, self.status)));
        }
        let mut status = status;
        let new = status & !self.status;
        if new & STATUS_FEATURES_OK != 0 {
            let sound = self.driver_features & !self.offered == 0 && self.driver_features & F_VERSION_1 != 0;
            if !sound {
                // §3.1.1 step 6: the driver reads the bit back to see that we refuse.
                status &= !STATUS_FEATURES_OK;
            }
        }
        if new & STATUS_DRIVER_OK != 0 {
            if status & STATUS_FEATURES_OK == 0 {
                return Err(self.misuse("set DRIVER_OK without FEATURES_OK"));
            }
            self.activate()?;
        }
        self.status = status;
        Ok(())
    }

    fn activate(&mut self) -> Result<(), End> {
        let mut queues = Vec::new();
        for (index, registers) in (0u16..).zip(&self.queues) {
            if !registers.enabled {
                continue;
            }
            let queue = build_queue(registers, self.driver_features)
                .map_err(|e| self.misuse(format_args!("set up queue {index} wrongly: {e}")))?;
            let (ram, kick) = (self.machine.ram.clone(), registers.kick.clone());
            let queue = VirtQueue::new(index, queue, ram, kick, self.interrupts.clone())
                .map_err(|e| self.misuse(format_args!("set up queue {index} wrongly: {e}")))?;
            let indirect = self.driver_features & F_INDIRECT != 0;
            queues.push(if indirect { queue } else { queue.without_indirect() });
        }
        let activation = Activation {
            ram: self.machine.ram.clone(),
            features: self.driver_features,
            queues,
            interrupts: self.interrupts.clone(),
        };
        self.machine.devices.activate(self.slot, activation)?;
        self.status |= STATUS_DRIVER_OK;
        self.sync_doorbells()
    }

    fn reset(&mut self) -> Result<(), End> {
        if self.active() {
            self.status = 0;
            self.sync_doorbells()?;
            self.machine.devices.reset(self.slot)?;
        }
        self.status = 0;
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            queue.size = queue.max_size;
            queue.enabled = false;
            (queue.descriptors, queue.available, queue.used) = (0, 0, 0);
            let _ = queue.kick.read();
        }
        self.interrupts.reset();
        Ok(())
    }

    /// Doorbells are connected in the kernel while the device is active and its BAR is mapped.
    fn sync_doorbells(&mut self) -> Result<(), End> {
        let wanted = self.space.bar0().filter(|_| self.active());
        if wanted == self.doorbells_at {
            return Ok(());
        }
        let address = |bar: u64, index: usize| bar + NOTIFY + u64::from(NOTIFY_STRIDE) * index as u64;
        for (index, queue) in self.queues.iter().enumerate() {
            if let Some(bar) = self.doorbells_at {
                let undone = self.machine.doorbells.disconnect(address(bar, index), &queue.kick);
                undone.map_err(|e| self.host(&e))?;
            }
        }
        self.doorbells_at = None;
        for (index, queue) in self.queues.iter().enumerate() {
            if let Some(bar) = wanted {
                let done = self.machine.doorbells.connect(address(bar, index), &queue.kick);
                done.map_err(|e| match &e {
                    IrqError::Io { source, .. } if source.raw_os_error() == Some(libc::EEXIST) => {
                        self.misuse(format_args!("put BAR 0 at {bar:#x}, over the doorbells of another device"))
                    }
                    _ => self.host(&e),
                })?;
            }
        }
        self.doorbells_at = wanted;
        Ok(())
    }

    /// The BAR access that the PCI configuration access capability describes now.
    fn window_access(&self) -> Option<(u64, usize)> {
        let length = self.space.dword(self.places.window(Field::Length)) as usize;
        let offset = u64::from(self.space.dword(self.places.window(Field::Offset)));
        let bar = self.space.dword(self.places.window(Field::Bar)) & 0xff;
        let sound = bar == 0 && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length as u64);
        sound.then_some((offset, length))
    }
}

impl Function for VirtioFunction {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) -> Result<(), End> {
        let window = self.places.window(Field::Data);
        if (window..window + 4).contains(&offset)
            && let Some((at, length)) = self.window_access()
        {
            let mut value = [0u8; 4];
            self.bar_read(at, &mut value[..length])?;
            self.space.set(window, &value);
        }
        self.space.read(offset, data);
        Ok(())
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) -> Result<(), End> {
        self.space.write(offset, data);
        let touches = |at: usize, len: usize| offset < at + len && at < offset + data.len();
        let window = self.places.window(Field::Data);
        if touches(window, 4)
            && let Some((at, length)) = self.window_access()
        {
            let value = self.space.dword(window).to_le_bytes();
            self.bar_write(at, &value[..length])?;
        }
        if touches(self.places.msix_control, 2) {
            let control = self.space.word(self.places.msix_control);
            let done = self.msix.set_control(control);
            done.map_err(|e| self.host(&e))?;
            self.interrupts.set_msix_enabled(self.msix.enabled());
        }
        if config::touches(Header::Command, offset, data.len()) || config::touches(Header::Bar0, offset, data.len()) {
            self.sync_doorbells()?;
        }
        Ok(())
    }

    fn config_bytes(&self) -> &[u8; SPACE] {
        self.space.bytes()
    }

    /// Once the driver has opened the window into the BAR, reading its data register reads the BAR (§4.1.4.9).
    fn config_reads_act(&self) -> bool {
        self.window_access().is_some()
    }

    fn bar(&self) -> Option<(u64, u64)> {
        self.space.bar0().map(|address| (address, BAR_SIZE.into()))
    }

    fn bar_read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), End> {
        data.fill(0);
        match offset {
            0..ISR => self.read_common(offset, data),
            ISR if data.len() == 1 => data[0] = self.interrupts.take_isr(),
            DEVICE..NOTIFY => self.device_config.read(offset - DEVICE, data),
            TABLE..PENDING => self.msix.read_table(offset - TABLE, data),
            PENDING.. => self.msix.read_pending(offset - PENDING, data),
            _ => {}
        }
        Ok(())
    }

    fn bar_write(&mut self, offset: u64, data: &[u8]) -> Result<(), End> {
        match offset {
            0..ISR => self.write_common(offset, data)?,
            DEVICE..NOTIFY => self.device_config.write(offset - DEVICE, data),
            NOTIFY..TABLE => {
                // Only before the kernel's doorbells are connected.
                let index = usize::try_from((offset - NOTIFY) / u64::from(NOTIFY_STRIDE)).unwrap_or(usize::MAX);
                if let Some(queue) = self.queues.get(index) {
                    let _ = queue.kick.write(1);
                }
            }
            TABLE..PENDING => {
                let done = self.msix.write_table(offset - TABLE, data);
                done.map_err(|e| self.host(&e))?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn build_queue(registers: &QueueRegisters, features: u64) -> Result<Queue, virtio_queue::Error> {
    use vm_memory::GuestAddress;
    let mut queue = Queue::new(registers.max_size)?;
    queue.try_set_size(registers.size)?;
    queue.try_set_desc_table_address(GuestAddress(registers.descriptors))?;
    queue.try_set_avail_ring_address(GuestAddress(registers.available))?;
    queue.try_set_used_ring_address(GuestAddress(registers.used))?;
    queue.set_event_idx(features & F_EVENT_IDX != 0);
    queue.set_ready(true);
    Ok(queue)
}

/// Fuzz entry: arbitrary configuration and BAR accesses end in a value or a named fault.
#[doc(hidden)]
pub fn fuzz_virtio_pci(data: &[u8]) {
    testing::drive(data);
}
