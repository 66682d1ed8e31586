//! The inactive block device.

use std::fs::File;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};

use super::active::ActiveBlock;
use super::engine::Engine;
use super::format::{Format, FormatError};
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, DeviceKind, F_COMMON};

/// Requests a queue holds.
const QUEUE_SIZE: u16 = 256;
/// Data segments of one request, beside header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// A disk.
pub struct Block {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) format: Format,
    pub(super) engine: Engine,
    pub(super) read_only: bool,
}

impl Block {
    /// A disk with serial `id` on a raw image.
    ///
    /// # Errors
    /// [`FormatError`] when the image cannot serve as a disk.
    pub fn new(id: &str, mut file: File, read_only: bool) -> Result<Self, FormatError> {
        let format = Format::raw(&mut file)?;
        Ok(Self::with_engine(id, format, Engine::new(file), read_only))
    }

    pub(super) fn with_engine(id: &str, format: Format, engine: Engine, read_only: bool) -> Self {
        Self { name: format!("disk {id}"), id: id.to_string(), format, engine, read_only }
    }
}

impl Device for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        let read_only = if self.read_only { 1 << VIRTIO_BLK_F_RO } else { 0 };
        F_COMMON | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH | read_only
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// virtio 1.3 §5.2.4: capacity @0, size_max @8, seg_max @12, geometry @16, blk_size @20, topology @24, writeback @32.
    fn config_space(&self) -> DeviceConfig {
        let mut space = vec![0u8; 36];
        space[0..8].copy_from_slice(&self.format.sectors().to_le_bytes());
        space[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        space[20..24].copy_from_slice(&512u32.to_le_bytes());
        space.into()
    }

    fn activate(self: Box<Self>, activation: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
        let flushes = activation.features & 1 << VIRTIO_BLK_F_FLUSH != 0;
        let [queue] = Activation::all_queues(activation.queues, &self.name)?;
        Ok(Box::new(ActiveBlock::new(*self, queue, flushes)))
    }
}
