//! Tables of the firewall.

use super::Part;
use crate::error::NetlinkError;
use crate::netlink::Netlink;
use crate::nft::{self, Messages};
use holdfast_plan::firewall::Family;
use holdfast_plan::kinds::FirewallSkeleton;

impl Part for FirewallSkeleton {
    fn created(&self) -> Messages {
        nft::create_skeleton(self)
    }

    fn removed(&self) -> Messages {
        nft::remove_skeleton(self)
    }

    fn found(nft: &Netlink) -> Result<Vec<Self>, NetlinkError> {
        let mut found = Vec::new();
        for family in [Family::Inet, Family::Bridge] {
            found.extend(nft.skeleton(family)?.map(|digest| FirewallSkeleton { family, digest }));
        }
        Ok(found)
    }
}
