//! Addresses of the host.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use holdfast_plan::kinds::Address;

impl Actuator for Address {
    async fn ensure<S: Services>(&self, _: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        let link = driver.rtnl.link(&self.link).await?;
        Ok(driver.rtnl.add_address(&link, self.prefix).await?)
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        match driver.rtnl.find_link(&self.link).await? {
            Some(link) => Ok(driver.rtnl.delete_address(&link, self.prefix).await?),
            None => Ok(()),
        }
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        let ours = sight.addresses.iter().filter(|a| a.ours);
        Ok(ours.filter_map(|a| Some(Address { link: sight.name_of(a.index)?, prefix: a.prefix })).collect())
    }
}
