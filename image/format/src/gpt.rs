//! GUID partition tables (UEFI 2.10 §5): write a whole one, read an untrusted one, grow the last partition.
//!
//! ```text
//!  LBA 0        protective MBR
//!  LBA 1        primary header     "EFI PART", revision 1.0, 92 bytes, CRC32
//!  LBA 2..33    128 entries of 128 bytes
//!  ...
//!  last-32..    the same entries
//!  last         backup header
//! ```
//! Only 512-byte sectors: an image made for them cannot be read on a 4Kn disk, which [`Table::read`] says by name.

use crate::guid::Guid;
use crate::io::{Extent, ReadAt, le32, le64};
use std::io;

/// Sector size in bytes.
pub const SECTOR: u64 = 512;
/// Entries in a table we write; also the most we read.
const ENTRIES: u32 = 128;
const ENTRY_BYTES: usize = 128;
const ENTRIES_BYTES: usize = ENTRIES as usize * ENTRY_BYTES;
const ENTRIES_SECTORS: u64 = ENTRIES_BYTES as u64 / SECTOR;
const HEADER_BYTES: usize = 92;
const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
/// First LBA behind the primary table.
const FIRST_USABLE: u64 = 2 + ENTRIES_SECTORS;
const ALIGN: u64 = 2048;

/// What can be wrong with a partition table.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// The disk cannot hold the table or its partitions.
    #[error("disk of {disk_bytes} bytes is too small: {needed_bytes} bytes are needed")]
    TooSmall {
        /// Size of the disk.
        disk_bytes: u64,
        /// Size that would do.
        needed_bytes: u64,
    },
    /// Reading failed.
    #[error("cannot read the partition table at byte {offset}: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// Neither copy is valid.
    #[error("no valid partition table: primary: {primary}; backup: {backup}")]
    NoTable {
        /// What is wrong with the primary.
        primary: Box<GptError>,
        /// What is wrong with the backup.
        backup: Box<GptError>,
    },
    /// A header is malformed.
    #[error("GPT header at LBA {lba}: {what}")]
    Header {
        /// Where the header was looked for.
        lba: u64,
        /// What is wrong.
        what: String,
    },
    /// An entry is malformed.
    #[error("GPT entry {index}: {what}")]
    Entry {
        /// Index from 0.
        index: usize,
        /// What is wrong.
        what: String,
    },
    /// The table is valid but not Holdfast's layout.
    #[error("partition {partition}: {found}; this disk does not carry the Holdfast layout, flash it again")]
    Layout {
        /// GPT name.
        partition: &'static str,
        /// What was found.
        found: String,
    },
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// At most 36 UTF-16 units.
    pub name: String,
    /// What it is for.
    pub type_guid: Guid,
    /// Which one it is.
    pub guid: Guid,
    /// First sector.
    pub first_lba: u64,
    /// Last sector, inclusive.
    pub last_lba: u64,
    /// Attribute bits.
    pub attributes: u64,
}

impl Partition {
    /// Byte offset on the disk.
    #[must_use]
    pub fn offset_bytes(&self) -> u64 {
        self.first_lba * SECTOR
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (self.last_lba - self.first_lba + 1) * SECTOR
    }
}

/// A partition table and the size of the disk it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Identity of the disk.
    pub disk_guid: Guid,
    /// Size the table believes the disk to have (backup header in its last sector).
    pub disk_bytes: u64,
    /// Used entries, in table order.
    pub partitions: Vec<Partition>,
}

/// Which copies of a table were valid and where the table thinks the disk ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// The copy at LBA 1 is valid.
    pub primary: bool,
    /// The copy that the primary points at (or in the last sector) is valid and agrees.
    pub backup: bool,
    /// The backup sits in the disk's last sector.
    pub backup_at_end: bool,
}

/// First byte behind the last usable sector of a disk.
#[must_use]
pub fn usable_end(disk_bytes: u64) -> u64 {
    (disk_bytes / SECTOR).saturating_sub(ENTRIES_SECTORS + 1) * SECTOR
}

