//! The common configuration: the registers by which a driver brings a device up.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::super::registers::{self, Access, Block, register};
use super::{STATUS_FEATURES_OK, VirtioFunction};
use holdfast_model::contract::end::End;

/// Registers of the common configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Common {
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

/// The common configuration (virtio 1.3 §4.1.4.3). 64-bit registers are two 32-bit halves.
pub(super) const COMMON: Block<Common> = Block::new(&[
    register(0x00, 4, Common::DeviceFeatureSelect, Access::ReadWrite),
    register(0x04, 4, Common::DeviceFeature, Access::ReadOnly),
    register(0x08, 4, Common::DriverFeatureSelect, Access::ReadWrite),
    register(0x0c, 4, Common::DriverFeature, Access::ReadWrite),
    register(0x10, 2, Common::ConfigVector, Access::ReadWrite),
    register(0x12, 2, Common::NumQueues, Access::ReadOnly),
    register(0x14, 1, Common::Status, Access::ReadWrite),
    register(0x15, 1, Common::Generation, Access::ReadOnly),
    register(0x16, 2, Common::QueueSelect, Access::ReadWrite),
    register(0x18, 2, Common::QueueSize, Access::ReadWrite),
    register(0x1a, 2, Common::QueueVector, Access::ReadWrite),
    register(0x1c, 2, Common::QueueEnable, Access::ReadWrite),
    register(0x1e, 2, Common::QueueNotifyOff, Access::ReadOnly),
    register(0x20, 4, Common::Descriptors { high: false }, Access::ReadWrite),
    register(0x24, 4, Common::Descriptors { high: true }, Access::ReadWrite),
    register(0x28, 4, Common::Available { high: false }, Access::ReadWrite),
    register(0x2c, 4, Common::Available { high: true }, Access::ReadWrite),
    register(0x30, 4, Common::Used { high: false }, Access::ReadWrite),
    register(0x34, 4, Common::Used { high: true }, Access::ReadWrite),
]);

/// Registers of one queue.
#[derive(Debug)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) kick: Arc<EventFd>,
}

impl VirtioFunction {
    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    pub(super) fn read_common(&self, offset: u64, data: &mut [u8]) {
        if data.len() == 8 {
            let (low, high) = data.split_at_mut(4);
            self.read_common(offset, low);
            self.read_common(offset + 4, high);
            return;
        }
        let half = |value: u64, high: bool| {
            if high { value >> 32 } else { value & 0xffff_ffff }
        };
        let queue = self.selected();
        let value: u64 = match COMMON.at(offset, data.len()).map(|register| register.name) {
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

    pub(super) fn write_common(&mut self, offset: u64, data: &[u8]) -> Result<(), End> {
        if data.len() == 8 {
            self.write_common(offset, &data[..4])?;
            return self.write_common(offset + 4, &data[4..]);
        }
        let register = COMMON.at(offset, data.len()).filter(|register| register.access != Access::ReadOnly);
        let Some(register) = register else {
            return Ok(());
        };
        let value = registers::value(data);
        let word = value as u16;
        match register.name {
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
            // Settled, or read-only by the table.
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
}

fn set_half(value: &mut u64, high: bool, half: u32) {
    *value = if high { *value & 0xffff_ffff | u64::from(half) << 32 } else { *value & !0xffff_ffff | u64::from(half) };
}
