//! The VM's disks, by the serial number the VMM gave each (virtio-blk `VIRTIO_BLK_T_GET_ID`, 20 bytes, shown in sysfs).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A disk that the app needs did not appear.
#[derive(Debug, thiserror::Error)]
#[error("disk {serial}: not there after {waited_ms} ms; the VM has: {present}")]
pub struct Missing {
    /// Serial asked for.
    pub serial: String,
    /// How long was waited.
    pub waited_ms: u128,
    /// Serials found.
    pub present: String,
}

/// Device paths by serial, as `sys_block` (normally `/sys/block`) lists them.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(sys_block: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut disks = BTreeMap::new();
    for entry in fs::read_dir(sys_block)? {
        let entry = entry?;
        // Devices without a serial attribute (loop) are not ours.
        if let Ok(serial) = fs::read_to_string(entry.path().join("serial")) {
            let serial = serial.trim_end_matches(['\n', '\0']).to_owned();
            if !serial.is_empty() {
                disks.insert(serial, Path::new("/dev").join(entry.file_name()));
            }
        }
    }
    Ok(disks)
}

/// Device path of the disk `serial`, waiting for its probe until `deadline`.
///
/// # Errors
/// [`Missing`] at the deadline.
pub fn wait_for(sys_block: &Path, serial: &str, timeout: Duration) -> Result<PathBuf, Missing> {
    let started = Instant::now();
    loop {
        let disks = list(sys_block).unwrap_or_default();
        if let Some(path) = disks.get(serial) {
            return Ok(path.clone());
        }
        if started.elapsed() >= timeout {
            let present =
                if disks.is_empty() { "none".into() } else { disks.into_keys().collect::<Vec<_>>().join(", ") };
            return Err(Missing { serial: serial.into(), waited_ms: started.elapsed().as_millis(), present });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(disks: &[(&str, Option<&str>)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, serial) in disks {
            fs::create_dir(dir.path().join(name)).unwrap();
            if let Some(serial) = serial {
                fs::write(dir.path().join(name).join("serial"), serial).unwrap();
            }
        }
        dir
    }

    #[test]
    fn disks_are_found_by_serial_not_by_name() {
        let sys = sysfs(&[("vda", Some("config")), ("vdb", Some("rootfs\n")), ("loop0", None), ("vdc", Some(""))]);
        assert_eq!(wait_for(sys.path(), "rootfs", Duration::ZERO).unwrap(), Path::new("/dev/vdb"));
        assert_eq!(list(sys.path()).unwrap().len(), 2);
    }

    #[test]
    fn a_missing_disk_is_named_with_those_that_are_there() {
        let sys = sysfs(&[("vda", Some("config"))]);
        let text = wait_for(sys.path(), "vol1", Duration::from_millis(20)).unwrap_err().to_string();
        assert!(text.contains("vol1") && text.contains("config"), "{text}");
    }
}
