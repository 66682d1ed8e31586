//! Reading a block request out of a chain (virtio 1.3 §5.2.6).
//!
//! ```text
//!  readable:  0 type le32 | 4 reserved | 8 sector le64 | 16.. data to write
//!  writable:  data read ... | last byte: status
//! ```
#![forbid(unsafe_code)]

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use crate::memory::GuestRam;
use crate::virtio::chain::{Chain, RingFault, copy_from};

/// Bytes of the header.
pub(super) const HEADER: u64 = 16;

/// What the driver asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Disk to guest.
    Read { sector: u64, bytes: u64 },
    /// Guest to disk.
    Write { sector: u64, bytes: u64 },
    /// Make writes durable.
    Flush,
    /// The 20-byte serial.
    GetId { room: u64 },
    /// Something else.
    Unknown { kind: u32 },
}

impl Request {
    /// Reads the request in `chain`.
    pub(super) fn parse(ram: &GuestRam, chain: &Chain) -> Result<Self, RingFault> {
        let readable = chain.readable_len();
        let writable = chain.writable_len();
        if readable < HEADER || writable < 1 {
            return Err(chain.shape_fault("a block request is a 16-byte header, data and a status byte"));
        }
        let mut header = [0u8; HEADER as usize];
        copy_from(ram, &chain.readable, &mut header);
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = header[8..16].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        Ok(match kind {
            VIRTIO_BLK_T_IN => Request::Read { sector, bytes: writable - 1 },
            VIRTIO_BLK_T_OUT => Request::Write { sector, bytes: readable - HEADER },
            VIRTIO_BLK_T_FLUSH => Request::Flush,
            VIRTIO_BLK_T_GET_ID => Request::GetId { room: writable - 1 },
            kind => Request::Unknown { kind },
        })
    }
}
