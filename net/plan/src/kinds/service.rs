//! A `netsvc` process.

use super::{Address, ItemKey, Keyed, Kind};
use holdfast_engine::Transition;
use holdfast_model::contract::network::{ClientService, NetworkService};
use holdfast_model::net::Prefix;
use std::fmt;

/// A `netsvc` process to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Unit name.
    pub name: String,
    /// Interface it serves.
    pub link: String,
    /// What it does.
    pub kind: ServiceKind,
}

/// Kind of a service.
#[derive(Debug, Clone, PartialEq)]
pub enum ServiceKind {
    /// DHCP and DNS for a network instance.
    Network {
        /// Address of the bridge with its prefix length.
        address: Prefix,
        /// Interface that upstream DNS queries leave through; `None` = air-gapped.
        uplink: Option<String>,
        /// What may change while it runs.
        service: NetworkService,
    },
    /// DHCP client of a port.
    DhcpClient(ClientService),
}

impl Kind for Service {
    fn key(&self) -> ItemKey {
        ItemKey::Service(self.name.clone())
    }

    fn needs(&self) -> Vec<ItemKey> {
        let mut needs = vec![ItemKey::Link(self.link.clone())];
        if let ServiceKind::Network { address, uplink, .. } = &self.kind {
            needs.push(Address::key_of(&self.link, *address));
            needs.extend(uplink.iter().map(|u| ItemKey::Link(u.clone())));
        }
        needs
    }

    fn transition(&self, new: &Self) -> Transition {
        let stays = match (&self.kind, &new.kind) {
            (
                ServiceKind::Network { address: x, uplink: u, .. },
                ServiceKind::Network { address: y, uplink: v, .. },
            ) => x == y && u == v,
            // A name is told to the running client: nobody loses a lease over it.
            (ServiceKind::DhcpClient(_), ServiceKind::DhcpClient(_)) => true,
            _ => false,
        };
        if stays && self.link == new.link { Transition::Modify } else { Transition::Recreate }
    }
}

impl Keyed for Service {
    /// Unit name.
    type Key = String;

    fn describe(name: &String, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {name}")
    }
}