impl Table {
    /// The partition of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.name == name)
    }

    /// Everything to write, in the order in which to write it: backup entries and header first, then the protective
    /// MBR with primary header and entries. With a sync between the two, a power cut leaves one valid copy.
    ///
    /// # Errors
    /// A partition that overlaps another, lies outside the disk or has too long a name.
    pub fn encode(&self) -> Result<[Extent; 2], GptError> {
        let sectors = self.disk_bytes / SECTOR;
        let needed = 2 * FIRST_USABLE * SECTOR;
        if self.disk_bytes < needed {
            return Err(GptError::TooSmall { disk_bytes: self.disk_bytes, needed_bytes: needed });
        }
        self.check_partitions()?;
        let last = sectors - 1;
        let entries = self.entries();
        let entries_crc = crc32fast::hash(&entries);
        let mut backup = entries.clone();
        backup.extend(self.header(last, 1, last - ENTRIES_SECTORS, entries_crc));
        let mut primary = protective_mbr(sectors);
        primary.extend(self.header(1, last, 2, entries_crc));
        primary.extend(entries);
        Ok([Extent { offset: (last - ENTRIES_SECTORS) * SECTOR, data: backup }, Extent { offset: 0, data: primary }])
    }

    /// Reads and validates the table of a disk of `disk_bytes`: the primary, or the backup if the primary is damaged.
    ///
    /// # Errors
    /// [`GptError::NoTable`] with what is wrong with each copy.
    pub fn read(disk: &(impl ReadAt + ?Sized), disk_bytes: u64) -> Result<(Table, Health), GptError> {
        let end_lba = (disk_bytes / SECTOR).saturating_sub(1);
        let primary = read_copy(disk, disk_bytes, 1);
        let backup_lba = primary.as_ref().map_or(end_lba, |t| t.disk_bytes / SECTOR - 1);
        let backup = read_copy(disk, disk_bytes, backup_lba);
        let backup_at_end = backup_lba == end_lba;
        match (primary, backup) {
            (Ok(p), b) => {
                let backup = b.is_ok_and(|b| b == p);
                Ok((p, Health { primary: true, backup, backup_at_end }))
            }
            (Err(_), Ok(b)) => Ok((b, Health { primary: false, backup: true, backup_at_end })),
            (Err(p), Err(b)) => Err(GptError::NoTable { primary: p.into(), backup: b.into() }),
        }
    }

    /// The table for a disk that is larger than this table believes (an image written to a larger disk): the last
    /// partition is extended to the last whole MiB. `None` when nothing would change.
    #[must_use]
    pub fn grow_last(&self, disk_bytes: u64) -> Option<Table> {
        let disk_bytes = disk_bytes / SECTOR * SECTOR;
        if disk_bytes <= self.disk_bytes {
            return None;
        }
        let last_lba = (usable_end(disk_bytes) / SECTOR / ALIGN * ALIGN).saturating_sub(1);
        let mut grown = Table { disk_bytes, ..self.clone() };
        let p = grown.partitions.iter_mut().max_by_key(|p| p.last_lba)?;
        p.last_lba = p.last_lba.max(last_lba);
        Some(grown)
    }

    fn check_partitions(&self) -> Result<(), GptError> {
        let last_usable = usable_end(self.disk_bytes) / SECTOR - 1;
        let bad = |index: usize, what: String| Err(GptError::Entry { index, what });
        if self.partitions.len() > ENTRIES as usize {
            return bad(self.partitions.len(), format!("more than {ENTRIES} partitions"));
        }
        for (i, p) in self.partitions.iter().enumerate() {
            if p.first_lba < FIRST_USABLE || p.last_lba < p.first_lba || p.last_lba > last_usable {
                return bad(
                    i,
                    format!(
                        "{:?} covers LBA {} to {}, expected within {FIRST_USABLE} to {last_usable}",
                        p.name, p.first_lba, p.last_lba
                    ),
                );
            }
            if p.name.encode_utf16().count() > 36 {
                return bad(i, format!("name {:?} is longer than 36 UTF-16 units", p.name));
            }
            for (j, q) in self.partitions[..i].iter().enumerate() {
                if p.first_lba <= q.last_lba && q.first_lba <= p.last_lba {
                    return bad(i, format!("{:?} overlaps entry {j}, {:?}", p.name, q.name));
                }
                if p.guid == q.guid {
                    return bad(i, format!("{:?} has the same GUID as entry {j}, {:?}", p.name, q.name));
                }
            }
        }
        Ok(())
    }

    fn entries(&self) -> Vec<u8> {
        let mut out = vec![0u8; ENTRIES_BYTES];
        for (p, e) in self.partitions.iter().zip(out.chunks_exact_mut(ENTRY_BYTES)) {
            e[0..16].copy_from_slice(&p.type_guid.0);
            e[16..32].copy_from_slice(&p.guid.0);
            e[32..40].copy_from_slice(&p.first_lba.to_le_bytes());
            e[40..48].copy_from_slice(&p.last_lba.to_le_bytes());
            e[48..56].copy_from_slice(&p.attributes.to_le_bytes());
            for (unit, at) in p.name.encode_utf16().zip(e[56..].chunks_exact_mut(2)) {
                at.copy_from_slice(&unit.to_le_bytes());
            }
        }
        out
    }

    fn header(&self, my_lba: u64, alternate_lba: u64, entries_lba: u64, entries_crc: u32) -> Vec<u8> {
        let mut h = vec![0u8; SECTOR as usize];
        h[0..8].copy_from_slice(SIGNATURE);
        h[8..12].copy_from_slice(&REVISION.to_le_bytes());
        h[12..16].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        h[24..32].copy_from_slice(&my_lba.to_le_bytes());
        h[32..40].copy_from_slice(&alternate_lba.to_le_bytes());
        h[40..48].copy_from_slice(&FIRST_USABLE.to_le_bytes());
        h[48..56].copy_from_slice(&(usable_end(self.disk_bytes) / SECTOR - 1).to_le_bytes());
        h[56..72].copy_from_slice(&self.disk_guid.0);
        h[72..80].copy_from_slice(&entries_lba.to_le_bytes());
        h[80..84].copy_from_slice(&ENTRIES.to_le_bytes());
        h[84..88].copy_from_slice(&(ENTRY_BYTES as u32).to_le_bytes());
        h[88..92].copy_from_slice(&entries_crc.to_le_bytes());
        let crc = crc32fast::hash(&h[..HEADER_BYTES]);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        h
    }
}

