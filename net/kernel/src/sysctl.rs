//! Kernel variables under `/proc/sys`.

use crate::netlink::NetlinkError;
use std::fs;
use std::path::{Component, Path, PathBuf};

fn path(name: &str) -> Result<PathBuf, NetlinkError> {
    let relative = Path::new(name);
    if name.is_empty()
        || !relative
            .components()
            .all(|c| matches!(c, Component::Normal(_)))
    {
        return Err(NetlinkError::NotFound {
            what: format!("kernel variable {name:?}"),
            hint: "; it must be a path below /proc/sys".into(),
        });
    }
    Ok(Path::new("/proc/sys").join(relative))
}

/// Value without its line end.
pub fn read(name: &str) -> Result<String, NetlinkError> {
    let text = fs::read_to_string(path(name)?)
        .map_err(|e| NetlinkError::io(format!("read kernel variable {name}"), e))?;
    Ok(text.trim_end().to_owned())
}

/// Writes a value, when it is not so already.
pub fn write(name: &str, value: &str) -> Result<(), NetlinkError> {
    // A kernel without IPv6 needs none of its variables.
    let absent = name.starts_with("net/ipv6/") && !Path::new("/proc/sys/net/ipv6").exists();
    if absent || read(name).is_ok_and(|v| v == value) {
        return Ok(());
    }
    fs::write(path(name)?, value)
        .map_err(|e| NetlinkError::io(format!("set kernel variable {name} to {value}"), e))
}
