//! The disk layout: which partitions there are, how large, and under which GUIDs.
//!
//! ```text
//!  1 MiB   ESP-A  128 MiB   FAT, EFI/BOOT/BOOTX64.EFI = slot A's UKI
//!          ESP-B  128 MiB   the same for slot B
//!          OS-A   512 MiB   erofs, then its verity tree
//!          OS-B   512 MiB
//!          SITE    16 MiB   site document
//!          STATE   16 MiB   slot record, boot diary, last kernel log
//!          DATA    rest     dm-crypt, ext4; the only one that grows
//! ```
//! The sizes of all but DATA may never change: they are the same on every machine that was ever flashed.

use crate::gpt::{GptError, Partition, SECTOR, Table};
use crate::guid::Guid;
pub use holdfast_model::slot::Slot;

/// One MiB: the alignment of every partition.
pub const MIB: u64 = 1 << 20;

/// Smallest DATA that an image may carry, in bytes.
pub const DATA_MIN: u64 = 64 * MIB;

/// GPT type of the EFI system partition. Only ESP-A has it, so that firmware which lost its variables finds slot A
/// and does not invent a boot entry for slot B.
pub const TYPE_ESP: Guid =
    Guid::from_fields(0xC12A_7328, 0xF81F, 0x11D2, [0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E, 0xC9, 0x3B]);

/// GPT type "Linux filesystem data", for everything that is not ESP-A: nothing may act on it by type.
pub const TYPE_LINUX: Guid =
    Guid::from_fields(0x0FC6_3DAF, 0x8483, 0x4772, [0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D, 0xE4]);

/// The partitions, in disk order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// FAT with slot A's UKI.
    EspA,
    /// FAT with slot B's UKI.
    EspB,
    /// Slot A's erofs and verity tree.
    OsA,
    /// Slot B's erofs and verity tree.
    OsB,
    /// Site document.
    Site,
    /// Slot record, diary, kernel log.
    State,
    /// The vault.
    Data,
}

impl Part {
    /// All partitions in disk order.
    pub const ALL: [Part; 7] = [Part::EspA, Part::EspB, Part::OsA, Part::OsB, Part::Site, Part::State, Part::Data];

    /// GPT partition name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Part::EspA => "ESP-A",
            Part::EspB => "ESP-B",
            Part::OsA => "OS-A",
            Part::OsB => "OS-B",
            Part::Site => "SITE",
            Part::State => "STATE",
            Part::Data => "DATA",
        }
    }

    /// Size in bytes; `None` for DATA, which takes the rest.
    #[must_use]
    pub const fn size_bytes(self) -> Option<u64> {
        match self {
            Part::EspA | Part::EspB => Some(128 * MIB),
            Part::OsA | Part::OsB => Some(512 * MIB),
            Part::Site | Part::State => Some(16 * MIB),
            Part::Data => None,
        }
    }

    /// GPT type GUID.
    #[must_use]
    pub const fn type_guid(self) -> Guid {
        match self {
            Part::EspA => TYPE_ESP,
            _ => TYPE_LINUX,
        }
    }

    /// Unique partition GUID. The same on every machine: boot entries name it, and it identifies nobody.
    #[must_use]
    pub fn guid(self) -> Guid {
        Guid::named(self.name())
    }

    /// ESP of a slot.
    #[must_use]
    pub const fn esp(slot: Slot) -> Part {
        match slot {
            Slot::A => Part::EspA,
            Slot::B => Part::EspB,
        }
    }

    /// OS partition of a slot.
    #[must_use]
    pub const fn os(slot: Slot) -> Part {
        match slot {
            Slot::A => Part::OsA,
            Slot::B => Part::OsB,
        }
    }

    /// The slot whose ESP or OS partition this is.
    #[must_use]
    pub const fn slot(self) -> Option<Slot> {
        match self {
            Part::EspA | Part::OsA => Some(Slot::A),
            Part::EspB | Part::OsB => Some(Slot::B),
            _ => None,
        }
    }
}

