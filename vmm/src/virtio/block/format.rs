//! Image formats: where a guest byte lives in the file. Only raw so far; qcow2 will be another variant.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use thiserror::Error;

/// Bytes of a sector; everything in virtio block is counted in these.
pub const SECTOR: u64 = 512;

/// The image cannot serve as a disk.
#[derive(Debug, Error)]
pub enum FormatError {
    /// Not seekable, or gone.
    #[error("its size cannot be read: {0}")]
    Size(#[from] io::Error),
    /// Not whole sectors.
    #[error("its size of {0} bytes is not a positive multiple of {SECTOR}")]
    NotSectors(u64),
}

/// An opened image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// File offset equals disk offset.
    Raw {
        /// Size in bytes.
        size: u64,
    },
}

impl Format {
    /// A raw image. The type is stated, never guessed from content the guest can write.
    ///
    /// # Errors
    /// [`FormatError`] when its size cannot be used.
    pub fn raw(file: &mut File) -> Result<Self, FormatError> {
        // Seeking works for block devices too, whose metadata has no size.
        let size = file.seek(SeekFrom::End(0))?;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(FormatError::NotSectors(size));
        }
        Ok(Format::Raw { size })
    }

    /// Sectors the guest sees.
    pub fn sectors(&self) -> u64 {
        let Format::Raw { size } = self;
        size / SECTOR
    }

    /// File offset of `bytes` bytes at `sector`, or `None` when they are not all inside the disk.
    pub fn locate(&self, sector: u64, bytes: u64) -> Option<u64> {
        let Format::Raw { size } = self;
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(bytes)?;
        (end <= *size).then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_past_the_end_or_overflowing_have_no_place() {
        let format = Format::Raw { size: 4 * SECTOR };
        assert_eq!(format.locate(3, 512), Some(1536));
        assert_eq!(format.locate(3, 1024), None);
        assert_eq!(format.locate(u64::MAX, 512), None);
        assert_eq!(format.locate(u64::MAX / SECTOR, u64::MAX), None);
    }

    #[test]
    fn partial_sector_images_are_refused_with_their_size() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(matches!(Format::raw(&mut file), Err(FormatError::NotSectors(0))));
        file.set_len(700).unwrap();
        assert!(Format::raw(&mut file).unwrap_err().to_string().contains("700"));
    }
}
