//! Elements of the maps of the firewall.

use super::Part;
use crate::error::NetlinkError;
use crate::netlink::Netlink;
use crate::nft::{self, Messages};
use holdfast_plan::firewall::Family;
use holdfast_plan::firewall::skeleton::Layout;
use holdfast_plan::kinds::FirewallElement;

impl Part for FirewallElement {
    fn created(&self) -> Messages {
        nft::create_element(self)
    }

    fn removed(&self) -> Messages {
        nft::remove_element(self)
    }

    fn found(nft: &Netlink) -> Result<Vec<Self>, NetlinkError> {
        let mut found = Vec::new();
        for family in [Family::Inet, Family::Bridge] {
            for map in &Layout::of(family).maps {
                found.extend(nft.elements(family, map)?);
            }
        }
        Ok(found)
    }
}
