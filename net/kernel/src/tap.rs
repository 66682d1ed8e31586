//! Tap interfaces: persistent, owned by one VM's user. The ioctls are those of `net/links`; here is what needs netlink.

use crate::error::NetlinkError;
use crate::rtnl::Rtnl;
use holdfast_links::tap::{self, TapError};

/// Makes a persistent tap that `uid` may attach to. One that is there already with that owner is left alone, so that
/// a running VM is not disturbed.
pub async fn create(rtnl: &mut Rtnl, name: &str, uid: u32) -> Result<(), NetlinkError> {
    if let Some(link) = rtnl.find_link(name).await? {
        if link.kind == "tun" && link.tun_owner == Some(uid) {
            return Ok(());
        }
        return Err(NetlinkError::Conflict {
            what: format!("tap {name} for uid {uid}"),
            found: format!("an interface of kind {:?} with owner {:?} has the name", link.kind, link.tun_owner),
        });
    }
    tap::create(name, uid, false).map_err(|e| match e {
        TapError::Io { what, source } => NetlinkError::io(what, source),
        other => NetlinkError::Conflict { what: format!("tap {name} for uid {uid}"), found: other.to_string() },
    })
}
