//! Image formats: where a guest's byte lies in the file, and what the file can do.
//!
//! [`Format`] is what the device sees of an image; a new image type is a variant with an answer to each of its questions.
//! The type is stated in the configuration, never guessed from content, which the guest can write.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use holdfast_model::contract::vm::ImageType;
use thiserror::Error;

/// Bytes of a sector; everything in virtio block is counted in these.
pub const SECTOR: u64 = 512;
/// Block sizes that are passed on to the guest. A file system that names another one means its preferred transfer.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = SECTOR..=65536;
/// Block size when the file system names none of these.
const USUAL_BLOCK: u32 = 4096;

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
        /// Bytes that the host writes at least: smaller writes make it read first. A power of two.
        block_bytes: u32,
        /// Whether blocks can be given back to the host.
        holes: bool,
    },
}

impl Format {
    /// Looks at an image of this type. Nothing in it is changed; `read_only` says that nothing will be.
    ///
    /// # Errors
    /// [`FormatError`] when it cannot be used.
    pub fn open(image: ImageType, file: &mut File, read_only: bool) -> Result<Self, FormatError> {
        match image {
            ImageType::Raw => Self::raw(file, read_only),
        }
    }

    fn raw(file: &mut File, read_only: bool) -> Result<Self, FormatError> {
        // Seeking works for block devices too, whose metadata has no size.
        let size = file.seek(SeekFrom::End(0))?;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(FormatError::NotSectors(size));
        }
        let named = file.metadata()?.blksize();
        let fits = named.is_power_of_two() && BLOCK_SIZES.contains(&named);
        let block_bytes = if fits { u32::try_from(named).unwrap_or(USUAL_BLOCK) } else { USUAL_BLOCK };
        Ok(Format::Raw { size, block_bytes, holes: !read_only && can_punch_holes(file, size) })
    }

    /// Sectors the guest sees.
    pub fn sectors(&self) -> u64 {
        let Format::Raw { size, .. } = self;
        size / SECTOR
    }

    /// Bytes that the host writes at least; a power of two from [`SECTOR`] on.
    pub fn block_bytes(&self) -> u32 {
        let Format::Raw { block_bytes, .. } = self;
        *block_bytes
    }

    /// Whether the image can discard and write zeroes.
    pub fn has_holes(&self) -> bool {
        let Format::Raw { holes, .. } = self;
        *holes
    }

    /// File offset of `bytes` bytes at `sector`, or `None` when they are not all inside the disk.
    pub fn locate(&self, sector: u64, bytes: u64) -> Option<u64> {
        let Format::Raw { size, .. } = self;
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(bytes)?;
        (end <= *size).then_some(offset)
    }
}

/// Punches a hole behind the end of the file: nothing is there, so the answer only tells what the file system can do. One
/// that can do this can zero a range as well (fallocate(2)). A block device refuses a range behind its end: no.
fn can_punch_holes(file: &File, size: u64) -> bool {
    let behind = size.next_multiple_of(u64::from(USUAL_BLOCK));
    let Ok(offset) = libc::off_t::try_from(behind) else {
        return false;
    };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: numbers only.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, libc::off_t::from(USUAL_BLOCK)) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_past_the_end_or_overflowing_have_no_place() {
        let format = Format::Raw { size: 4 * SECTOR, block_bytes: 4096, holes: false };
        assert_eq!(format.locate(3, 512), Some(1536));
        assert_eq!(format.locate(3, 1024), None);
        assert_eq!(format.locate(u64::MAX, 512), None);
        assert_eq!(format.locate(u64::MAX / SECTOR, u64::MAX), None);
    }

    #[test]
    fn partial_sector_images_are_refused_with_their_size() {
        let mut file = tempfile::tempfile().unwrap();
        let open = |file: &mut File| Format::open(ImageType::Raw, file, false);
        assert!(matches!(open(&mut file), Err(FormatError::NotSectors(0))));
        file.set_len(700).unwrap();
        assert!(open(&mut file).unwrap_err().to_string().contains("700"));
    }

    #[test]
    fn probe_finds_holes_and_leaves_the_file_as_it_was() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[7; 4096 + 512]).unwrap();
        let before = file.metadata().unwrap();
        assert!(Format::open(ImageType::Raw, &mut file, false).unwrap().has_holes(), "where tests run there are holes");
        assert!(!Format::open(ImageType::Raw, &mut file, true).unwrap().has_holes(), "nobody will punch them");
        let after = file.metadata().unwrap();
        assert_eq!((before.len(), before.blocks()), (after.len(), after.blocks()));
    }

    #[test]
    fn file_without_holes_is_found_out() {
        // The null device takes any write and has no fallocate.
        let file = File::options().write(true).open("/dev/null").unwrap();
        assert!(!can_punch_holes(&file, 4096));
    }
}
