//! From power-on to the kernel's first instruction: image and initrd in memory, ACPI tables, CPU state.
//!
//! Low memory while booting (all of it ordinary RAM to the guest afterwards, except the ACPI tables):
//!
//! ```text
//!  0x0500 GDT            0x6000 PVH start info    0x7000 zero page (boot_params)
//!  0x9000 page tables    0x2_0000 command line    0xE_0000 ACPI tables to 0xF_FFFF
//! ```

pub mod acpi;
pub mod cpu;
pub mod kernel;

use std::fs::File;

use crate::boot::kernel::{Entry, ImageError};
use crate::memory::{ECAM, GuestRam, ram_ranges};

/// Start of the ACPI tables; the RSDP comes first, where also a scan finds it.
pub const ACPI_START: u64 = 0xE_0000;
/// End of the area for ACPI tables.
pub const ACPI_END: u64 = 0x10_0000;
/// Global descriptor table.
pub(crate) const GDT: u64 = 0x500;
/// PVH start info, module list and memory map.
pub(crate) const PVH_INFO: u64 = 0x6000;
/// Linux zero page.
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Stack of the 64-bit entry, growing down.
pub(crate) const STACK: u64 = 0x8ff0;
/// Page tables of the 64-bit entry: PML4, PDPT, four page directories.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// Command line, at most 2048 bytes.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// End of memory below the legacy hole.
const LOW_END: u64 = 0x9_FC00;
/// Start of memory above the legacy hole.
const HIGH_START: u64 = 0x10_0000;

/// One entry of the memory map; types as in e820.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryMapEntry {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) usable: bool,
}

/// What the guest may use.
pub(crate) fn memory_map(memory_mib: u32) -> Vec<MemoryMapEntry> {
    let entry = |start: u64, end: u64, usable| MemoryMapEntry { start, len: end - start, usable };
    let mut map = vec![entry(0, LOW_END, true), entry(LOW_END, HIGH_START, false)];
    for (start, len) in ram_ranges(memory_mib) {
        map.push(entry(start.max(HIGH_START), start + len, true));
    }
    // A kernel uses ECAM only when its range is reserved.
    map.push(entry(ECAM.0, ECAM.0 + ECAM.1, false));
    map.sort_by_key(|e| e.start);
    map
}

/// Puts the images and the command line into memory; how to enter the kernel.
///
/// # Errors
/// [`ImageError`] names the image and what is wrong with it.
pub fn load(
    ram: &GuestRam,
    memory_mib: u32,
    kernel: (&str, &mut File),
    initrd: Option<(&str, &mut File)>,
    cmdline: &str,
) -> Result<Entry, ImageError> {
    kernel::load(ram, memory_mib, kernel, initrd, cmdline)
}

/// Puts the ACPI tables of `platform` into memory.
///
/// # Errors
/// [`ImageError`] when their place is not RAM (it always is).
pub fn describe(ram: &GuestRam, platform: acpi::Platform) -> Result<(), ImageError> {
    kernel::write(ram, ACPI_START, &acpi::tables(platform))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_map_is_sorted_and_disjoint() {
        for mib in [32, 3072, 4096, 65536] {
            let map = memory_map(mib);
            assert!(map.windows(2).all(|pair| pair[0].start + pair[0].len <= pair[1].start), "{mib}: {map:?}");
            let usable: u64 = map.iter().filter(|e| e.usable).map(|e| e.len).sum();
            assert_eq!(usable, (u64::from(mib) << 20) - (HIGH_START - LOW_END));
        }
    }
}