/// UEFI 2.10 §5.2.3: one entry of type 0xEE over the whole disk, capped at 32 bits.
fn protective_mbr(sectors: u64) -> Vec<u8> {
    let mut m = vec![0u8; SECTOR as usize];
    let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    m[446..462].copy_from_slice(&[0x00, 0x00, 0x02, 0x00, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 0, 0, 0, 0]);
    m[458..462].copy_from_slice(&size.to_le_bytes());
    m[510..512].copy_from_slice(&[0x55, 0xAA]);
    m
}

fn read_copy(disk: &(impl ReadAt + ?Sized), disk_bytes: u64, lba: u64) -> Result<Table, GptError> {
    let read = |buf: &mut [u8], lba: u64| {
        let offset = lba.saturating_mul(SECTOR);
        disk.read_exact_at(buf, offset).map_err(|source| GptError::Read { offset, source })
    };
    let bad = |what: String| GptError::Header { lba, what };
    let mut h = [0u8; SECTOR as usize];
    read(&mut h, lba)?;
    let u32at = |at| le32(&h, at).unwrap_or_default();
    let u64at = |at| le64(&h, at).unwrap_or_default();
    if &h[0..8] != SIGNATURE {
        return Err(bad("no signature \"EFI PART\" (never partitioned, or a disk with 4096-byte sectors)".into()));
    }
    let header_bytes = u32at(12) as usize;
    if !(HEADER_BYTES..=SECTOR as usize).contains(&header_bytes) {
        return Err(bad(format!("header size {header_bytes}, expected {HEADER_BYTES}")));
    }
    let stored = u32at(16);
    let mut zeroed = h;
    zeroed[16..20].fill(0);
    let computed = crc32fast::hash(&zeroed[..header_bytes]);
    if stored != computed {
        return Err(bad(format!("CRC {stored:08x}, expected {computed:08x}")));
    }
    if u64at(24) != lba {
        return Err(bad(format!("says it is at LBA {}", u64at(24))));
    }
    // The size that the table believes in follows from where the last of the two headers is.
    let last = lba.max(u64at(32));
    let believed = last.checked_add(1).and_then(|s| s.checked_mul(SECTOR)).filter(|b| *b <= disk_bytes);
    let Some(believed) = believed else {
        return Err(bad(format!("last sector {last} lies beyond the disk of {disk_bytes} bytes (image cut short?)")));
    };
    let (count, size, entries_lba) = (u32at(80), u32at(84), u64at(72));
    if count == 0 || count > ENTRIES || size as usize != ENTRY_BYTES {
        return Err(bad(format!("{count} entries of {size} bytes, expected at most {ENTRIES} of {ENTRY_BYTES}")));
    }
    if entries_lba < 2 || entries_lba > last {
        return Err(bad(format!("entries at LBA {entries_lba}, outside the disk")));
    }
    let mut raw = vec![0u8; count as usize * ENTRY_BYTES];
    read(&mut raw, entries_lba)?;
    let (stored, computed) = (u32at(88), crc32fast::hash(&raw));
    if stored != computed {
        return Err(bad(format!("CRC of the entries {stored:08x}, expected {computed:08x}")));
    }
    if believed < 2 * FIRST_USABLE * SECTOR {
        return Err(GptError::TooSmall { disk_bytes: believed, needed_bytes: 2 * FIRST_USABLE * SECTOR });
    }
    let mut guid = [0u8; 16];
    guid.copy_from_slice(&h[56..72]);
    let partitions = raw.chunks_exact(ENTRY_BYTES).filter(|e| e[..16] != [0; 16]).map(parse_entry).collect();
    let table = Table { disk_guid: Guid(guid), disk_bytes: believed, partitions };
    table.check_partitions()?;
    Ok(table)
}

