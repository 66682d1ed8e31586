//! Tap interfaces: persistent, owned by one VM's user. The ioctls are those of `net/links`; here is what needs netlink.

use crate::error::NetlinkError;
use crate::rtnl::Rtnl;
use holdfast_links::tap::{self, TapError};

/// Makes a persistent tap that `uid` may attach to, with one queue or (`multi_queue`) several. One that is there already with
/// that owner and of that kind is left alone, so that a running VM is not disturbed.
///
/// # Errors
/// Another interface has the name, also a tap of the other kind: that one has to go first. The kernel's refusal.
pub async fn create(rtnl: &Rtnl, name: &str, uid: u32, multi_queue: bool) -> Result<(), NetlinkError> {
    let what = || format!("tap {name} for uid {uid} with {}", queues(multi_queue));
    if let Some(link) = rtnl.find_link(name).await? {
        if link.kind != "tun" || link.tun_owner != Some(uid) {
            let found = format!("an interface of kind {:?} with owner {:?} has the name", link.kind, link.tun_owner);
            return Err(NetlinkError::Conflict { what: what(), found });
        }
        if link.tun_multi_queue != multi_queue {
            let found = format!("one with {} has the name", queues(link.tun_multi_queue));
            return Err(NetlinkError::Conflict { what: what(), found });
        }
        return Ok(());
    }
    tap::create(name, uid, multi_queue).map_err(|e| match e {
        TapError::Io { what, source } => NetlinkError::io(what, source),
        other => NetlinkError::Conflict { what: what(), found: other.to_string() },
    })
}

fn queues(multi_queue: bool) -> &'static str {
    if multi_queue { "several queues" } else { "one queue" }
}
