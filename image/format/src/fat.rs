//! A FAT file system holding exactly one file, `EFI/BOOT/BOOTX64.EFI` (Microsoft FAT specification 1.03).
//!
//! ```text
//!  reserved sectors   boot sector; on FAT32 also FSInfo (1) and the backup boot sector (6)
//!  FAT, FAT
//!  root directory     fixed area on FAT16, cluster 2 on FAT32
//!  EFI/, BOOT/        one cluster each
//!  the file           contiguous
//!  nothing            never written: the FATs say it is free
//! ```
//! Only the used head is produced; the rest of the partition keeps whatever it held. All dates are 1980-01-01.

const SECTOR: usize = 512;
const FATS: usize = 2;
/// A volume with fewer clusters than this is FAT12, which firmware need not read.
const FAT16_MIN: u64 = 4085;
/// From here on the volume is FAT32.
const FAT32_MIN: u64 = 65525;
const DATE_1980: u16 = 0x0021;
const ATTR_DIRECTORY: u8 = 0x10;
const ATTR_ARCHIVE: u8 = 0x20;
const ATTR_LABEL: u8 = 0x08;

/// Why no file system could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FatError {
    /// No FAT variant fits that size.
    #[error("no FAT file system can be made in {volume_bytes} bytes: expected whole sectors, 3 MiB to 64 GiB")]
    VolumeSize {
        /// Size asked for.
        volume_bytes: u64,
    },
    /// The file does not fit.
    #[error("file of {file_bytes} bytes does not fit in a FAT volume of {volume_bytes} bytes")]
    Full {
        /// Size of the file.
        file_bytes: u64,
        /// Size of the volume.
        volume_bytes: u64,
    },
}

struct Geometry {
    fat32: bool,
    total_sectors: u32,
    sectors_per_cluster: u32,
    reserved: u32,
    fat_sectors: u32,
    root_sectors: u32,
    clusters: u32,
}

/// The head of a FAT volume of `volume_bytes` with `file` as `EFI/BOOT/BOOTX64.EFI`. Everything behind the returned
/// bytes is free space. `label` seeds the volume serial number and is the volume label (cut to 11 characters).
///
/// # Errors
/// [`FatError`]: a size without FAT variant, or a file that does not fit.
pub fn esp_image(volume_bytes: u64, label: &str, file: &[u8]) -> Result<Vec<u8>, FatError> {
    let g = geometry(volume_bytes).ok_or(FatError::VolumeSize { volume_bytes })?;
    let cluster_bytes = (g.sectors_per_cluster as usize) * SECTOR;
    let file_clusters = file.len().div_ceil(cluster_bytes);
    let root_clusters = usize::from(g.fat32);
    let used_clusters = root_clusters + 2 + file_clusters;
    let full = FatError::Full { file_bytes: file.len() as u64, volume_bytes };
    if used_clusters > g.clusters as usize {
        return Err(full);
    }
    let size = u32::try_from(file.len()).map_err(|_| full)?;

    let data_start = (g.reserved + g.fat_sectors * FATS as u32 + g.root_sectors) as usize * SECTOR;
    let mut img = vec![0u8; data_start + used_clusters * cluster_bytes];
    let serial = crc32fast::hash(label.as_bytes());
    let label = short_label(label);

    let boot = boot_sector(&g, serial, &label);
    img[..SECTOR].copy_from_slice(&boot);
    if g.fat32 {
        let info = fs_info(g.clusters - used_clusters as u32, 2 + used_clusters as u32);
        img[SECTOR..2 * SECTOR].copy_from_slice(&info);
        img[6 * SECTOR..7 * SECTOR].copy_from_slice(&boot);
        img[7 * SECTOR..8 * SECTOR].copy_from_slice(&info);
    }

    // Clusters 2.. in order: root (FAT32), EFI, BOOT, file.
    let efi = 2 + root_clusters as u32;
    let (boot_dir, first) = (efi + 1, efi + 2);
    let mut fat = Vec::with_capacity(used_clusters + 2);
    fat.extend([0x0FFF_FFF8, 0x0FFF_FFFF]);
    fat.resize(2 + root_clusters + 2, 0x0FFF_FFFF);
    for i in 0..file_clusters as u32 {
        let last = i + 1 == file_clusters as u32;
        fat.push(if last { 0x0FFF_FFFF } else { first + i + 1 });
    }
    for copy in 0..FATS {
        let at = (g.reserved as usize + copy * g.fat_sectors as usize) * SECTOR;
        for (i, v) in fat.iter().enumerate() {
            if g.fat32 {
                img[at + 4 * i..at + 4 * i + 4].copy_from_slice(&v.to_le_bytes());
            } else {
                img[at + 2 * i..at + 2 * i + 2].copy_from_slice(&(*v as u16).to_le_bytes());
            }
        }
    }

    let cluster_at = |n: u32| data_start + (n as usize - 2) * cluster_bytes;
    let root_at = if g.fat32 { cluster_at(2) } else { data_start - g.root_sectors as usize * SECTOR };
    let mut put = |at: usize, name: &[u8; 11], attr: u8, cluster: u32, size: u32| {
        img[at..at + 32].copy_from_slice(&dir_entry(name, attr, cluster, size));
    };
    put(root_at, &label, ATTR_LABEL, 0, 0);
    put(root_at + 32, b"EFI        ", ATTR_DIRECTORY, efi, 0);
    // The parent of a directory in the root is written as cluster 0, also on FAT32.
    put(cluster_at(efi), b".          ", ATTR_DIRECTORY, efi, 0);
    put(cluster_at(efi) + 32, b"..         ", ATTR_DIRECTORY, 0, 0);
    put(cluster_at(efi) + 64, b"BOOT       ", ATTR_DIRECTORY, boot_dir, 0);
    put(cluster_at(boot_dir), b".          ", ATTR_DIRECTORY, boot_dir, 0);
    put(cluster_at(boot_dir) + 32, b"..         ", ATTR_DIRECTORY, efi, 0);
    let head = if file.is_empty() { 0 } else { first };
    put(cluster_at(boot_dir) + 64, b"BOOTX64 EFI", ATTR_ARCHIVE, head, size);
    let at = data_start + (root_clusters + 2) * cluster_bytes;
    img[at..at + file.len()].copy_from_slice(file);
    Ok(img)
}

