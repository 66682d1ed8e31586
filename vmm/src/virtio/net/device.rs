//! The inactive network card.

use holdfast_links::{Link, Offloads, Tap};

use super::active::ActiveNet;
use super::features;
use super::vhost::VhostNet;
use crate::virtio::device_config::DeviceConfig;
use crate::virtio::{
    Activation, ActiveDevice, Device, DeviceFault, DeviceKind, F_COMMON, F_EVENT_IDX, F_INDIRECT, F_VERSION_1,
};
use holdfast_model::contract::vm::Limits;
use holdfast_model::contract::vm::MacAddress;

/// Most queue pairs of one card.
pub const MAX_PAIRS: u16 = 16;
/// Frames a queue holds.
const QUEUE_SIZE: u16 = 256;
/// Commands the control queue holds.
const CONTROL_SIZE: u16 = 64;
/// Bits that the back end must know when it works the rings.
const F_BACKEND: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | features::MRG_RXBUF;
/// `VIRTIO_NET_S_LINK_UP` of the status field (virtio 1.3 §5.1.4).
const LINK_UP: u16 = 1;

/// What the guest is told of its card, and how much it may do.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Name in messages.
    pub name: String,
    /// Hardware address.
    pub mac: MacAddress,
    /// MTU, when other than the guest's own choice.
    pub mtu: Option<u16>,
    /// Limits of frames to the guest, of all pairs together.
    pub receive: Limits,
    /// Limits of frames from the guest, of all pairs together.
    pub transmit: Limits,
}

impl NetOptions {
    /// A card without MTU or limits.
    pub fn new(name: &str, mac: MacAddress) -> Self {
        Self { name: name.into(), mac, mtu: None, receive: Limits::default(), transmit: Limits::default() }
    }
}

/// The back end of one queue pair.
pub enum Lane {
    /// This process works the rings.
    User(Box<dyn Link>),
    /// The host's kernel does.
    Vhost(Tap, VhostNet),
}

impl Lane {
    pub(super) fn link(&mut self) -> &mut dyn Link {
        match self {
            Lane::User(link) => &mut **link,
            Lane::Vhost(tap, _) => tap,
        }
    }

    fn offloads(&self) -> Offloads {
        match self {
            Lane::User(link) => link.offloads(),
            Lane::Vhost(tap, _) => tap.offloads(),
        }
    }
}

/// A network card.
pub struct Net {
    pub(super) options: NetOptions,
    pub(super) lanes: Vec<Lane>,
    queue_sizes: Vec<u16>,
}

impl Net {
    /// A card with one queue pair for each of `lanes`, which are ends of the same cable, of one kind, and 1 to
    /// [`MAX_PAIRS`].
    pub fn new(lanes: Vec<Lane>, options: NetOptions) -> Self {
        // virtio 1.3 §5.1.2: receiveq1, transmitq1 and so on, then the control queue, if there is one.
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * lanes.len()];
        if lanes.len() > 1 {
            queue_sizes.push(CONTROL_SIZE);
        }
        Self { options, lanes, queue_sizes }
    }

    fn pairs(&self) -> u16 {
        u16::try_from(self.lanes.len()).unwrap_or(MAX_PAIRS)
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
        let cable = self.lanes.first().map_or(Offloads::NONE, Lane::offloads);
        let all = F_COMMON | features::offered(cable, self.pairs(), self.options.mtu.is_some());
        let known = |lane: &Lane| match lane {
            Lane::User(_) => u64::MAX,
            Lane::Vhost(_, vhost) => !F_BACKEND | vhost.common().features(),
        };
        self.lanes.iter().fold(all, |features, lane| features & known(lane))
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// virtio 1.3 §5.1.4: mac @0, status @6, max_virtqueue_pairs @8, mtu @10.
    fn config_space(&self) -> DeviceConfig {
        let mut space = vec![0u8; 12];
        space[..6].copy_from_slice(&self.options.mac.0);
        space[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        space[8..10].copy_from_slice(&self.pairs().to_le_bytes());
        space[10..12].copy_from_slice(&self.options.mtu.unwrap_or(0).to_le_bytes());
        space.into()
    }

    fn activate(self: Box<Self>, activation: Activation) -> Result<Box<dyn ActiveDevice>, DeviceFault> {
        Ok(Box::new(ActiveNet::start(*self, activation)?))
    }
}
