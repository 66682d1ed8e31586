//! Chains of the firewall.

use super::Part;
use crate::error::NetlinkError;
use crate::netlink::Netlink;
use crate::nft::{self, Messages};
use holdfast_plan::firewall::{Family, Owner};
use holdfast_plan::kinds::FirewallChain;
use std::collections::BTreeSet;

impl Part for FirewallChain {
    fn created(&self) -> Messages {
        nft::create_chain(self)
    }

    fn removed(&self) -> Messages {
        nft::remove_chain(self)
    }

    fn found(nft: &Netlink) -> Result<Vec<Self>, NetlinkError> {
        let mut found = Vec::new();
        for family in [Family::Inet, Family::Bridge] {
            let counters: BTreeSet<String> = nft.counters(family)?.into_iter().map(|(name, _)| name).collect();
            for name in nft.chains(family)? {
                // The chains of the skeleton have no digest in their names.
                let Some(purpose) = FirewallChain::purpose(&name) else { continue };
                let counter = counters.get(purpose).cloned();
                found.push(FirewallChain { family, name, rules: Vec::new(), counter, owner: Owner::default() });
            }
        }
        Ok(found)
    }
}
