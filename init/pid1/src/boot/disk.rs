//! The disk that carries the layout, and its partitions by name. There is no udev: sysfs and the GPT say all.
#![forbid(unsafe_code)]

use holdfast_format::gpt::{GptError, Table};
use holdfast_format::io::Extent;
use holdfast_format::layout::{self, Part};
use holdfast_model::boot::Partitions;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a disk may take to appear: spinning disks and USB need seconds.
pub const DISK_DEADLINE: Duration = Duration::from_secs(30);
/// How often is looked.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Why there is no disk to boot from.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// None appeared.
    #[error("no disk with the Holdfast layout within {} s; seen: {seen}", DISK_DEADLINE.as_secs())]
    None {
        /// What was seen and why it would not do.
        seen: String,
    },
    /// The disk is there but one of its partitions has no device.
    #[error("partition {partition} of {disk}: the kernel shows no device that begins at sector {first_lba}")]
    NoDevice {
        /// GPT name.
        partition: &'static str,
        /// The disk.
        disk: String,
        /// Where it begins.
        first_lba: u64,
    },
}

/// The disk, found.
#[derive(Debug)]
pub struct Disk {
    /// Device paths.
    pub partitions: Partitions,
    /// Name in `/sys/block`.
    name: String,
    table: Table,
    disk_bytes: u64,
    repair: bool,
    /// Other disks that carry the layout too: worth a warning, as partition GUIDs are the same everywhere.
    pub others: Vec<String>,
}

