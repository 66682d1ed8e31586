//! A fresh ext4 without mkfs: copy a small image, mount it, let the kernel grow it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use super::linux::{device_size, zero_range};

/// `EXT4_IOC_RESIZE_FS`, `_IOW('f', 16, u64)`: grows a mounted ext4 to a number of blocks.
const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;

/// Writes the image at `seed` to the beginning of `device` (block device or file). Only its data is copied; its holes are
/// zeroed, because the device may hold anything. On stable storage when this returns.
///
/// # Errors
/// The disk's.
pub fn write_seed(seed: &Path, device: &Path) -> io::Result<()> {
    let mut from = File::open(seed)?;
    let mut to = OpenOptions::new().write(true).open(device)?;
    let size = from.metadata()?.len();
    zero_range(&to, size)?;
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while let Some((start, end)) = next_data(&from, at, size)? {
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        let mut left = end - start;
        while left > 0 {
            let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            from.read_exact(&mut buffer[..part])?;
            if buffer[..part].iter().any(|b| *b != 0) {
                to.write_all(&buffer[..part])?;
            } else {
                to.seek(SeekFrom::Current(i64::try_from(part).unwrap_or(0)))?;
            }
            left -= part as u64;
        }
        at = end;
    }
    to.sync_all()
}

/// Grows the ext4 mounted at `mount_point` to the size of `device`; nothing when it is that large. The kernel's journal
/// protects it against a power cut.
///
/// # Errors
/// The kernel's; needs CAP_SYS_RESOURCE.
pub fn grow(device: &Path, mount_point: &Path) -> io::Result<()> {
    let size = device_size(&File::open(device)?)?;
    let mount = File::open(mount_point)?;
    // SAFETY: all zero is a valid statfs, which the call overwrites; the descriptor is open.
    let mut fs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    if unsafe { libc::fstatfs(mount.as_raw_fd(), &mut fs) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let block_size = u64::try_from(fs.f_bsize).ok().filter(|b| *b > 0).ok_or(io::ErrorKind::InvalidData)?;
    let blocks = size / block_size;
    // Growing to the size that it has already is no error.
    // SAFETY: the argument points to a u64 that lives through the call, as this ioctl reads.
    let done = unsafe { libc::ioctl(mount.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The next run of data at or after `at`.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let seek = |from: u64, whence: i32| -> io::Result<Option<u64>> {
        let from = libc::off_t::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: numbers and an open descriptor.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
        match u64::try_from(found) {
            Ok(found) => Ok(Some(found)),
            Err(_) => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                e => Err(e),
            },
        }
    };
    let Some(start) = seek(at, libc::SEEK_DATA)? else {
        return Ok(None);
    };
    let end = seek(start, libc::SEEK_HOLE)?.unwrap_or(size).min(size);
    Ok((start < end).then_some((start, end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn a_sparse_seed_arrives_whole_on_a_device_full_of_garbage() {
        let dir = tempfile::tempdir().unwrap();
        let (seed, device) = (dir.path().join("seed"), dir.path().join("device"));
        let file = File::create(&seed).unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(b"superblock", 1024).unwrap();
        file.write_all_at(&[7; 5000], (2 << 20) + 123).unwrap();
        std::fs::write(&device, vec![0xa5; 4 << 20]).unwrap();
        write_seed(&seed, &device).unwrap();
        let (seed, device) = (std::fs::read(seed).unwrap(), std::fs::read(device).unwrap());
        assert!(device[..3 << 20] == seed[..], "the seed's bytes differ");
        assert!(device[3 << 20..].iter().all(|b| *b == 0xa5), "something was written behind the seed");
    }
}
