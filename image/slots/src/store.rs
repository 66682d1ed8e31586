//! The STATE partition: fixed places for two copies of each thing, written so that a power cut loses at most the newest.
//!
//! ```text
//!    offset   size
//!         0  64 KiB   slot record, copy 0        "HFSLOT01"
//!    64 KiB  64 KiB   slot record, copy 1
//!   128 KiB 256 KiB   boot diary, copy 0         "HFDIARY1"
//!   384 KiB 256 KiB   boot diary, copy 1
//!     1 MiB   1 MiB   last kernel log, copy 0    "HFKLOG01"
//!     2 MiB   1 MiB   last kernel log, copy 1
//!     3 MiB   rest    not used, zero
//! ```
//! A copy: magic (8), generation (u64), length (u32), CRC-32 of everything else (u32), then the payload; numbers
//! little-endian. Reading takes the valid copy with the higher generation. Writing replaces the other one, then syncs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const HEADER: usize = 24;
const KIB: u64 = 1024;

/// Something with positioned reads and durable writes: the STATE partition.
pub trait Store {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The device's.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `data` at `offset`; durable only after [`Store::sync`].
    ///
    /// # Errors
    /// The device's.
    fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when everything written is durable.
    ///
    /// # Errors
    /// The device's.
    fn sync(&mut self) -> io::Result<()>;
}

impl Store for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl<S: Store + ?Sized> Store for &mut S {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_at(buf, offset)
    }

    fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_at(data, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }
}

/// Why STATE could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The device failed.
    #[error("STATE, {what}: cannot {action}: {source}")]
    Io {
        /// Which thing.
        what: &'static str,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// It does not fit.
    #[error("STATE, {what}: {found} bytes, expected at most {limit}")]
    TooLarge {
        /// Which thing.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The size of its place.
        limit: usize,
    },
    /// A copy is intact and its contents are not understood.
    #[error("STATE, {what}: {cause}")]
    Contents {
        /// Which thing.
        what: &'static str,
        /// What is wrong.
        cause: String,
    },
}

/// The place of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    what: &'static str,
    magic: &'static [u8; 8],
    offset: u64,
    size: u64,
}

/// Place of the slot record.
pub const RECORD: Cell = Cell { what: "slot record", magic: b"HFSLOT01", offset: 0, size: 64 * KIB };
/// Place of the boot diary.
pub const DIARY: Cell = Cell { what: "boot diary", magic: b"HFDIARY1", offset: 128 * KIB, size: 256 * KIB };
/// Place of the last kernel log.
pub const KERNEL_LOG: Cell = Cell { what: "kernel log", magic: b"HFKLOG01", offset: 1024 * KIB, size: 1024 * KIB };

impl Cell {
    /// Most bytes of payload.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.size as usize - HEADER
    }

    /// The newest intact payload; `None` when there is none (never written, or both copies damaged).
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn read(&self, store: &(impl Store + ?Sized)) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.newest(store)?.map(|(_, _, payload)| payload))
    }

    /// Replaces the older copy and waits until it is durable.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::Io`].
    pub fn write(&self, store: &mut (impl Store + ?Sized), payload: &[u8]) -> Result<(), StoreError> {
        if payload.len() > self.capacity() {
            return Err(StoreError::TooLarge { what: self.what, found: payload.len(), limit: self.capacity() });
        }
        let (copy, generation) = match self.newest(store)? {
            Some((copy, generation, _)) => (1 - copy, generation.wrapping_add(1)),
            None => (0, 1),
        };
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend(self.magic);
        bytes.extend(generation.to_le_bytes());
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(crc(&bytes, payload).to_le_bytes());
        bytes.extend(payload);
        // Whole sectors, so that the device never reads before it writes.
        bytes.resize(bytes.len().next_multiple_of(4096).min(self.size as usize), 0);
        let failed = |action| move |source| StoreError::Io { what: self.what, action, source };
        store.write_at(&bytes, self.offset + copy * self.size).map_err(failed("write"))?;
        store.sync().map_err(failed("sync"))
    }

    fn newest(&self, store: &(impl Store + ?Sized)) -> Result<Option<(u64, u64, Vec<u8>)>, StoreError> {
        let mut best: Option<(u64, u64, Vec<u8>)> = None;
        for copy in 0..2 {
            let at = self.offset + copy * self.size;
            if let Some((generation, payload)) = self.read_copy(store, at)?
                && best.as_ref().is_none_or(|(_, g, _)| generation > *g)
            {
                best = Some((copy, generation, payload));
            }
        }
        Ok(best)
    }

    fn read_copy(&self, store: &(impl Store + ?Sized), at: u64) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        let failed = |source| StoreError::Io { what: self.what, action: "read", source };
        let mut header = [0u8; HEADER];
        store.read_at(&mut header, at).map_err(failed)?;
        let (head, stored) = header.split_at(HEADER - 4);
        let number = |from: usize| u32::from_le_bytes([head[from], head[from + 1], head[from + 2], head[from + 3]]);
        let length = number(16) as usize;
        if &head[..8] != self.magic || length > self.capacity() {
            return Ok(None);
        }
        let mut payload = vec![0u8; length];
        store.read_at(&mut payload, at + HEADER as u64).map_err(failed)?;
        let generation = u64::from(number(8)) | u64::from(number(12)) << 32;
        let intact = crc(head, &payload).to_le_bytes() == stored;
        Ok(intact.then_some((generation, payload)))
    }

    pub(crate) fn contents_error(&self, cause: impl ToString) -> StoreError {
        StoreError::Contents { what: self.what, cause: cause.to_string() }
    }
}

