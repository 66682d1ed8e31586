//! The inactive network card.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

use super::active::ActiveTap;
use super::tap::{Offloads, Tap};
use super::vhost::VhostNet;
use super::vhost_active::ActiveVhost;
use crate::config::MacAddress;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::{
    Activation, ActiveDevice, Device, DeviceFault, DeviceKind, F_COMMON, F_EVENT_IDX, F_INDIRECT, F_VERSION_1,
};

/// Frames a queue holds.
const QUEUE_SIZE: u16 = 256;
/// What the tap and we do for the guest.
const F_NET: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_STATUS;
/// Bits that the back end must know when it works the rings.
const F_BACKEND: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// What the guest is told of its card.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Name in messages.
    pub name: String,
    /// Hardware address.
    pub mac: MacAddress,
    /// MTU, when other than the guest's own choice.
    pub mtu: Option<u16>,
}

/// Who works the rings.
pub(super) enum Backend {
    /// The host kernel.
    Vhost(VhostNet),
    /// This process.
    User,
}

/// A network card.
pub struct Net {
    pub(super) options: NetOptions,
    pub(super) tap: Tap,
    pub(super) backend: Backend,
}

impl Net {
    /// A card whose frames pass through this process.
    pub fn user(tap: Tap, options: NetOptions) -> Self {
        Self { options, tap, backend: Backend::User }
    }

    /// A card whose rings vhost-net works.
    pub fn vhost(tap: Tap, vhost: VhostNet, options: NetOptions) -> Self {
        Self { options, tap, backend: Backend::Vhost(vhost) }
    }

    pub(super) fn for_tests(tap: Tap, options: NetOptions) -> Self {
        Self::user(tap, options)
    }

    pub(super) fn offloads(features: u64) -> Offloads {
        let has = |bit: u32| features & 1 << bit != 0;
        Offloads {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
        }
    }
}

impl Device for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn name(&self) -> &str {
        &self.options.name
    }

    fn features(&self) -> u64 {
        let mtu = if self.options.mtu.is_some() { 1 << VIRTIO_NET_F_MTU } else { 0 };
        let all = F_COMMON | F_NET | mtu;
        match &self.backend {
            Backend::User => all,
            Backend::Vhost(vhost) => all & (!F_BACKEND | vhost.common().features()),
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    /// virtio 1.3 §5.1.4: mac @0, status @6 (bit 0: link up), max_virtqueue_pairs @8, mtu @10.
    fn config_space(&self) -> DeviceConfig {
        let mut space = vec![0u8; 12];
        space[..6].copy_from_slice(&self.options.mac.0);
        space[6] = 1;
        space[8] = 1;
        space[10..12].copy_from_slice(&self.options.mtu.unwrap_or(0).to_le_bytes());
        space.into()
    }

    fn activate(self: Box<Self>, activation: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
        self.tap
            .set_offloads(Self::offloads(activation.features))
            .map_err(DeviceFault::host(&self.options.name, "set the tap's offloads"))?;
        let Activation { ram, features, queues, interrupts } = activation;
        let queues = Activation::all_queues::<2>(queues, &self.options.name)?;
        match &self.backend {
            Backend::User => Ok(Box::new(ActiveTap::new(*self, queues, features))),
            Backend::Vhost(_) => Ok(Box::new(ActiveVhost::start(*self, queues, &ram, features, interrupts)?)),
        }
    }
}
