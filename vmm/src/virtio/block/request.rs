//! Reading a block request out of a chain (virtio 1.3 §5.2.6).
//!
//! ```text
//!  readable:  0 type le32 | 4 reserved | 8 sector le64 | 16.. data to write, or the range to discard or zero
//!  writable:  data read ... | last byte: status
//!
//!  range:     0 sector le64 | 8 sectors le32 | 12 flags le32, bit 0: unmap
//! ```
#![forbid(unsafe_code)]

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::format::SECTOR;
use crate::memory::{GuestRam, load};
use crate::virtio::chain::{Chain, RingFault, Segment, copy_from, window};

/// Bytes of the header.
pub(super) const HEADER: u64 = 16;
/// Bytes of a range.
const RANGE: usize = 16;
/// Most sectors of a range: what one request keeps the host's file system busy with (1 GiB).
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// What the driver asks. Lengths are positive and whole sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Disk to guest.
    Read { sector: u64, bytes: u64 },
    /// Guest to disk.
    Write { sector: u64, bytes: u64 },
    /// Make writes durable.
    Flush,
    /// The range's content is of no more use.
    Discard { sector: u64, bytes: u64 },
    /// The range is to read as zeros; with `unmap` its blocks may be given back.
    WriteZeroes { sector: u64, bytes: u64, unmap: bool },
    /// The 20-byte serial.
    GetId { room: u64 },
    /// Something that gets this status and nothing else.
    Refused { status: u32 },
}

const MALFORMED: Request = Request::Refused { status: VIRTIO_BLK_S_IOERR };
const UNSUPPORTED: Request = Request::Refused { status: VIRTIO_BLK_S_UNSUPP };

impl Request {
    /// Reads the request in `chain`. A request that can be answered gets its answer, however wrong it is; the fault is a
    /// chain without a whole header or without a place for the status.
    pub(super) fn parse(ram: &GuestRam, chain: &Chain) -> Result<Self, RingFault> {
        let (readable, writable) = (chain.readable_len(), chain.writable_len());
        if readable < HEADER || writable < 1 {
            return Err(chain.shape_fault("a block request is a 16-byte header, data and a status byte"));
        }
        let header = header(ram, chain);
        let (kind, sector) = (le32(&header, 0), le64(&header, 8));
        let whole = |bytes: u64| bytes > 0 && bytes.is_multiple_of(SECTOR);
        let (to_guest, from_guest) = (writable - 1, readable - HEADER);
        Ok(match kind {
            VIRTIO_BLK_T_IN if whole(to_guest) => Request::Read { sector, bytes: to_guest },
            VIRTIO_BLK_T_OUT if whole(from_guest) => Request::Write { sector, bytes: from_guest },
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => MALFORMED,
            VIRTIO_BLK_T_FLUSH => Request::Flush,
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => Self::range(kind, ram, chain, from_guest),
            VIRTIO_BLK_T_GET_ID => Request::GetId { room: to_guest },
            _ => UNSUPPORTED,
        })
    }

    /// The range of a discard or write-zeroes request: exactly one, as the configuration space says.
    fn range(kind: u32, ram: &GuestRam, chain: &Chain, bytes: u64) -> Self {
        if bytes != RANGE as u64 {
            return MALFORMED;
        }
        let mut range = [0u8; RANGE];
        let mut filled = 0;
        for part in window(&chain.readable, HEADER, bytes) {
            filled += copy_from(ram, &[part], &mut range[filled..filled + part.len as usize]);
        }
        let (sector, sectors, flags) = (le64(&range, 0), le32(&range, 8), le32(&range, 12));
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        // §5.2.6.2: unknown flags, and unmap with a discard, are not supported.
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (unmap && kind == VIRTIO_BLK_T_DISCARD) {
            return UNSUPPORTED;
        }
        if !(1..=MAX_RANGE_SECTORS).contains(&sectors) {
            return MALFORMED;
        }
        let bytes = u64::from(sectors) * SECTOR;
        if kind == VIRTIO_BLK_T_DISCARD {
            Request::Discard { sector, bytes }
        } else {
            Request::WriteZeroes { sector, bytes, unmap }
        }
    }

    /// Bytes that pass between guest and disk.
    pub(super) fn data_bytes(&self) -> u64 {
        match self {
            Request::Read { bytes, .. } | Request::Write { bytes, .. } => *bytes,
            _ => 0,
        }
    }

    /// The part of `chain` that holds the data of a read or write.
    pub(super) fn data<'a>(&self, chain: &'a Chain) -> impl Iterator<Item = Segment> + 'a {
        let (list, skip) = match self {
            Request::Write { .. } => (&chain.readable, HEADER),
            _ => (&chain.writable, 0),
        };
        window(list, skip, self.data_bytes())
    }
}

/// The first bytes of the readable part, usually one buffer.
fn header(ram: &GuestRam, chain: &Chain) -> [u8; HEADER as usize] {
    if let Some(first) = chain.readable.first()
        && u64::from(first.len) >= HEADER
        && let Some(header) = load(ram, first.addr)
    {
        return header;
    }
    let mut header = [0u8; HEADER as usize];
    copy_from(ram, &chain.readable, &mut header);
    header
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