/// Waits for the disk.
pub fn find() -> Result<Disk, DiskError> {
    let deadline = Instant::now() + DISK_DEADLINE;
    loop {
        match look(Path::new("/sys/block"), Path::new("/dev")) {
            Ok(disk) => return Ok(disk),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

fn look(sys_block: &Path, dev: &Path) -> Result<Disk, DiskError> {
    let mut names: Vec<String> = fs::read_dir(sys_block)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !["loop", "ram", "dm-", "zram", "sr", "fd", "nbd"].iter().any(|p| name.starts_with(p)))
        .collect();
    names.sort();
    let mut found: Option<Disk> = None;
    let mut seen = Vec::new();
    for name in names {
        match examine(sys_block, dev, &name) {
            Ok(disk) => match &mut found {
                None => found = Some(disk),
                Some(first) => first.others.push(name),
            },
            Err(why) => seen.push(format!("{name} ({why})")),
        }
    }
    let nothing = || {
        if seen.is_empty() { "no disk at all".into() } else { seen.join(", ") }
    };
    let mut disk = found.ok_or_else(|| DiskError::None { seen: nothing() })?;
    for part in Part::ALL {
        let wanted = disk.table.find(part.name()).map_or(0, |p| p.first_lba);
        let path = device_at(sys_block, dev, &disk.name, wanted).ok_or_else(|| DiskError::NoDevice {
            partition: part.name(),
            disk: disk.partitions.disk.clone(),
            first_lba: wanted,
        })?;
        let path = path.display().to_string();
        let p = &mut disk.partitions;
        *match part {
            Part::EspA => &mut p.esp_a,
            Part::EspB => &mut p.esp_b,
            Part::OsA => &mut p.os_a,
            Part::OsB => &mut p.os_b,
            Part::Site => &mut p.site,
            Part::State => &mut p.state,
            Part::Data => &mut p.data,
        } = path;
    }
    Ok(disk)
}

fn examine(sys_block: &Path, dev: &Path, name: &str) -> Result<Disk, String> {
    // sysfs counts in sectors of 512 bytes whatever the disk's own are.
    let sectors = read_number(&sys_block.join(name).join("size")).filter(|s| *s > 0).ok_or("no medium")?;
    let path = dev.join(name);
    let file = File::open(&path).map_err(|e| e.to_string())?;
    let disk_bytes = sectors * 512;
    let (table, health) = Table::read(&file, disk_bytes).map_err(|e| e.to_string())?;
    layout::check(&table).map_err(|e: GptError| e.to_string())?;
    Ok(Disk {
        partitions: Partitions { disk: path.display().to_string(), ..Partitions::default() },
        name: name.to_owned(),
        repair: !(health.primary && health.backup && health.backup_at_end),
        table,
        disk_bytes,
        others: Vec::new(),
    })
}

/// The device of the partition that begins at this sector.
fn device_at(sys_block: &Path, dev: &Path, disk: &str, first_lba: u64) -> Option<PathBuf> {
    fs::read_dir(sys_block.join(disk))
        .ok()?
        .flatten()
        .find_map(|entry| (read_number(&entry.path().join("start"))? == first_lba).then(|| dev.join(entry.file_name())))
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Disk {
    /// Its partition table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Makes the table fit the disk: an image that was written to a larger disk gets its DATA grown and its backup
    /// table moved to the end; a damaged copy is written anew. Says what was done, if anything.
    pub fn mend(&mut self) -> io::Result<Option<String>> {
        let grown = self.table.grow_last(self.disk_bytes);
        if grown.is_none() && !self.repair {
            return Ok(None);
        }
        let table = grown.unwrap_or_else(|| self.table.clone());
        let disk = OpenOptions::new().read(true).write(true).open(&self.partitions.disk)?;
        for Extent { offset, data } in table.encode().map_err(io::Error::other)? {
            disk.write_all_at(&data, offset)?;
            disk.sync_all()?;
        }
        let data = table.find(Part::Data.name()).ok_or(io::ErrorKind::NotFound)?;
        let number = table.partitions.iter().position(|p| p == data).map_or(0, |n| n as i32 + 1);
        let before = self.table.find(Part::Data.name()).map(|p| p.size_bytes());
        let mut done = "partition table written anew".to_owned();
        if before != Some(data.size_bytes()) {
            holdfast_dm::partition::resize(&disk, number, data.offset_bytes(), data.size_bytes())?;
            done = format!("DATA grown to {} MiB", data.size_bytes() >> 20);
        }
        self.table = table;
        self.repair = false;
        Ok(Some(done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/sys/block` and `/dev` with the given disks of plain files.
    fn machine(disks: &[(&str, Option<u64>)]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (sys, dev) = (dir.path().join("sys"), dir.path().join("dev"));
        fs::create_dir_all(&dev).unwrap();
        for (name, table_bytes) in disks {
            let bytes = layout::image_bytes(0);
            let block = sys.join(name);
            fs::create_dir_all(&block).unwrap();
            fs::write(block.join("size"), format!("{}\n", bytes / 512)).unwrap();
            let disk = File::create(dev.join(name)).unwrap();
            disk.set_len(bytes).unwrap();
            let Some(table_bytes) = table_bytes else {
                continue;
            };
            let table = layout::table(*table_bytes).unwrap();
            for extent in table.encode().unwrap() {
                disk.write_all_at(&extent.data, extent.offset).unwrap();
            }
            for (n, p) in table.partitions.iter().enumerate() {
                let part = block.join(format!("{name}p{}", n + 1));
                fs::create_dir_all(&part).unwrap();
                fs::write(part.join("start"), format!("{}\n", p.first_lba)).unwrap();
            }
        }
        (dir, sys, dev)
    }

    #[test]
    fn disk_with_the_layout_is_found_among_others() {
        let bytes = Some(layout::image_bytes(0));
        let (_dir, sys, dev) = machine(&[("loop0", bytes), ("sda", None), ("vda", bytes), ("vdb", bytes)]);
        let disk = look(&sys, &dev).unwrap();
        assert_eq!(disk.partitions.disk, dev.join("vda").display().to_string());
        assert_eq!(disk.partitions.os_b, dev.join("vdap4").display().to_string());
        assert_eq!(disk.partitions.data, dev.join("vdap7").display().to_string());
        assert_eq!(disk.others, ["vdb"]);
        assert!(!disk.repair);
    }

    #[test]
    fn missing_disk_and_missing_partition_are_told_apart() {
        let (_dir, sys, dev) = machine(&[("sda", None)]);
        let error = look(&sys, &dev).unwrap_err().to_string();
        assert!(error.contains("sda ("), "{error}");
        let (_dir, sys, dev) = machine(&[("vda", Some(layout::image_bytes(0)))]);
        fs::remove_dir_all(sys.join("vda/vdap6")).unwrap();
        assert!(matches!(look(&sys, &dev), Err(DiskError::NoDevice { partition: "STATE", .. })));
    }

    #[test]
    fn damaged_copy_of_the_table_is_written_anew() {
        let bytes = layout::image_bytes(0);
        let (_dir, sys, dev) = machine(&[("vda", Some(bytes))]);
        let file = OpenOptions::new().write(true).open(dev.join("vda")).unwrap();
        file.write_all_at(&[0; 512], 512).unwrap();
        let mut disk = look(&sys, &dev).unwrap();
        assert!(disk.mend().unwrap().is_some());
        let mut again = look(&sys, &dev).unwrap();
        assert_eq!(again.mend().unwrap(), None);
    }
}
