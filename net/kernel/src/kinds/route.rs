//! Routes.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use crate::route::KernelRoute;
use holdfast_model::net::Prefix;
use holdfast_plan::kinds::Route;
use holdfast_plan::kinds::route::Hop;
use std::net::IpAddr;

impl Actuator for Route {
    async fn ensure<S: Services>(&self, _: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        let route = kernel_route(self, driver).await?;
        Ok(driver.rtnl.add_route(&route).await?)
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        // With its interface, the route has gone too.
        let route = match kernel_route(self, driver).await {
            Err(NetlinkError::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        let by_key = KernelRoute { router: None, source: None, ..route };
        Ok(driver.rtnl.delete_route(&by_key).await?)
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        let routes = sight.driver.rtnl.routes().await?;
        Ok(routes.iter().filter(|r| r.ours).filter_map(|r| read(r, sight)).collect())
    }
}

fn read<S: Services>(r: &KernelRoute, sight: &Sight<'_, S>) -> Option<Route> {
    let link = r.output.and_then(|index| sight.name_of(index));
    let source = |a: &&crate::address::Found| Some(a.index) == r.output && Some(a.prefix.address) == r.source;
    let source = sight.addresses.iter().find(source).map(|a| a.prefix);
    let hop = match (r.unreachable, link, source, r.router) {
        (true, ..) => Hop::Unreachable,
        (_, Some(link), Some(source), Some(router)) => Hop::Gateway { router, link, source },
        (_, Some(link), Some(source), None) => Hop::Link { link, source },
        // Its source address does not exist any more: not as we create routes, so that it is removed by its key.
        (_, Some(link), None, _) => {
            Hop::Link { link, source: Prefix { address: IpAddr::from([0, 0, 0, 0]), length: 0 } }
        }
        _ => return None,
    };
    Some(Route { table: r.table, destination: r.destination, metric: r.metric, hop })
}

async fn kernel_route<S: Services>(route: &Route, driver: &NetDriver<S>) -> Result<KernelRoute, NetlinkError> {
    let mut kernel = KernelRoute {
        table: route.table,
        destination: route.destination,
        metric: route.metric,
        output: None,
        router: None,
        source: None,
        unreachable: false,
        ours: true,
    };
    match &route.hop {
        Hop::Unreachable => kernel.unreachable = true,
        Hop::Gateway { link, source, router } => {
            kernel.output = Some(driver.rtnl.link(link).await?.index);
            kernel.source = Some(source.address);
            kernel.router = Some(*router);
        }
        Hop::Link { link, source } => {
            kernel.output = Some(driver.rtnl.link(link).await?.index);
            kernel.source = Some(source.address);
        }
    }
    Ok(kernel)
}