/// The slot whose ESP has this unique partition GUID (what `LoaderDevicePartUUID` says).
#[must_use]
pub fn slot_of_esp(guid: Guid) -> Option<Slot> {
    Slot::ALL.into_iter().find(|s| Part::esp(*s).guid() == guid)
}

/// Length of a disk image whose DATA partition has `data_bytes` (rounded up to MiB, at least [`DATA_MIN`]).
#[must_use]
pub fn image_bytes(data_bytes: u64) -> u64 {
    let fixed: u64 = Part::ALL.iter().filter_map(|p| p.size_bytes()).sum();
    // One MiB in front for the primary table, one behind for the backup.
    MIB + fixed + crate::io::round_up(data_bytes.max(DATA_MIN), MIB) + MIB
}

/// The partition table of a disk of `disk_bytes`, DATA taking what is left.
///
/// # Errors
/// [`GptError::TooSmall`] when DATA would be smaller than [`DATA_MIN`].
pub fn table(disk_bytes: u64) -> Result<Table, GptError> {
    let needed = image_bytes(DATA_MIN);
    if disk_bytes < needed {
        return Err(GptError::TooSmall { disk_bytes, needed_bytes: needed });
    }
    let end = crate::gpt::usable_end(disk_bytes) / MIB * MIB;
    let mut at = MIB;
    let partitions = Part::ALL
        .into_iter()
        .map(|part| {
            let size = part.size_bytes().unwrap_or(end - at);
            let p = Partition {
                name: part.name().into(),
                type_guid: part.type_guid(),
                guid: part.guid(),
                first_lba: at / SECTOR,
                last_lba: (at + size) / SECTOR - 1,
                attributes: 0,
            };
            at += size;
            p
        })
        .collect();
    Ok(Table { disk_guid: Guid::named("holdfast disk"), disk_bytes, partitions })
}

/// Checks that a table read from a disk is ours: every partition present once, with its size and GUID.
///
/// # Errors
/// [`GptError::Layout`] names the first partition that differs.
pub fn check(table: &Table) -> Result<(), GptError> {
    for part in Part::ALL {
        let wrong = |found: String| GptError::Layout { partition: part.name(), found };
        let p = table.find(part.name()).ok_or_else(|| wrong("no such partition".into()))?;
        if p.guid != part.guid() {
            return Err(wrong(format!("GUID {}, expected {}", p.guid, part.guid())));
        }
        match part.size_bytes() {
            Some(size) if size != p.size_bytes() => {
                return Err(wrong(format!("{} bytes, expected {size}", p.size_bytes())));
            }
            None if p.size_bytes() < DATA_MIN => {
                return Err(wrong(format!("{} bytes, expected at least {DATA_MIN}", p.size_bytes())));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_fills_the_disk_without_gaps_or_overlap() {
        let t = table(8 << 30).unwrap();
        check(&t).unwrap();
        assert_eq!(t.partitions[0].first_lba, 2048);
        for w in t.partitions.windows(2) {
            assert_eq!(w[0].last_lba + 1, w[1].first_lba);
        }
        assert_eq!((t.partitions[6].last_lba + 1) % 2048, 0);
    }

    #[test]
    fn sizes_of_deployed_partitions_never_change() {
        let sizes: Vec<u64> = Part::ALL.iter().filter_map(|p| p.size_bytes()).map(|b| b / MIB).collect();
        assert_eq!(sizes, [128, 128, 512, 512, 16, 16]);
    }

    #[test]
    fn the_smallest_image_is_accepted_and_one_sector_less_is_not() {
        let n = image_bytes(0);
        assert_eq!(table(n).unwrap().find("DATA").unwrap().size_bytes(), DATA_MIN);
        assert!(matches!(table(n - 512), Err(GptError::TooSmall { .. })));
    }

    #[test]
    fn a_slot_is_known_by_its_esp() {
        assert_eq!(slot_of_esp(Part::EspB.guid()), Some(Slot::B));
        assert_eq!(slot_of_esp(Part::OsB.guid()), None);
    }
}
