//! Kernel variables under `/proc/sys`.

use crate::error::NetlinkError;
use std::fs;
use std::path::{Component, Path, PathBuf};

fn path(name: &str) -> Result<PathBuf, NetlinkError> {
    let relative = Path::new(name);
    if name.is_empty() || !relative.components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(NetlinkError::NotFound {
            what: format!("kernel variable {name:?}"),
            hint: "; it must be a path below /proc/sys".into(),
        });
    }
    Ok(Path::new("/proc/sys").join(relative))
}

/// Value without its line end.
pub fn read(name: &str) -> Result<String, NetlinkError> {
    let text =
        fs::read_to_string(path(name)?).map_err(|e| NetlinkError::io(format!("read kernel variable {name}"), e))?;
    Ok(text.trim_end().to_owned())
}

/// A kernel without IPv6 or without br_netfilter has none of their variables, and needs none.
#[must_use]
pub fn is_absent(name: &str) -> bool {
    ["net/ipv6", "net/bridge"].iter().any(|part| name.starts_with(part) && !Path::new("/proc/sys").join(part).exists())
}

/// Writes a value, when it is not so already.
pub fn write(name: &str, value: &str) -> Result<(), NetlinkError> {
    if is_absent(name) || read(name).is_ok_and(|v| v == value) {
        return Ok(());
    }
    fs::write(path(name)?, value).map_err(|e| NetlinkError::io(format!("set kernel variable {name} to {value}"), e))
}
