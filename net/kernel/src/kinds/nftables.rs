//! Tables of nftables.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use holdfast_plan::firewall::{Family, Table};
use holdfast_plan::kinds::Nftables;
use holdfast_plan::rules::TABLE;

impl Actuator for Nftables {
    async fn ensure<S: Services>(&self, _: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        Ok(driver.nft.replace_table(&self.0)?)
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        Ok(driver.nft.delete_table(self.0.family, &self.0.name)?)
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        let mut tables = Vec::new();
        for family in [Family::Inet, Family::Bridge] {
            for name in sight.driver.nft.tables(family)?.into_iter().filter(|n| n == TABLE) {
                // Its content is not read: an intended table differs from this one and replaces it, which disturbs no
                // connection.
                tables.push(Nftables(Table { family, name, chains: Vec::new() }));
            }
        }
        Ok(tables)
    }
}