/// FAT32 with the largest cluster that still makes it FAT32, else FAT16 with the smallest that does.
fn geometry(volume_bytes: u64) -> Option<Geometry> {
    if !volume_bytes.is_multiple_of(SECTOR as u64) {
        return None;
    }
    let total = u32::try_from(volume_bytes / SECTOR as u64).ok()?;
    let try_one = |fat32: bool, spc: u32| {
        let (reserved, root_sectors, entry) = if fat32 { (32, 0, 4) } else { (1, 32, 2) };
        let fat_sectors = (u64::from(total / spc) + 2) * entry;
        let fat_sectors = u32::try_from(fat_sectors.div_ceil(SECTOR as u64)).ok()?;
        let data = total.checked_sub(reserved + root_sectors)?.checked_sub(fat_sectors.checked_mul(FATS as u32)?)?;
        let clusters = data / spc;
        // Stay 16 away from the border between variants: some drivers count it one way, some another.
        let fits = match fat32 {
            true => u64::from(clusters) >= FAT32_MIN + 16 && clusters < 0x0FFF_FFF0,
            false => (FAT16_MIN + 16..FAT32_MIN - 16).contains(&u64::from(clusters)),
        };
        let g = Geometry {
            fat32,
            total_sectors: total,
            sectors_per_cluster: spc,
            reserved,
            fat_sectors,
            root_sectors,
            clusters,
        };
        fits.then_some(g)
    };
    let sizes = [1u32, 2, 4, 8, 16, 32];
    sizes.iter().rev().find_map(|s| try_one(true, *s)).or_else(|| sizes.iter().find_map(|s| try_one(false, *s)))
}

fn short_label(label: &str) -> [u8; 11] {
    let mut out = *b"           ";
    let ascii = label.bytes().map(|b| b.to_ascii_uppercase()).filter(|b| b.is_ascii_alphanumeric() || *b == b'-');
    out.iter_mut().zip(ascii).for_each(|(o, b)| *o = b);
    out
}

