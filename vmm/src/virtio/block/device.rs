//! The inactive block device.

use std::fs::File;
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::active::ActiveBlock;
use super::engine::Engine;
use holdfast_model::contract::vm::ImageType;

use super::format::{Format, FormatError, SECTOR};
use super::request::MAX_RANGE_SECTORS;
use crate::rate::Limiter;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, DeviceKind, F_COMMON};
use holdfast_model::contract::vm::Limits;

/// Requests a queue holds.
const QUEUE_SIZE: u16 = 256;
/// Data segments of one request, beside header and status.
pub(super) const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// How long a pause or a reset waits for the host's storage.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Fields of the configuration space (virtio 1.3 §5.2.4): offset and bytes. Those not named are zero: no size_max, no
/// geometry, no writeback switch, one queue, no secure erase, no zones.
mod field {
    pub(super) const CAPACITY: (usize, usize) = (0, 8);
    pub(super) const SEG_MAX: (usize, usize) = (12, 4);
    pub(super) const BLK_SIZE: (usize, usize) = (20, 4);
    pub(super) const PHYSICAL_BLOCK_EXP: (usize, usize) = (24, 1);
    pub(super) const MIN_IO_SIZE: (usize, usize) = (26, 2);
    pub(super) const MAX_DISCARD_SECTORS: (usize, usize) = (36, 4);
    pub(super) const MAX_DISCARD_SEG: (usize, usize) = (40, 4);
    pub(super) const DISCARD_SECTOR_ALIGNMENT: (usize, usize) = (44, 4);
    pub(super) const MAX_WRITE_ZEROES_SECTORS: (usize, usize) = (48, 4);
    pub(super) const MAX_WRITE_ZEROES_SEG: (usize, usize) = (52, 4);
    pub(super) const WRITE_ZEROES_MAY_UNMAP: (usize, usize) = (56, 1);
    pub(super) const END: usize = 60;
}

/// What the guest is told of its disk, and what it may do to it.
#[derive(Debug, Clone, Default)]
pub struct BlockOptions {
    /// Serial string, up to 20 bytes; also names the disk in messages.
    pub id: String,
    /// What the file holds.
    pub image: ImageType,
    /// Refuse everything that changes it.
    pub read_only: bool,
    /// How fast it may be used.
    pub limits: Limits,
}

/// A disk.
pub struct Block {
    pub(super) name: String,
    pub(super) options: BlockOptions,
    pub(super) format: Format,
    pub(super) engine: Engine,
    pub(super) limiter: Option<Limiter>,
    pub(super) drain_limit: Duration,
}

impl Block {
    /// A disk on an image.
    ///
    /// # Errors
    /// [`FormatError`] when the image cannot serve as a disk.
    pub fn new(options: BlockOptions, mut file: File) -> Result<Self, FormatError> {
        let format = Format::open(options.image, &mut file, options.read_only)?;
        Ok(Self::with_engine(options, format, Engine::new(file)))
    }

    pub(super) fn with_engine(options: BlockOptions, format: Format, engine: Engine) -> Self {
        let limiter = Limiter::new(&options.limits, Instant::now());
        Self { name: format!("disk {}", options.id), options, format, engine, limiter, drain_limit: DRAIN_LIMIT }
    }

    /// Logical blocks in one of the host's, as a power of two.
    fn physical_block_exp(&self) -> u32 {
        (u64::from(self.format.block_bytes()) / SECTOR).ilog2()
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
        let always = [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_FLUSH];
        let read_only = self.options.read_only.then_some(VIRTIO_BLK_F_RO);
        let holes = self.format.has_holes().then_some([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        let bits = always.into_iter().chain(read_only).chain(holes.into_iter().flatten());
        bits.fold(F_COMMON, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config_space(&self) -> DeviceConfig {
        let mut space = vec![0u8; field::END];
        let mut put = |(at, bytes): (usize, usize), value: u64| {
            space[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        };
        let (blocks, range) = (1 << self.physical_block_exp(), u64::from(MAX_RANGE_SECTORS));
        put(field::CAPACITY, self.format.sectors());
        put(field::SEG_MAX, SEG_MAX.into());
        // Partition tables inside count in these, so the host's own block size is only a hint beside it.
        put(field::BLK_SIZE, SECTOR);
        put(field::PHYSICAL_BLOCK_EXP, self.physical_block_exp().into());
        put(field::MIN_IO_SIZE, blocks);
        if self.format.has_holes() {
            put(field::MAX_DISCARD_SECTORS, range);
            put(field::MAX_DISCARD_SEG, 1);
            put(field::DISCARD_SECTOR_ALIGNMENT, blocks);
            put(field::MAX_WRITE_ZEROES_SECTORS, range);
            put(field::MAX_WRITE_ZEROES_SEG, 1);
            put(field::WRITE_ZEROES_MAY_UNMAP, 1);
        }
        space.into()
    }

    fn activate(mut self: Box<Self>, activation: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
        let [queue] = Activation::all_queues(activation.queues, &self.name)?;
        self.engine.attach(activation.ram);
        Ok(Box::new(ActiveBlock::new(*self, queue, activation.features)))
    }
}
