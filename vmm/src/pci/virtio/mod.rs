//! The virtio-pci transport (virtio 1.3 §4.1), modern only: registers of one function, on vCPU threads.
//!
//! ```text
//!  BAR 0:  0x0000 common configuration   0x1000 ISR   0x2000 device configuration
//!          0x3000 notify (4 bytes each queue)   0x4000 MSI-X table   0x5000 MSI-X pending bits
//! ```
//!
//! The device itself lives on the device thread; writing DRIVER_OK or 0 to the status register sends it there.

mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::bus::Function;
use super::config::{ConfigSpace, Identity};
use super::msix::Msix;
use crate::exit::End;
use crate::irq::{IrqError, MsiRouter};
use crate::memory::GuestRam;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::interrupt::{Interrupts, IrqLine};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{Activation, Device, DeviceKind, F_EVENT_IDX, F_INDIRECT, F_VERSION_1};

/// Bytes of BAR 0.
pub const BAR_SIZE: u32 = 0x8000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
/// Bytes between the notify addresses of two queues.
const NOTIFY_STRIDE: u32 = 4;

const STATUS_FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const STATUS_DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const STATUS_NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// Registers of the common configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Common {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOff,
    Descriptors { high: bool },
    Available { high: bool },
    Used { high: bool },
}

/// `(offset, width, register)` of virtio 1.3 §4.1.4.3. 64-bit registers are two 32-bit halves.
const COMMON: [(u64, usize, Common); 19] = [
    (0x00, 4, Common::DeviceFeatureSelect),
    (0x04, 4, Common::DeviceFeature),
    (0x08, 4, Common::DriverFeatureSelect),
    (0x0c, 4, Common::DriverFeature),
    (0x10, 2, Common::ConfigVector),
    (0x12, 2, Common::NumQueues),
    (0x14, 1, Common::Status),
    (0x15, 1, Common::Generation),
    (0x16, 2, Common::QueueSelect),
    (0x18, 2, Common::QueueSize),
    (0x1a, 2, Common::QueueVector),
    (0x1c, 2, Common::QueueEnable),
    (0x1e, 2, Common::QueueNotifyOff),
    (0x20, 4, Common::Descriptors { high: false }),
    (0x24, 4, Common::Descriptors { high: true }),
    (0x28, 4, Common::Available { high: false }),
    (0x2c, 4, Common::Available { high: true }),
    (0x30, 4, Common::Used { high: false }),
    (0x34, 4, Common::Used { high: true }),
];
const COMMON_LEN: u64 = 0x38;

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

#[derive(Debug)]
struct QueueRegisters {
    max_size: u16,
    size: u16,
    enabled: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    kick: Arc<EventFd>,
}

