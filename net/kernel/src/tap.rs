//! Tap interfaces: persistent, owned by one VM's user (`Documentation/networking/tuntap.rst`).

use crate::error::NetlinkError;
use crate::rtnl::Rtnl;
use crate::sys;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

/// Size of the header before each frame: `virtio_net_hdr_v1` with its number of buffers (virtio 1.3 §5.1.6).
pub const HEADER_BYTES: i32 = 12;

fn open(name: &str) -> Result<OwnedFd, NetlinkError> {
    let what = |e| NetlinkError::io(format!("tap {name}"), e);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(|e| NetlinkError::io("open /dev/net/tun", e))?;
    sys::tun_set_interface(&file, name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).map_err(what)?;
    sys::tun_set_header_size(&file, HEADER_BYTES).map_err(what)?;
    Ok(file.into())
}

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
    let fd = open(name)?;
    let what = |e| NetlinkError::io(format!("tap {name}"), e);
    sys::tun_set_owner(&fd, uid).map_err(what)?;
    sys::tun_set_persistent(&fd).map_err(what)
}

/// MTU in bytes of an existing tap, in the network namespace of the calling thread.
pub fn mtu(name: &str) -> Result<u32, NetlinkError> {
    sys::interface_mtu(name).map_err(|e| match e.raw_os_error() {
        Some(libc::ENODEV) => NetlinkError::NotFound { what: format!("interface {name}"), hint: String::new() },
        _ => NetlinkError::io(format!("tap {name}"), e),
    })
}

/// A descriptor for the frames of an existing tap, for a VMM: non-blocking, header of [`HEADER_BYTES`], no offloads
/// (the VMM sets those that its guest accepts with `TUNSETOFFLOAD`). Only one may be open at a time. System calls only,
/// no message to wait for: callable where nothing may be awaited.
pub fn attach(name: &str) -> Result<OwnedFd, NetlinkError> {
    // Opening would make a fresh one: check first.
    mtu(name)?;
    open(name).map_err(|e| match e.errno() {
        Some(libc::EINVAL) => NetlinkError::Conflict {
            what: format!("tap {name}"),
            found: "an interface of another kind has the name".into(),
        },
        _ => e,
    })
}
