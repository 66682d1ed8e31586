//! What is so: the state that info messages are made from. Every change of it is worth telling; what changes all the time is in
//! [`crate::gauges`].

mod app;
mod device;
mod network;
mod storage;

pub use app::{AppInterfaceStatus, AppState, AppStatus};
pub use device::{AttestationState, BootReason, DeviceState, DeviceStatus, RebootRecord, TrustStatus};
pub use network::{InstanceStatus, PortStatus};
pub use storage::{ContentStatus, LoadState, VolumeStatus};

use crate::net::PortConfigs;
use crate::trouble::{self, Trouble};
use serde::{Deserialize, Serialize};

/// Two readings of the same point in time may differ by so much: clocks are corrected.
const SAME_TIME_SECONDS: i64 = 60;

/// The whole observed state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The device itself.
    pub device: DeviceStatus,
    /// One for each adapter.
    pub ports: Vec<PortStatus>,
    /// The port configurations and how well each leads to the controller.
    pub port_configs: PortConfigs,
    /// One for each network instance.
    pub instances: Vec<InstanceStatus>,
    /// One for each content tree.
    pub contents: Vec<ContentStatus>,
    /// One for each volume.
    pub volumes: Vec<VolumeStatus>,
    /// One for each app.
    pub apps: Vec<AppStatus>,
    /// Faults of the config now in force.
    pub faults: Vec<Trouble>,
}

impl Observed {
    /// Takes over from the state `before` what has not changed: when each trouble began, and times of boots, which differ a little
    /// each time they are computed. `now_seconds` since the Unix epoch dates what is new; 0 while the clock is not known.
    pub fn settle(&mut self, before: &Observed, now_seconds: i64) {
        trouble::date(before.troubles(), self.troubles_mut(), now_seconds);
        keep_time(&mut self.device.boot_time_seconds, before.device.boot_time_seconds);
        for app in &mut self.apps {
            if let Some(old) = before.apps.iter().find(|old| old.id == app.id) {
                keep_time(&mut app.boot_time_seconds, old.boot_time_seconds);
            }
        }
    }

    /// All troubles, of all objects.
    pub fn troubles(&self) -> impl Iterator<Item = &Trouble> {
        self.faults
            .iter()
            .chain(&self.device.troubles)
            .chain(self.ports.iter().flat_map(|o| &o.troubles))
            .chain(self.instances.iter().flat_map(|o| &o.troubles))
            .chain(self.contents.iter().flat_map(|o| &o.troubles))
            .chain(self.volumes.iter().flat_map(|o| &o.troubles))
            .chain(self.apps.iter().flat_map(|o| &o.troubles))
    }

    fn troubles_mut(&mut self) -> impl Iterator<Item = &mut Trouble> {
        self.faults
            .iter_mut()
            .chain(&mut self.device.troubles)
            .chain(self.ports.iter_mut().flat_map(|o| &mut o.troubles))
            .chain(self.instances.iter_mut().flat_map(|o| &mut o.troubles))
            .chain(self.contents.iter_mut().flat_map(|o| &mut o.troubles))
            .chain(self.volumes.iter_mut().flat_map(|o| &mut o.troubles))
            .chain(self.apps.iter_mut().flat_map(|o| &mut o.troubles))
    }
}

fn keep_time(now: &mut i64, before: i64) {
    if before > 0 && now.abs_diff(before) < SAME_TIME_SECONDS.unsigned_abs() {
        *now = before;
    }
}

/// A number told in tens only, so that its change is rare enough to be an event: percent done, seconds left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tens(u32);

impl Tens {
    /// The tens that are full, for what grows: 99 percent are 90.
    #[must_use]
    pub const fn down(number: u32) -> Self {
        Self(number / 10 * 10)
    }

    /// The tens that are begun, for what shrinks: 1 second left is 10.
    #[must_use]
    pub const fn up(number: u32) -> Self {
        Self(number.div_ceil(10).saturating_mul(10))
    }

    /// A multiple of ten.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trouble::{Object, ObjectKind};
    use uuid::Uuid;

    fn observed(boot: i64, text: &str) -> Observed {
        let trouble = || vec![Trouble::error(Object::new(ObjectKind::Device, "", "x"), text)];
        let mut observed = Observed { faults: trouble(), ..Observed::default() };
        observed.device.boot_time_seconds = boot;
        observed.device.troubles = trouble();
        observed.ports.push(PortStatus { troubles: trouble(), ..PortStatus::default() });
        observed.instances.push(InstanceStatus { troubles: trouble(), ..InstanceStatus::default() });
        observed.contents.push(ContentStatus { troubles: trouble(), ..ContentStatus::default() });
        observed.volumes.push(VolumeStatus { troubles: trouble(), ..VolumeStatus::default() });
        let id = Uuid::from_u128(1);
        observed.apps.push(AppStatus { id, boot_time_seconds: boot, troubles: trouble(), ..AppStatus::default() });
        observed
    }

    #[test]
    fn the_same_state_looked_at_again_is_no_change() {
        let mut first = observed(1000, "broken");
        first.settle(&Observed::default(), 2000);
        assert!(first.troubles().all(|t| t.since_seconds == 2000));
        assert_eq!(first.troubles().count(), 7);
        let mut second = observed(1001, "broken");
        second.settle(&first, 3000);
        assert_eq!(first, second);
        let mut third = observed(1100, "broken in another way");
        third.settle(&second, 4000);
        assert!(third.troubles().all(|t| t.since_seconds == 4000));
        assert_eq!((third.device.boot_time_seconds, third.apps[0].boot_time_seconds), (1100, 1100));
    }

    #[test]
    fn numbers_are_told_in_tens() {
        assert_eq!([0, 9, 10, 99, 100].map(|n| Tens::down(n).get()), [0, 0, 10, 90, 100]);
        assert_eq!([0, 1, 10, 11, 60].map(|n| Tens::up(n).get()), [0, 10, 10, 20, 60]);
    }
}
