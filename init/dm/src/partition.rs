//! Telling the kernel that a partition grew (BLKPG), while its disk is in use.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IO(0x12, 105)`, linux/blkpg.h.
const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;

/// `struct blkpg_partition` of linux/blkpg.h.
#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: libc::c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Argument {
    operation: libc::c_int,
    flags: libc::c_int,
    data_length: libc::c_int,
    data: *mut Partition,
}

/// Sets the length of partition `number` of an open disk; it must begin at `offset_bytes` already.
///
/// # Errors
/// What the kernel says: EBUSY when it would overlap another, EINVAL when the offset differs.
pub fn resize(disk: &File, number: i32, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
    let signed = |n: u64| i64::try_from(n).map_err(io::Error::other);
    let mut partition = Partition {
        start: signed(offset_bytes)?,
        length: signed(length_bytes)?,
        number,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let mut argument = Argument {
        operation: BLKPG_RESIZE_PARTITION,
        flags: 0,
        data_length: size_of::<Partition>() as libc::c_int,
        data: &mut partition,
    };
    // SAFETY: BLKPG reads one blkpg_ioctl_arg and, through it, one blkpg_partition; both live across the call.
    if unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &mut argument) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_disk_is_refused_by_the_kernel() {
        assert!(resize(&File::open("/dev/null").unwrap(), 1, 1 << 20, 1 << 20).is_err());
    }
}
