//! Routing rules.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use holdfast_plan::kinds::PolicyRule;

impl Actuator for PolicyRule {
    async fn ensure<S: Services>(&self, _: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        Ok(driver.rtnl.add_rule(self).await?)
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        Ok(driver.rtnl.delete_rule(self).await?)
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        sight.driver.rtnl.rules().await
    }
}