fn crc(head: &[u8], payload: &[u8]) -> u32 {
    let mut h = crc32fast::Hasher::new();
    h.update(head);
    h.update(payload);
    h.finalize()
}

/// Fuzz entry: the bytes of a STATE partition.
#[doc(hidden)]
pub fn fuzz_state(data: &[u8]) {
    let mut image = data.to_vec();
    image.resize(3 << 20, 0);
    let store = tests_support::Memory::new(image);
    let _ = crate::Record::load(&store);
    let _ = crate::diary::Diary::load(&store);
    let _ = crate::diary::load_kernel_log(&store);
    let _ = serde_json::from_slice::<crate::Record>(data);
    let _ = serde_json::from_slice::<crate::diary::Diary>(data);
}

/// A STATE partition in memory whose writes can be cut; used by tests and fuzzing.
#[doc(hidden)]
pub mod tests_support {
    use super::Store;
    use std::io;

    /// Bytes, and how many more bytes may reach the medium before the power goes.
    #[derive(Debug, Clone)]
    pub struct Memory {
        /// What is on the medium.
        pub bytes: Vec<u8>,
        /// `None`: power stays on.
        pub power: Option<usize>,
    }

    impl Memory {
        /// Over these bytes, power on.
        #[must_use]
        pub fn new(bytes: Vec<u8>) -> Memory {
            Memory { bytes, power: None }
        }
    }

    impl Store for Memory {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            let at = offset as usize;
            let part = self.bytes.get(at..at + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buf.copy_from_slice(part);
            Ok(())
        }

        fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
            let at = offset as usize;
            let n = self.power.map_or(data.len(), |p| p.min(data.len()));
            self.bytes[at..at + n].copy_from_slice(&data[..n]);
            if let Some(p) = &mut self.power {
                *p -= n;
                if n < data.len() {
                    return Err(io::Error::other("power cut"));
                }
            }
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::tests_support::Memory;
    use super::*;
    use proptest::prelude::*;

    fn blank() -> Memory {
        Memory::new(vec![0; 3 << 20])
    }

    #[test]
    fn the_places_do_not_overlap_and_fit_the_partition() {
        let mut at = 0;
        for c in [RECORD, DIARY, KERNEL_LOG] {
            assert!(c.offset >= at, "{}", c.what);
            at = c.offset + 2 * c.size;
        }
        assert!(at <= holdfast_format::layout::Part::State.size_bytes().unwrap());
    }

    #[test]
    fn a_golden_copy_has_the_documented_bytes() {
        let mut s = blank();
        RECORD.write(&mut s, b"hello").unwrap();
        assert_eq!(&s.bytes[..20], b"HFSLOT01\x01\0\0\0\0\0\0\0\x05\0\0\0");
        assert_eq!(&s.bytes[24..29], b"hello");
        RECORD.write(&mut s, b"again").unwrap();
        assert_eq!(&s.bytes[64 * 1024..][..16], b"HFSLOT01\x02\0\0\0\0\0\0\0");
        assert_eq!(&s.bytes[24..29], b"hello", "the older copy stays");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_the_old_stays() {
        let mut s = blank();
        DIARY.write(&mut s, b"old").unwrap();
        assert!(matches!(DIARY.write(&mut s, &vec![0; 256 * 1024]), Err(StoreError::TooLarge { .. })));
        assert_eq!(DIARY.read(&s).unwrap().unwrap(), b"old");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Every cut, whole or within a write, leaves the last payload or the one before.
        #[test]
        fn a_power_cut_leaves_the_old_or_the_new(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6000), 1..6),
            cut in 0usize..40_000,
            torn in any::<bool>(),
        ) {
            let mut s = blank();
            RECORD.write(&mut s, b"first").unwrap();
            s.power = Some(cut);
            let mut durable: Vec<u8> = b"first".to_vec();
            let mut attempted = durable.clone();
            let mut written = 1;
            for p in &payloads {
                attempted = p.clone();
                if RECORD.write(&mut s, p).is_err() {
                    break;
                }
                durable = p.clone();
                written += 1;
            }
            s.power = None;
            if torn && attempted != durable {
                // The medium may also have garbled a sector of the copy that was being written.
                let at = (cut % 4096) / 512 * 512;
                s.bytes[written % 2 * 64 * 1024 + at] ^= 0xff;
            }
            let found = RECORD.read(&s).unwrap().unwrap();
            prop_assert!(found == durable || found == attempted);
            // And the next write works.
            RECORD.write(&mut s, b"next").unwrap();
            prop_assert_eq!(RECORD.read(&s).unwrap().unwrap(), b"next");
        }

        #[test]
        fn hostile_bytes_do_not_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz_state(&data);
            fuzz_state(&[b"HFSLOT01".as_slice(), &data].concat());
        }
    }
}
