//! The buffer that goes through `ioctl`: `struct dm_ioctl` 4.0.0 (`include/uapi/linux/dm-ioctl.h`).
//!
//! ```text
//!   0 u32 version[3]   12 u32 data_size   16 u32 data_start   20 u32 target_count
//!  24 i32 open_count   28 u32 flags       32 u32 event_nr     36 u32 padding
//!  40 u64 dev          48 char name[128] 176 char uuid[129]  305 char data[7]      = 312 bytes
//! ```
//! Target rows follow at `data_start`: u64 start, u64 length, i32 status, u32 next (offset from this
//! row to the next one), char type\[16\], NUL-terminated parameters, padded to 8 bytes.
#![forbid(unsafe_code)]

use crate::table::Target;

/// Size of `struct dm_ioctl`.
pub const HEADER_SIZE: usize = 312;
/// Longest name, without the NUL.
pub const NAME_MAX: usize = 127;
/// Longest uuid, without the NUL.
pub const UUID_MAX: usize = 128;

const NAME_OFFSET: usize = 48;
const UUID_OFFSET: usize = 176;
const TARGET_HEADER: usize = 40;

/// `DM_READONLY_FLAG`.
pub const FLAG_READONLY: u32 = 1 << 0;
/// `DM_SUSPEND_FLAG`; DM_DEV_SUSPEND without it resumes.
pub const FLAG_SUSPEND: u32 = 1 << 1;
/// `DM_BUFFER_FULL_FLAG`: the answer did not fit.
pub const FLAG_BUFFER_FULL: u32 = 1 << 8;

/// Kernel device number of a mapped device; its node is `/dev/dm-<minor>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Major number (device-mapper's own, assigned at boot).
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the kernel's 64 bit encoding (`huge_encode_dev`).
    pub fn from_kernel(dev: u64) -> Self {
        // Both results are masked to 12 and 20 bits.
        #[allow(clippy::cast_possible_truncation)]
        Self { major: ((dev >> 8) & 0xfff) as u32, minor: ((dev & 0xff) | ((dev >> 12) & 0xf_ff00)) as u32 }
    }

    /// The node that devtmpfs makes.
    pub fn node(self) -> std::path::PathBuf {
        format!("/dev/dm-{}", self.minor).into()
    }
}

/// One entry of the device list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name it was created under.
    pub name: String,
    /// Its number.
    pub device: DeviceNumber,
}

/// Why a request cannot be put into the kernel's format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A name, uuid or target type is too long, empty or holds a NUL or a slash.
    #[error("device-mapper {what} {value:?}: expected 1 to {max} bytes without NUL or '/'")]
    BadString {
        /// Which string.
        what: &'static str,
        /// Its value.
        value: String,
        /// Its limit.
        max: usize,
    },
    /// The table is larger than any sane one.
    #[error("device-mapper table of {0} bytes: expected at most 64 KiB")]
    TooLarge(usize),
}

/// Builds a request: header, then the targets, then room for an answer of `answer_room` bytes.
///
/// # Errors
/// [`EncodeError`] when a string does not fit.
pub fn encode(
    name: &str,
    uuid: &str,
    flags: u32,
    targets: &[Target],
    answer_room: usize,
) -> Result<Vec<u8>, EncodeError> {
    let mut b = vec![0u8; HEADER_SIZE];
    put_u32(&mut b, 0, 4);
    put_u32(&mut b, 28, flags);
    if !name.is_empty() {
        check("name", name, NAME_MAX)?;
        b[NAME_OFFSET..NAME_OFFSET + name.len()].copy_from_slice(name.as_bytes());
    }
    if !uuid.is_empty() {
        check("uuid", uuid, UUID_MAX)?;
        b[UUID_OFFSET..UUID_OFFSET + uuid.len()].copy_from_slice(uuid.as_bytes());
    }
    for t in targets {
        check("target type", &t.kind, 15)?;
        if t.params.contains('\0') {
            return Err(EncodeError::BadString { what: "parameters", value: t.params.clone(), max: 4096 });
        }
        let row = b.len();
        let next = (TARGET_HEADER + t.params.len() + 1).next_multiple_of(8);
        b.resize(row + next, 0);
        b[row..row + 8].copy_from_slice(&t.start_sectors.to_ne_bytes());
        b[row + 8..row + 16].copy_from_slice(&t.length_sectors.to_ne_bytes());
        put_u32(&mut b, row + 20, u32::try_from(next).map_err(|_| EncodeError::TooLarge(next))?);
        b[row + 24..row + 24 + t.kind.len()].copy_from_slice(t.kind.as_bytes());
        b[row + TARGET_HEADER..row + TARGET_HEADER + t.params.len()].copy_from_slice(t.params.as_bytes());
    }
    let total = b.len() + answer_room;
    b.resize(total, 0);
    if total > 64 * 1024 {
        return Err(EncodeError::TooLarge(total));
    }
    #[allow(clippy::cast_possible_truncation)] // bounded by 64 KiB just above
    {
        put_u32(&mut b, 12, total as u32);
        put_u32(&mut b, 16, HEADER_SIZE as u32);
        put_u32(&mut b, 20, targets.len() as u32);
    }
    Ok(b)
}

/// The device number in an answer.
pub fn device(answer: &[u8]) -> DeviceNumber {
    DeviceNumber::from_kernel(get_u64(answer, 40).unwrap_or(0))
}

/// The flags in an answer.
pub fn flags(answer: &[u8]) -> u32 {
    get_u32(answer, 28).unwrap_or(0)
}