/// One virtio function.
pub struct VirtioFunction {
    slot: usize,
    name: String,
    machine: Machine,
    space: ConfigSpace,
    msix_control: usize,
    window: usize,
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
        add_capability(&mut space, 1, 0, COMMON_LEN as u32, &[]);
        add_capability(&mut space, 3, ISR as u32, 1, &[]);
        add_capability(&mut space, 4, DEVICE as u32, device_config.len().max(4) as u32, &[]);
        add_capability(&mut space, 2, NOTIFY as u32, NOTIFY_STRIDE * sizes.len() as u32, &NOTIFY_STRIDE.to_le_bytes());
        // §4.1.4.9: a way to the BAR through configuration space; all of bar, offset, length and data is writable.
        let window = add_capability(&mut space, 5, 0, 0, &[0; 4]);
        let writable: Vec<usize> = std::iter::once(4).chain(8..20).collect();
        space.allow(window, &writable);
        // MSI-X: control word, table and pending bits both in BAR 0.
        let mut body = [0u8; 10];
        body[0..2].copy_from_slice(&(vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(TABLE as u32).to_le_bytes());
        body[6..10].copy_from_slice(&(PENDING as u32).to_le_bytes());
        let msix_control = space.add_capability(0x11, &body, &[(3, 0xc0)]) + 2;

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
            msix_control,
            window,
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

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        if data.len() == 8 {
            let (low, high) = data.split_at_mut(4);
            self.read_common(offset, low);
            self.read_common(offset + 4, high);
            return;
        }
        let register = COMMON.iter().find(|(at, width, _)| *at == offset && *width == data.len());
        let half = |value: u64, high: bool| {
            if high { value >> 32 } else { value & 0xffff_ffff }
        };
        let queue = self.selected();
        let value: u64 = match register.map(|(.., register)| *register) {
            None => 0,
            Some(Common::DeviceFeatureSelect) => self.device_feature_select.into(),
            Some(Common::DeviceFeature) => match self.device_feature_select {
                0 | 1 => half(self.offered, self.device_feature_select == 1),
                _ => 0,
            },
            Some(Common::DriverFeatureSelect) => self.driver_feature_select.into(),
            Some(Common::DriverFeature) => match self.driver_feature_select {
                0 | 1 => half(self.driver_features, self.driver_feature_select == 1),
                _ => 0,
            },
            Some(Common::ConfigVector) => self.interrupts.config_vector().into(),
            Some(Common::NumQueues) => self.queues.len() as u64,
            Some(Common::Status) => self.status.into(),
            Some(Common::Generation) => self.device_config.generation().into(),
            Some(Common::QueueSelect) => self.queue_select.into(),
            Some(Common::QueueSize) => queue.map_or(0, |q| q.size.into()),
            Some(Common::QueueVector) => self.interrupts.queue_vector(self.queue_select).into(),
            Some(Common::QueueEnable) => queue.map_or(0, |q| q.enabled.into()),
            Some(Common::QueueNotifyOff) => self.queue_select.into(),
            Some(Common::Descriptors { high }) => queue.map_or(0, |q| half(q.descriptors, high)),
            Some(Common::Available { high }) => queue.map_or(0, |q| half(q.available, high)),
            Some(Common::Used { high }) => queue.map_or(0, |q| half(q.used, high)),
        };
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) -> Result<(), End> {
        if data.len() == 8 {
            self.write_common(offset, &data[..4])?;
            return self.write_common(offset + 4, &data[4..]);
        }
        let Some((.., register)) = COMMON.iter().find(|(at, width, _)| *at == offset && *width == data.len()) else {
            return Ok(());
        };
        let value = data.iter().rev().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
        let word = value as u16;
        match *register {
            Common::DeviceFeatureSelect => self.device_feature_select = value,
            Common::DriverFeatureSelect => self.driver_feature_select = value,
            // §3.1.1: features are settled with FEATURES_OK.
            Common::DriverFeature if self.status & STATUS_FEATURES_OK == 0 => {
                let value = u64::from(value);
                match self.driver_feature_select {
                    0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
                    1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            Common::ConfigVector => self.interrupts.set_config_vector(word),
            Common::Status => self.write_status(value as u8)?,
            Common::QueueSelect => self.queue_select = word,
            Common::QueueVector => self.interrupts.set_queue_vector(self.queue_select, word),
            Common::QueueSize => {
                let select = self.queue_select;
                let sound = word.is_power_of_two() && self.selected().is_none_or(|q| word <= q.max_size);
                if !sound {
                    return Err(self.misuse(format_args!("set the size of queue {select} to {word}")));
                }
                self.change_queue(|q| q.size = word);
            }
            Common::QueueEnable if value == 1 => self.change_queue(|q| q.enabled = true),
            Common::QueueEnable => return Err(self.misuse("wrote 0 to queue_enable")),
            Common::Descriptors { high } => self.change_queue(|q| set_half(&mut q.descriptors, high, value)),
            Common::Available { high } => self.change_queue(|q| set_half(&mut q.available, high, value)),
            Common::Used { high } => self.change_queue(|q| set_half(&mut q.used, high, value)),
            Common::DriverFeature
            | Common::DeviceFeature
            | Common::NumQueues
            | Common::Generation
            | Common::QueueNotifyOff => {}
        }
        Ok(())
    }

    /// Queue registers are settled once the queue is enabled (§4.1.4.3.2).
    fn change_queue(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)).filter(|q| !q.enabled) {
            change(queue);
        }
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
                done.map_err(|e| self.host(&e))?;
            }
        }
        self.doorbells_at = wanted;
        Ok(())
    }

    /// The BAR access that the PCI configuration access capability describes now.
    fn window_access(&self) -> Option<(u64, usize)> {
        let length = self.space.dword(self.window + 12) as usize;
        let offset = u64::from(self.space.dword(self.window + 8));
        let bar = self.space.dword(self.window + 4) & 0xff;
        let sound = bar == 0 && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length as u64);
        sound.then_some((offset, length))
    }
}

impl Function for VirtioFunction {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) -> Result<(), End> {
        let window = self.window + 16..self.window + 20;
        if window.contains(&offset)
            && let Some((at, length)) = self.window_access()
        {
            let mut value = [0u8; 4];
            self.bar_read(at, &mut value[..length])?;
            self.space.set(self.window + 16, &value);
        }
        self.space.read(offset, data);
        Ok(())
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) -> Result<(), End> {
        self.space.write(offset, data);
        let touches = |at: usize, len: usize| offset < at + len && at < offset + data.len();
        if touches(self.window + 16, 4)
            && let Some((at, length)) = self.window_access()
        {
            let value = self.space.dword(self.window + 16).to_le_bytes();
            self.bar_write(at, &value[..length])?;
        }
        if touches(self.msix_control, 2) {
            let control = self.space.word(self.msix_control);
            let done = self.msix.set_control(control);
            done.map_err(|e| self.host(&e))?;
            self.interrupts.set_msix_enabled(self.msix.enabled());
        }
        if touches(0x04, 2) || touches(0x10, 4) {
            self.sync_doorbells()?;
        }
        Ok(())
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

fn set_half(value: &mut u64, high: bool, half: u32) {
    *value = if high { *value & 0xffff_ffff | u64::from(half) << 32 } else { *value & !0xffff_ffff | u64::from(half) };
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

/// Appends a virtio capability (§4.1.4): cap_len, cfg_type, bar, id, padding, offset, length, extra.
fn add_capability(space: &mut ConfigSpace, kind: u8, offset: u32, length: u32, extra: &[u8]) -> usize {
    let mut body = vec![16 + extra.len() as u8, kind, 0, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(extra);
    space.add_capability(0x09, &body, &[])
}

/// Fuzz entry: arbitrary configuration and BAR accesses end in a value or a named fault.
#[doc(hidden)]
pub fn fuzz_virtio_pci(data: &[u8]) {
    testing::drive(data);
}
