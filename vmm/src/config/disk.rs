//! Block devices: serials and limits.

use holdfast_model::contract::vm::DiskConfig;

use super::{ConfigError, check_limits, range};

/// Checks one disk, called `name` in messages; `is_unique` tells whether its serial is.
pub(super) fn validate(disk: &DiskConfig, name: &str, is_unique: bool) -> Result<(), ConfigError> {
    range(&format!("{name}.id"), &format!("{:?}", disk.id), "1 to 20 printable ASCII characters, unique", {
        (1..=20).contains(&disk.id.len()) && disk.id.bytes().all(|c| c.is_ascii_graphic()) && is_unique
    })?;
    check_limits(&format!("{name}.limits"), disk.limits.as_ref())
}
