//! A route.

use super::{Address, ItemKey, Keyed, Kind};
use holdfast_engine::Transition;
use holdfast_model::net::Prefix;
use std::fmt;
use std::net::IpAddr;

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hop {
    /// Over a router that is reachable by an address of ours on that interface.
    Gateway {
        /// The router.
        router: IpAddr,
        /// The interface.
        link: String,
        /// Our own address there, used as source.
        source: Prefix,
    },
    /// Directly on the interface.
    Link {
        /// The interface.
        link: String,
        /// Our own address there, used as source.
        source: Prefix,
    },
    /// Nowhere: senders are told so.
    Unreachable,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Routing table; 254 is main.
    pub table: u32,
    /// Destination.
    pub destination: Prefix,
    /// Lower wins.
    pub metric: u32,
    /// Where to.
    pub hop: Hop,
}

impl Kind for Route {
    fn key(&self) -> ItemKey {
        ItemKey::Route((self.table, self.destination.to_string(), self.metric))
    }

    fn needs(&self) -> Vec<ItemKey> {
        match &self.hop {
            Hop::Gateway { link, source, .. } | Hop::Link { link, source } => {
                vec![ItemKey::Link(link.clone()), Address::key_of(link, *source)]
            }
            Hop::Unreachable => Vec::new(),
        }
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Recreate
    }
}

impl Keyed for Route {
    /// Table, destination and metric.
    type Key = (u32, String, u32);

    fn describe((table, destination, metric): &Self::Key, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {destination} metric {metric} in table {table}")
    }
}
