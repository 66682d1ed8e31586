//! DATA takes what lies behind it when the image was written to a larger disk.

use crate::machine;
use anyhow::{Context, Result};
use holdfast_format::{gpt, layout};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Gives DATA what lies behind it when the image was written to a larger disk: both tables on disk, then the kernel's view.
pub(super) fn grow_data(disk: &str, data: &str) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(disk).with_context(|| format!("cannot open {disk}"))?;
    let bytes = device_bytes(disk)?;
    let (table, health) = gpt::Table::read(&file, bytes).with_context(|| disk.to_owned())?;
    let grown = table.grow_last(bytes);
    let wanted = grown.as_ref().unwrap_or(&table);
    if grown.is_some() || !health.primary || !health.backup || !health.backup_at_end {
        // The backup first: at every moment one of the two tables is whole.
        let mut extents = wanted.encode()?.to_vec();
        extents.sort_by_key(|e| std::cmp::Reverse(e.offset));
        for extent in extents {
            file.write_all_at(&extent.data, extent.offset)?;
            file.sync_all()?;
        }
    }
    let Some(part) = wanted.find(layout::Part::Data.name()) else {
        return Ok(());
    };
    if device_bytes(data)? < part.size_bytes() {
        resize_partition(&file, data, part)?;
    }
    Ok(())
}

/// Bytes of a block device, from sysfs.
///
/// # Errors
/// When it is no block device.
pub fn device_bytes(path: &str) -> Result<u64> {
    let name = Path::new(path).file_name().unwrap_or_default();
    let text = machine::line(Path::new("/sys/class/block").join(name).join("size"));
    let sectors: u64 =
        text.parse().with_context(|| format!("{path}: expected a block device, found no size in sysfs"))?;
    Ok(sectors * gpt::SECTOR)
}

fn resize_partition(disk: &File, data: &str, part: &gpt::Partition) -> Result<()> {
    let name = Path::new(data).file_name().unwrap_or_default();
    let number: i32 = machine::line(Path::new("/sys/class/block").join(name).join("partition"))
        .parse()
        .with_context(|| format!("{data}: no partition number in sysfs"))?;
    holdfast_dm::partition::resize(disk, number, part.offset_bytes(), part.size_bytes())
        .with_context(|| format!("{data}: BLKPG resize"))
}
