//! Bridges.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use holdfast_plan::kinds::Bridge;

impl Actuator for Bridge {
    async fn ensure<S: Services>(&self, _: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        if !driver.rtnl.has_link(&self.name, "bridge").await? {
            driver.rtnl.add_bridge(&self.name, self.mac).await?;
        }
        let link = driver.rtnl.link(&self.name).await?;
        driver.rtnl.set_mac(&link, self.mac).await?;
        Ok(driver.rtnl.finish_link(&self.name, self.mtu).await?)
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        Ok(driver.rtnl.remove_link(&self.name).await?)
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        let bridges = sight.ours("bridge");
        Ok(bridges.map(|l| Bridge { name: l.name.clone(), mac: l.mac, mtu: l.mtu_if_up() }).collect())
    }
}