/// The list in an answer to DM_LIST_DEVICES: u64 dev, u32 next, NUL-terminated name, each.
pub fn decode_list(answer: &[u8]) -> Vec<Listed> {
    let mut out = Vec::new();
    let mut at = get_u32(answer, 16).unwrap_or(0) as usize;
    // `next` is at least 1 when it is not 0, so the walk ends; 4096 devices bound it all the same.
    while out.len() < 4096 {
        let (Some(dev), Some(next)) = (get_u64(answer, at), get_u32(answer, at.saturating_add(8))) else {
            break;
        };
        if dev == 0 {
            break;
        }
        let rest = &answer[at + 12..];
        let end = rest.iter().position(|&c| c == 0).unwrap_or(rest.len());
        out.push(Listed {
            name: String::from_utf8_lossy(&rest[..end]).into_owned(),
            device: DeviceNumber::from_kernel(dev),
        });
        if next == 0 {
            break;
        }
        at = at.saturating_add(next as usize);
    }
    out
}

/// The parameter text of each row in an answer to DM_TABLE_STATUS. Unlike in a request, `next` counts from the
/// start of the data, not from the row.
pub fn decode_status(answer: &[u8]) -> Vec<String> {
    let start = get_u32(answer, 16).unwrap_or(0) as usize;
    let count = get_u32(answer, 20).unwrap_or(0).min(1024);
    let mut out = Vec::new();
    let mut at = start;
    for _ in 0..count {
        let Some(next) = get_u32(answer, at.saturating_add(20)) else {
            break;
        };
        let rest = answer.get(at + TARGET_HEADER..).unwrap_or_default();
        let end = rest.iter().position(|&c| c == 0).unwrap_or(rest.len());
        out.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        at = start.saturating_add(next as usize);
    }
    out
}

fn check(what: &'static str, value: &str, max: usize) -> Result<(), EncodeError> {
    if value.is_empty() || value.len() > max || value.contains(['\0', '/']) {
        return Err(EncodeError::BadString { what, value: value.to_owned(), max });
    }
    Ok(())
}

fn put_u32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_ne_bytes());
}

fn get_u32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn get_u64(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(params: &str) -> Target {
        Target { start_sectors: 1, length_sectors: 2, kind: "zero".into(), params: params.into() }
    }

    #[test]
    fn header_fields_are_where_the_kernel_reads_them() {
        let b = encode("os", "HF-os", FLAG_READONLY, &[], 0).unwrap();
        assert_eq!(b.len(), 312);
        assert_eq!(&b[0..4], &4u32.to_ne_bytes());
        assert_eq!(&b[12..16], &312u32.to_ne_bytes());
        assert_eq!(&b[16..20], &312u32.to_ne_bytes());
        assert_eq!(&b[28..32], &1u32.to_ne_bytes());
        assert_eq!(&b[48..51], b"os\0");
        assert_eq!(&b[176..182], b"HF-os\0");
    }

    #[test]
    fn target_rows_are_eight_byte_aligned_and_linked() {
        let b = encode("d", "", 0, &[target("1234567"), target("x")], 0).unwrap();
        assert_eq!(&b[20..24], &2u32.to_ne_bytes());
        // 40 + 7 + NUL = 48: already aligned, so the second row starts 48 bytes on.
        assert_eq!(&b[312 + 20..312 + 24], &48u32.to_ne_bytes());
        assert_eq!(&b[360..368], &1u64.to_ne_bytes());
        assert_eq!(&b[360 + 24..360 + 29], b"zero\0");
        assert_eq!(b.len(), 360 + 48);
    }

    #[test]
    fn status_rows_are_found_from_the_start_of_the_data() {
        let mut b = encode("d", "", 0, &[target("V"), target("C")], 0).unwrap();
        // Rows as the kernel returns them: the second begins 48 bytes behind the first.
        put_u32(&mut b, 312 + 20, 48);
        put_u32(&mut b, 360 + 20, 96);
        assert_eq!(decode_status(&b), ["V", "C"]);
        for n in 0..b.len() {
            let _ = decode_status(&b[..n]);
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for name in ["a/b", "a\0b", &"x".repeat(128)] {
            assert!(encode(name, "", 0, &[], 0).is_err(), "{name:?}");
        }
    }

    #[test]
    fn device_number_decodes_large_minors() {
        assert_eq!(DeviceNumber::from_kernel(0xfd03), DeviceNumber { major: 253, minor: 3 });
        assert_eq!(DeviceNumber::from_kernel(0x10_fd03), DeviceNumber { major: 253, minor: 0x103 });
    }

    #[test]
    fn list_is_read_to_its_end_and_hostile_offsets_stop_it() {
        let mut b = encode("", "", 0, &[], 64).unwrap();
        b[312..320].copy_from_slice(&0xfd00u64.to_ne_bytes());
        b[320..324].copy_from_slice(&24u32.to_ne_bytes());
        b[324..327].copy_from_slice(b"os\0");
        b[336..344].copy_from_slice(&0xfd01u64.to_ne_bytes());
        b[348..353].copy_from_slice(b"data\0");
        let names: Vec<_> = decode_list(&b).into_iter().map(|l| (l.name, l.device.minor)).collect();
        assert_eq!(names, [("os".to_owned(), 0), ("data".to_owned(), 1)]);
        b[344..348].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(decode_list(&b).len(), 2);
        assert!(decode_list(&[]).is_empty());
    }
}
