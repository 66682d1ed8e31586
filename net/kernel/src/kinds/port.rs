//! Physical interfaces: brought up and down.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use holdfast_plan::kinds::{ItemKey, NetItem, Port};

impl Actuator for Port {
    async fn ensure<S: Services>(&self, _: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        let link = driver.rtnl.link(&self.name).await?;
        driver.rtnl.set_mtu(&link, self.mtu).await?;
        Ok(driver.rtnl.set_up(&link, true).await?)
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        match driver.rtnl.find_link(&self.name).await? {
            Some(link) => Ok(driver.rtnl.set_up(&link, false).await?),
            None => Ok(()),
        }
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        let planned = |name: &str| sight.intended.get(&ItemKey::Link(name.to_owned()));
        let wanted = |name: &str| matches!(planned(name), Some(NetItem::Port(_)));
        let ports = sight.links.iter().filter(|l| !l.ours && wanted(&l.name));
        Ok(ports.map(|l| Port { name: l.name.clone(), mtu: l.mtu_if_up() }).collect())
    }
}