fn parse_entry(e: &[u8]) -> Partition {
    let guid = |at: usize| {
        let mut g = [0u8; 16];
        g.copy_from_slice(&e[at..at + 16]);
        Guid(g)
    };
    let units = e[56..].chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).take_while(|u| *u != 0);
    Partition {
        name: char::decode_utf16(units).map(|c| c.unwrap_or('?')).collect(),
        type_guid: guid(0),
        guid: guid(16),
        first_lba: le64(e, 32).unwrap_or_default(),
        last_lba: le64(e, 40).unwrap_or_default(),
        attributes: le64(e, 48).unwrap_or_default(),
    }
}

/// Fuzz entry: a whole small disk.
#[doc(hidden)]
pub fn fuzz_gpt(data: &[u8]) {
    if let Ok((t, _)) = Table::read(data, data.len() as u64) {
        let _ = crate::layout::check(&t);
        let _ = t.grow_last(data.len() as u64 * 2).map(|t| t.encode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout;
    use proptest::prelude::*;

    /// A sparse disk: only what was written is held.
    struct Disk(Vec<Extent>, u64);

    impl ReadAt for Disk {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            if offset + buf.len() as u64 > self.1 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf.fill(0);
            for e in &self.0 {
                for (i, b) in buf.iter_mut().enumerate() {
                    let at = offset + i as u64;
                    if at >= e.offset && at < e.offset + e.data.len() as u64 {
                        *b = e.data[(at - e.offset) as usize];
                    }
                }
            }
            Ok(())
        }
    }

    fn disk(t: &Table) -> Disk {
        Disk(t.encode().unwrap().to_vec(), t.disk_bytes)
    }

    #[test]
    fn what_was_written_is_read_back() {
        let t = layout::table(4 << 30).unwrap();
        let (r, health) = Table::read(&disk(&t), t.disk_bytes).unwrap();
        assert_eq!(r, t);
        assert_eq!(health, Health { primary: true, backup: true, backup_at_end: true });
    }

    #[test]
    fn a_damaged_primary_is_replaced_by_the_backup() {
        let t = layout::table(4 << 30).unwrap();
        let mut d = disk(&t);
        d.0[1].data[512 + 60] ^= 1;
        let (r, health) = Table::read(&d, t.disk_bytes).unwrap();
        assert_eq!(r, t);
        assert!(!health.primary && health.backup);
    }

    #[test]
    fn both_copies_damaged_are_both_named() {
        let t = layout::table(4 << 30).unwrap();
        let mut d = disk(&t);
        d.0[1].data[512 + 60] ^= 1;
        d.0[0].data[0] ^= 1;
        let text = Table::read(&d, t.disk_bytes).unwrap_err().to_string();
        assert!(text.contains("primary: GPT header at LBA 1") && text.contains("CRC of the entries"), "{text}");
    }

    #[test]
    fn an_image_on_a_larger_disk_grows_data_only() {
        let small = layout::table(layout::image_bytes(0)).unwrap();
        let mut d = disk(&small);
        d.1 = 100_000_000_512;
        let (t, health) = Table::read(&d, d.1).unwrap();
        assert!(!health.backup_at_end && health.backup);
        let grown = t.grow_last(d.1).unwrap();
        layout::check(&grown).unwrap();
        assert_eq!(grown.partitions[..6], small.partitions[..6]);
        assert!(grown.partitions[6].size_bytes() > 98_000_000_000);
        assert_eq!(grown.grow_last(d.1), None);
        let (again, health) = Table::read(&Disk(grown.encode().unwrap().to_vec(), d.1), d.1).unwrap();
        assert_eq!(again, grown);
        assert!(health.backup_at_end);
    }

    #[test]
    fn growing_survives_a_power_cut_between_the_two_copies() {
        let small = layout::table(layout::image_bytes(0)).unwrap();
        let size = 4u64 << 30;
        let grown = small.grow_last(size).unwrap();
        let [backup, primary] = grown.encode().unwrap();
        let mut d = disk(&small);
        d.1 = size;
        d.0.push(backup);
        assert_eq!(Table::read(&d, size).unwrap().0, small);
        // Torn primary: half of the new sectors are there.
        d.0.push(Extent { offset: 0, data: primary.data[..1024].to_vec() });
        assert_eq!(Table::read(&d, size).unwrap().0, grown);
    }

    #[test]
    fn an_image_cut_short_is_named() {
        let t = layout::table(4 << 30).unwrap();
        let mut d = disk(&t);
        d.1 = 3 << 30;
        assert!(Table::read(&d, d.1).unwrap_err().to_string().contains("image cut short"));
    }

    #[test]
    fn overlapping_partitions_are_refused() {
        let mut t = layout::table(4 << 30).unwrap();
        t.partitions[1].first_lba -= 1;
        assert!(matches!(t.encode(), Err(GptError::Entry { index: 1, .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_flipped_bit_of_the_primary_is_noticed(at in 512usize..512 + 92, bit in 0u8..8) {
            let t = layout::table(4 << 30).unwrap();
            let mut d = disk(&t);
            d.0[1].data[at] ^= 1 << bit;
            let (r, health) = Table::read(&d, t.disk_bytes).unwrap();
            prop_assert_eq!(r, t);
            prop_assert!(!health.primary);
        }

        #[test]
        fn hostile_headers_with_a_right_checksum_do_not_panic(
            at in 24usize..92,
            value in any::<u64>(),
            width in 1usize..8,
            grown in any::<bool>(),
        ) {
            // A disk of 100 KiB with one partition.
            let p = Partition {
                name: "x".into(),
                type_guid: layout::TYPE_LINUX,
                guid: Guid::named("x"),
                first_lba: 40,
                last_lba: 50,
                attributes: 0,
            };
            let t = Table { disk_guid: Guid::ZERO, disk_bytes: 100 * 1024, partitions: vec![p] };
            let mut image = vec![0u8; if grown { 300 * 1024 } else { 100 * 1024 }];
            for e in t.encode().unwrap() {
                image[e.offset as usize..][..e.data.len()].copy_from_slice(&e.data);
            }
            let end = (at + width).min(92);
            image[512 + at..512 + end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            image[528..532].fill(0);
            let crc = crc32fast::hash(&image[512..604]);
            image[528..532].copy_from_slice(&crc.to_le_bytes());
            fuzz_gpt(&image);
        }

        #[test]
        fn hostile_bytes_do_not_panic(data in proptest::collection::vec(any::<u8>(), 0..4096)) {
            fuzz_gpt(&data);
        }
    }
}
