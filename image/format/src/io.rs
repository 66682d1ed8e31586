//! Positioned reads and sparse output, shared by the formats.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A run of bytes at a place on a disk or in an image. What lies between extents is zero or left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Byte offset from the start of the disk or image.
    pub offset: u64,
    /// What to write there.
    pub data: Vec<u8>,
}

/// Something of known length that is read at positions: a partition, a disk, a file, a byte slice.
pub trait ReadAt {
    /// Fills `buf` from `offset`; reading past the end is `UnexpectedEof`.
    ///
    /// # Errors
    /// The reader's own I/O error.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let part = start.and_then(|s| self.get(s..s.checked_add(buf.len())?));
        buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buf, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }
}

/// `value` rounded up to a multiple of `align` (a power of two is not required).
#[must_use]
pub const fn round_up(value: u64, align: u64) -> u64 {
    value.div_ceil(align) * align
}

/// Little-endian `u16` at `at`, or `None` past the end.
pub(crate) fn le16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(b.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Little-endian `u32` at `at`, or `None` past the end.
pub(crate) fn le32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Little-endian `u64` at `at`, or `None` past the end.
pub(crate) fn le64(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
