//! The vault's platform: dm-crypt by ioctl, mount by syscall.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use holdfast_dm::table::SECTOR_SIZE;
use holdfast_dm::{Control, Target};

use super::ext4;
use super::keyring::LogonKey;
use super::platform::Platform;
use crate::VaultKey;

const KEY_DESCRIPTION: &str = "holdfast:data";

const BLKGETSIZE64: u64 = 0x8008_1272;
const BLKDISCARD: u64 = 0x1277;
const BLKZEROOUT: u64 = 0x127f;

/// The running kernel.
#[derive(Debug, Clone, Copy)]
pub struct Linux;

impl Platform for Linux {
    fn active(&self, name: &str) -> Result<Option<PathBuf>, String> {
        let control = Control::open().map_err(|e| e.to_string())?;
        Ok(control.find(name).map_err(|e| e.to_string())?.map(|d| d.node()))
    }

    fn activate(&self, name: &str, partition: &Path, offset_bytes: u64, key: &VaultKey) -> Result<PathBuf, String> {
        let shown = partition.display();
        let file = File::open(partition).map_err(|e| format!("{shown}: {e}"))?;
        let size = device_size(&file).map_err(|e| format!("size of {shown}: {e}"))?;
        // Whole blocks of 4 KiB, so that the end does not depend on the disk's sector size.
        let length = size.saturating_sub(offset_bytes) / 4096 * 4096;
        let control = Control::open().map_err(|e| e.to_string())?;
        let key = LogonKey::add(KEY_DESCRIPTION, key).map_err(|e| format!("kernel keyring: {e}"))?;
        let table =
            Target::crypt(&shown.to_string(), offset_bytes / SECTOR_SIZE, length / SECTOR_SIZE, KEY_DESCRIPTION);
        let device = control.activate(name, "", false, &[table]).map_err(|e| e.to_string())?;
        drop(key);
        Ok(device.node())
    }

    fn tear_down(&self, name: &str, mount_point: &Path) -> Result<(), String> {
        let Some(device) = self.active(name)? else {
            return Ok(());
        };
        if self.is_mounted(&device, mount_point) {
            let path = c_path(mount_point)?;
            // SAFETY: the path is NUL-terminated and lives through the call.
            if unsafe { libc::umount2(path.as_ptr(), 0) } < 0 {
                return Err(format!("unmount {}: {}", mount_point.display(), io::Error::last_os_error()));
            }
        }
        Control::open().and_then(|c| c.remove(name)).map_err(|e| e.to_string())
    }

    fn is_mounted(&self, device: &Path, mount_point: &Path) -> bool {
        match (std::fs::metadata(device), std::fs::metadata(mount_point)) {
            (Ok(device), Ok(mounted)) => device.file_type().is_block_device() && device.rdev() == mounted.dev(),
            _ => false,
        }
    }

    fn mount(&self, device: &Path, mount_point: &Path) -> Result<(), String> {
        let (source, target) = (c_path(device)?, c_path(mount_point)?);
        // Nothing on the vault is a program of the host's.
        let flags = libc::MS_NODEV | libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NOATIME;
        // SAFETY: all strings are NUL-terminated and live through the call.
        let done = unsafe {
            libc::mount(source.as_ptr(), target.as_ptr(), c"ext4".as_ptr(), flags, c"errors=remount-ro".as_ptr().cast())
        };
        if done < 0 {
            let e = io::Error::last_os_error();
            return Err(format!("{} at {}: {e}", device.display(), mount_point.display()));
        }
        Ok(())
    }

    fn grow(&self, device: &Path, mount_point: &Path) -> Result<(), String> {
        ext4::grow(device, mount_point).map_err(|e| format!("ext4 at {}: {e}", mount_point.display()))?;
        let mount = File::open(mount_point).map_err(|e| e.to_string())?;
        // SAFETY: an open descriptor.
        if unsafe { libc::syncfs(mount.as_raw_fd()) } < 0 {
            return Err(format!("sync {}: {}", mount_point.display(), io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// Size of a block device or file in bytes.
///
/// # Errors
/// The kernel's.
pub fn device_size(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    if !meta.file_type().is_block_device() {
        return Ok(meta.len());
    }
    let mut size = 0u64;
    // SAFETY: this ioctl writes one u64, which `size` is.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(size)
}

/// Zeroes the first `length` bytes: by the device itself where it can.
pub(crate) fn zero_range(file: &File, length: u64) -> io::Result<()> {
    let whole = [0u64, length.next_multiple_of(SECTOR_SIZE)];
    // SAFETY: this ioctl reads two u64, which `whole` is. It fails on anything but a block device.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKZEROOUT as _, whole.as_ptr()) } == 0 {
        return Ok(());
    }
    let zeros = vec![0; 256 << 10];
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    let mut left = length;
    while left > 0 {
        let part = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&zeros[..part])?;
        left -= part as u64;
    }
    Ok(())
}

/// Tells the disk that nothing on the partition is needed; best effort.
pub(crate) fn discard(file: &File) {
    let Ok(size) = device_size(file) else { return };
    let whole = [0u64, size];
    // SAFETY: this ioctl reads two u64, which `whole` is. It fails on anything but a block device that can.
    unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD as _, whole.as_ptr()) };
}

fn c_path(path: &Path) -> Result<CString, String> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| format!("{}: the path holds a NUL", path.display()))
}
