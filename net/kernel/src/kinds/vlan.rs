//! VLAN interfaces.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use holdfast_plan::kinds::Vlan;

impl Actuator for Vlan {
    async fn ensure<S: Services>(&self, _: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        if !driver.rtnl.has_link(&self.name, "vlan").await? {
            let parent = driver.rtnl.link(&self.parent).await?.index;
            driver.rtnl.add_vlan(&self.name, parent, self.id).await?;
        }
        Ok(driver.rtnl.finish_link(&self.name, self.mtu).await?)
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        Ok(driver.rtnl.remove_link(&self.name).await?)
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        let vlan = |l: &crate::link::Link| {
            let parent = sight.name_of(l.lower?)?;
            Some(Vlan { name: l.name.clone(), parent, id: l.vlan_id?, mtu: l.mtu_if_up() })
        };
        Ok(sight.ours("vlan").filter_map(vlan).collect())
    }
}
