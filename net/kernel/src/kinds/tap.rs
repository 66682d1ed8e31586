//! Taps.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use crate::tap;
use holdfast_plan::kinds::{ItemKey, NetItem, Tap};
use uuid::Uuid;

impl Actuator for Tap {
    async fn ensure<S: Services>(&self, _: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        tap::create(&driver.rtnl, &self.name, self.owner_uid, self.multi_queue).await?;
        Ok(driver.rtnl.finish_link(&self.name, self.mtu).await?)
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        Ok(driver.rtnl.remove_link(&self.name).await?)
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        // Whose it is is not written on it.
        let app = |name: &str| match sight.intended.get(&ItemKey::Link(name.to_owned())) {
            Some(NetItem::Tap(tap)) => tap.app,
            _ => Uuid::nil(),
        };
        let tap = |l: &crate::link::Link| {
            Some(Tap {
                name: l.name.clone(),
                app: app(&l.name),
                owner_uid: l.tun_owner?,
                multi_queue: l.tun_multi_queue,
                mtu: l.mtu_if_up(),
            })
        };
        Ok(sight.ours("tun").filter_map(tap).collect())
    }
}
