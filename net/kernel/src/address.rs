//! Addresses of the host (`RTM_*ADDR`).

use crate::PROTOCOL;
use crate::error::{NetlinkError, tolerate};
use crate::link::Link;
use crate::rtnl::{self, Rtnl};
use holdfast_model::net::Prefix;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Interface index.
    pub index: u32,
    /// Address and prefix length.
    pub prefix: Prefix,
    /// Made by this program.
    pub ours: bool,
}

impl Found {
    /// Reads an `RTM_NEWADDR` message; `None` when it names no address.
    #[must_use]
    pub fn read(message: &AddressMessage) -> Option<Self> {
        let (mut remote, mut local, mut ours) = (None, None, false);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Address(ip) => remote = Some(*ip),
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
                _ => {}
            }
        }
        let prefix = Prefix { address: local.or(remote)?, length: message.header.prefix_len };
        Some(Self { index: message.header.index, prefix, ours })
    }
}

impl Rtnl {
    /// All addresses of all interfaces.
    pub async fn addresses(&self) -> Result<Vec<Found>, NetlinkError> {
        let answers = self.handle()?.address().get().execute();
        let messages = rtnl::list("list addresses", answers).await?;
        Ok(messages.iter().filter_map(Found::read).collect())
    }

    /// Adds an address, with the broadcast address of its prefix; one that is there already is no error.
    pub async fn add_address(&self, link: &Link, prefix: Prefix) -> Result<(), NetlinkError> {
        let mut request = self.handle()?.address().add(link.index, prefix.address, prefix.length).replace();
        request.message_mut().attributes.push(AddressAttribute::Protocol(PROTOCOL.into()));
        rtnl::done(&format!("add {prefix} to {}", link.name), request.execute()).await
    }

    /// Removes an address; one that is gone already is no error.
    pub async fn delete_address(&self, link: &Link, prefix: Prefix) -> Result<(), NetlinkError> {
        let message = match prefix.address {
            IpAddr::V4(a) => {
                AddressMessageBuilder::<Ipv4Addr>::new().index(link.index).address(a, prefix.length).build()
            }
            IpAddr::V6(a) => {
                AddressMessageBuilder::<Ipv6Addr>::new().index(link.index).address(a, prefix.length).build()
            }
        };
        let request = self.handle()?.address().del(message).execute();
        let removed = rtnl::done(&format!("remove {prefix} from {}", link.name), request).await;
        tolerate(removed, &[libc::EADDRNOTAVAIL, libc::ENODEV])
    }
}
