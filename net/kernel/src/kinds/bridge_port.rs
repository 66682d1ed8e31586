//! Places in bridges.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use holdfast_plan::kinds::BridgePort;

impl Actuator for BridgePort {
    async fn ensure<S: Services>(&self, _: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        let bridge = driver.rtnl.link(&self.bridge).await?;
        let port = driver.rtnl.link(&self.port).await?;
        driver.rtnl.set_master(&port, Some(bridge.index)).await?;
        Ok(driver.rtnl.set_isolated(&port, self.isolated).await?)
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        match driver.rtnl.find_link(&self.port).await? {
            Some(link) => Ok(driver.rtnl.set_master(&link, None).await?),
            None => Ok(()),
        }
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        let place = |l: &crate::link::Link| {
            let bridge = sight.link(l.master?).filter(|b| b.ours)?.name.clone();
            Some(BridgePort { port: l.name.clone(), bridge, isolated: l.isolated, filtered: l.kind == "tun" })
        };
        Ok(sight.links.iter().filter_map(place).collect())
    }
}