fn boot_sector(g: &Geometry, serial: u32, label: &[u8; 11]) -> [u8; SECTOR] {
    let mut b = [0u8; SECTOR];
    b[0..3].copy_from_slice(&[0xEB, if g.fat32 { 0x58 } else { 0x3C }, 0x90]);
    b[3..11].copy_from_slice(b"HOLDFAST");
    b[11..13].copy_from_slice(&(SECTOR as u16).to_le_bytes());
    b[13] = g.sectors_per_cluster as u8;
    b[14..16].copy_from_slice(&(g.reserved as u16).to_le_bytes());
    b[16] = FATS as u8;
    b[17..19].copy_from_slice(&((g.root_sectors * 16) as u16).to_le_bytes());
    let small = u16::try_from(g.total_sectors).ok().filter(|_| !g.fat32);
    b[19..21].copy_from_slice(&small.unwrap_or(0).to_le_bytes());
    b[21] = 0xF8; // fixed disk
    b[24..26].copy_from_slice(&63u16.to_le_bytes());
    b[26..28].copy_from_slice(&255u16.to_le_bytes());
    if small.is_none() {
        b[32..36].copy_from_slice(&g.total_sectors.to_le_bytes());
    }
    let tail = if g.fat32 {
        b[36..40].copy_from_slice(&g.fat_sectors.to_le_bytes());
        b[44..48].copy_from_slice(&2u32.to_le_bytes()); // root directory cluster
        b[48..50].copy_from_slice(&1u16.to_le_bytes()); // FSInfo
        b[50..52].copy_from_slice(&6u16.to_le_bytes()); // backup boot sector
        64
    } else {
        b[22..24].copy_from_slice(&(g.fat_sectors as u16).to_le_bytes());
        36
    };
    b[tail] = 0x80;
    b[tail + 2] = 0x29;
    b[tail + 3..tail + 7].copy_from_slice(&serial.to_le_bytes());
    b[tail + 7..tail + 18].copy_from_slice(label);
    b[tail + 18..tail + 26].copy_from_slice(if g.fat32 { b"FAT32   " } else { b"FAT16   " });
    b[510..512].copy_from_slice(&[0x55, 0xAA]);
    b
}

fn fs_info(free: u32, next_free: u32) -> [u8; SECTOR] {
    let mut b = [0u8; SECTOR];
    b[0..4].copy_from_slice(b"RRaA");
    b[484..488].copy_from_slice(b"rrAa");
    b[488..492].copy_from_slice(&free.to_le_bytes());
    b[492..496].copy_from_slice(&next_free.to_le_bytes());
    b[510..512].copy_from_slice(&[0x55, 0xAA]);
    b
}

fn dir_entry(name: &[u8; 11], attr: u8, cluster: u32, size: u32) -> [u8; 32] {
    let mut e = [0u8; 32];
    e[..11].copy_from_slice(name);
    e[11] = attr;
    for at in [16, 18, 24] {
        e[at..at + 2].copy_from_slice(&DATE_1980.to_le_bytes());
    }
    e[20..22].copy_from_slice(&((cluster >> 16) as u16).to_le_bytes());
    e[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
    e[28..32].copy_from_slice(&size.to_le_bytes());
    e
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MIB;

    #[test]
    fn an_esp_is_fat32_and_a_small_volume_fat16() {
        assert_eq!(&esp_image(128 * MIB, "ESP", b"x").unwrap()[82..90], b"FAT32   ");
        assert_eq!(&esp_image(16 * MIB, "ESP", b"x").unwrap()[54..62], b"FAT16   ");
    }

    #[test]
    fn only_the_used_head_is_produced() {
        let file = vec![7u8; 3_000_000];
        let img = esp_image(128 * MIB, "ESP", &file).unwrap();
        assert!(img.len() < 3_000_000 + 2 * 1024 * 1024, "{}", img.len());
        let img2 = esp_image(128 * MIB, "ESP", &file).unwrap();
        assert_eq!(img, img2);
    }

    #[test]
    fn a_file_larger_than_the_volume_is_refused() {
        assert!(matches!(esp_image(4 * MIB, "ESP", &vec![0; 4 << 20]), Err(FatError::Full { .. })));
        assert!(matches!(esp_image(MIB, "ESP", b""), Err(FatError::VolumeSize { .. })));
        assert!(matches!(esp_image(4 * MIB + 1, "ESP", b""), Err(FatError::VolumeSize { .. })));
    }
}
