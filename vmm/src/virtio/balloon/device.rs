//! The inactive balloon.

use super::active::ActiveBalloon;
use crate::config::MIN_MEMORY_MIB;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, DeviceKind, F_COMMON, Order};
use holdfast_model::contract::vm::BalloonConfig;

/// Feature bits (§5.5.3). `VIRTIO_BALLOON_F_MUST_TELL_HOST` (0) is not offered: a page may be used again untold.
/// `VIRTIO_BALLOON_F_STATS_VQ`.
pub(super) const F_STATS: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
pub(super) const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_POISON`: without it a guest that fills free pages does not report any.
pub(super) const F_PAGE_POISON: u64 = 1 << 4;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`.
pub(super) const F_REPORTING: u64 = 1 << 5;

/// Bytes of a page in the balloon's own terms (§5.5.6), whatever the guest's or the host's are.
pub(super) const PAGE: u64 = 4096;
/// Pages in a MiB.
pub(super) const PAGES_PER_MIB: u32 = 256;

/// Configuration space (§5.5.4), all le32.
pub(super) const NUM_PAGES: u64 = 0;
/// Written by the driver: pages in its balloon.
pub(super) const ACTUAL: u64 = 4;
/// `free_page_hint_cmd_id` at 8 stays 0: we do not offer hints. Then, written by the driver: what it fills free pages with.
pub(super) const POISON: u64 = 12;

/// Largest size of each queue. Inflate, deflate, statistics, then reporting twice: §5.5.2 gives it number 4, but Linux and
/// QEMU count only queues that exist, which without free page hints makes it 3. We take either.
const QUEUES: [u16; 5] = [64, 64, 16, 64, 64];
const QUEUES_WITHOUT_REPORTING: usize = 3;

/// A memory balloon.
#[derive(Debug)]
pub struct Balloon {
    pub(super) name: String,
    pub(super) config: DeviceConfig,
    features: u64,
    memory_mib: u32,
}

impl Balloon {
    /// A balloon of a guest with `memory_mib`.
    pub fn new(name: String, options: &BalloonConfig, memory_mib: u32) -> Self {
        let reporting = if options.free_page_reporting { F_REPORTING | F_PAGE_POISON } else { 0 };
        let oom = if options.deflate_on_oom { F_DEFLATE_ON_OOM } else { 0 };
        let writable = vec![ACTUAL as usize..ACTUAL as usize + 4, POISON as usize..POISON as usize + 4];
        let config = DeviceConfig::changing(vec![0; 16], writable);
        Self { name, config, features: F_COMMON | F_STATS | reporting | oom, memory_mib }
    }

    /// Sets the target; `true` when it is another than before.
    pub(super) fn set_target(&mut self, mib: u32) -> Result<bool, String> {
        // A guest without memory cannot say that it has none; one that may not deflate must keep enough to live.
        let most = self.memory_mib.saturating_sub(MIN_MEMORY_MIB);
        if mib > most {
            return Err(format!(
                "balloon: target_mib is {mib}, expected at most {most}: the guest has {} MiB and keeps {MIN_MEMORY_MIB}",
                self.memory_mib
            ));
        }
        Ok(self.config.update(NUM_PAGES as usize, &(mib * PAGES_PER_MIB).to_le_bytes()))
    }
}

impl Device for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        if self.features & F_REPORTING != 0 { &QUEUES } else { &QUEUES[..QUEUES_WITHOUT_REPORTING] }
    }

    fn config_space(&self) -> DeviceConfig {
        self.config.clone()
    }

    fn order(&mut self, order: Order) -> Option<Result<(), String>> {
        match order {
            Order::BalloonTarget { mib } => Some(self.set_target(mib).map(|_| ())),
            Order::VsockCid { .. } => None,
        }
    }

    fn activate(self: Box<Self>, activation: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
        Ok(Box::new(ActiveBalloon::start(*self, activation)?))
    }
}
