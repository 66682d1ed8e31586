//! Services: processes beside the kernel, run by whoever implements [`Services`].

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use crate::sockets::prepare;
use holdfast_plan::kinds::Service;

impl Actuator for Service {
    async fn ensure<S: Services>(&self, before: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        let done = match before {
            Some(before) => driver.services.update(before, self).await,
            None => driver.services.start(self, prepare(&driver.rtnl, self).await?).await,
        };
        done.map_err(DriverError::Service)
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        driver.services.stop(self).await.map_err(DriverError::Service)
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        Ok(sight.driver.services.running().await)
    }
}
