//! Kernel variables.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use crate::sysctl;
use holdfast_plan::kinds::{NetItem, Sysctl};

impl Actuator for Sysctl {
    async fn ensure<S: Services>(&self, _: Option<&Self>, _: &NetDriver<S>) -> Result<(), DriverError> {
        Ok(sysctl::write(&self.path, &self.value)?)
    }

    async fn remove<S: Services>(&self, _: &NetDriver<S>) -> Result<(), DriverError> {
        // One of an interface goes with it; a global one keeps its value, which is the safe one.
        Ok(())
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        let is_so = |wanted: &Sysctl| {
            sysctl::read(&wanted.path).is_ok_and(|v| v == wanted.value) || sysctl::is_absent(&wanted.path)
        };
        let wanted = sight.intended.iter().filter_map(|(_, item)| match &**item {
            NetItem::Sysctl(wanted) => Some(wanted),
            _ => None,
        });
        Ok(wanted.filter(|w| is_so(w)).cloned().collect())
    }
}
