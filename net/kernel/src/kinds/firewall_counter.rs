//! Counters of the firewall.

use super::Part;
use crate::error::NetlinkError;
use crate::netlink::Netlink;
use crate::nft::{self, Messages};
use holdfast_plan::firewall::{Family, Owner};
use holdfast_plan::kinds::FirewallCounter;

impl Part for FirewallCounter {
    fn created(&self) -> Messages {
        nft::create_counter(self)
    }

    fn removed(&self) -> Messages {
        nft::remove_counter(self)
    }

    fn found(nft: &Netlink) -> Result<Vec<Self>, NetlinkError> {
        let mut found = Vec::new();
        for family in [Family::Inet, Family::Bridge] {
            let counter = |(name, _)| FirewallCounter { family, name, owner: Owner::default() };
            found.extend(nft.counters(family)?.into_iter().map(counter));
        }
        Ok(found)
    }
}
