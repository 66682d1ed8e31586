//! Guest memory and the map of the guest's physical address space.
//!
//! The only module that names `vm-memory` types, so that its renames touch one file.
//!
//! ```text
//!  0x0000_0000  RAM (low), up to 3 GiB          boot data lives below 1 MiB, see `boot`
//!  0xC000_0000  32-bit PCI window (BARs)        0x2000_0000 bytes
//!  0xE000_0000  ECAM of bus 0                   1 MiB
//!  0xFEC0_0000  IO-APIC, 0xFEE0_0000 local APIC (in the kernel)
//!  0xFFFB_C000  identity map page, 0xFFFB_D000 TSS (3 pages): KVM's own, Intel only
//!  0x1_0000_0000 RAM (high)
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
pub use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};
use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

/// All RAM of one guest.
pub type GuestRam = GuestMemoryMmap<()>;

/// First address past low RAM.
pub const LOW_RAM_END: u64 = 0xC000_0000;
/// 32-bit PCI window for BARs.
pub const PCI_WINDOW: (u64, u64) = (0xC000_0000, 0x2000_0000);
/// Configuration space of bus 0, 4 KiB for each function.
pub const ECAM: (u64, u64) = (0xE000_0000, 0x10_0000);
/// Start of RAM above 4 GiB.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// Where KVM keeps its identity page table on Intel.
pub const IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Where KVM keeps its TSS on Intel.
pub const KVM_TSS: u64 = 0xFFFB_D000;

/// Guest memory could not be made.
#[derive(Debug, Error)]
#[error("guest memory: {size_mib} MiB cannot be reserved: {source}; give the VM less memory_mib")]
pub struct MemoryError {
    size_mib: u32,
    source: io::Error,
}

/// The RAM ranges `(start, bytes)` for a memory size.
pub fn ram_ranges(size_mib: u32) -> Vec<(u64, u64)> {
    let size = u64::from(size_mib) << 20;
    let low = size.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((HIGH_RAM_START, size - low));
    }
    ranges
}

/// Reserves guest memory: private anonymous pages, so that the VM's cgroup is charged only for what the guest touches.
///
/// # Errors
/// [`MemoryError`] when the host refuses the reservation.
pub fn allocate(size_mib: u32) -> Result<Arc<GuestRam>, MemoryError> {
    let fail = |source| MemoryError { size_mib, source };
    let mut regions = Vec::new();
    for (start, len) in ram_ranges(size_mib) {
        let len = usize::try_from(len).map_err(|e| fail(io::Error::other(e)))?;
        let mapping = MmapRegionBuilder::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|e| fail(io::Error::other(e)))?;
        // SAFETY: advice on a mapping we own; it changes no content and failure is harmless (no THP on this host).
        unsafe { libc::madvise(mapping.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        // SAFETY: as above. A core dump must not hold the guest's memory.
        unsafe { libc::madvise(mapping.as_ptr().cast(), len, libc::MADV_DONTDUMP) };
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| fail(io::Error::other("address overflow")))?;
        regions.push(region);
    }
    GuestRam::from_regions(regions).map(Arc::new).map_err(|e| fail(io::Error::other(e)))
}

/// The host range behind `len` bytes at `addr`, or `None` when any byte of it is not RAM of one region.
pub fn host_slice(ram: &GuestRam, addr: GuestAddress, len: usize) -> Option<VolatileSlice<'_>> {
    ram.get_slice(addr, len).ok()
}

/// Host address of `len` bytes at `addr`, or `None` when any byte of it is not RAM of one region. Valid while `ram` lives.
#[inline]
pub fn host_pointer(ram: &GuestRam, addr: u64, len: usize) -> Option<*mut u8> {
    // One region, or two above 3 GiB: a search costs more.
    ram.iter().find_map(|region| {
        let offset = addr.checked_sub(region.start_addr().raw_value())?;
        let inside = offset.checked_add(len as u64)? <= region.len();
        inside.then(|| region.as_ptr().wrapping_add(offset as usize))
    })
}

/// The 16-bit index at `addr`, which both sides change, or `None` when it is not RAM or not aligned.
#[inline]
pub fn index(ram: &GuestRam, addr: u64) -> Option<&AtomicU16> {
    let at = host_pointer(ram, addr, size_of::<u16>())?.cast::<u16>();
    // SAFETY: mapped while `ram` lives, aligned, and never accessed but atomically: what else is read there is a hostile
    // driver's own doing, and then any value will do.
    at.is_aligned().then(|| unsafe { AtomicU16::from_ptr(at) })
}

/// `N` bytes at `addr`, read once, or `None` when they are not RAM of one region.
#[inline]
pub fn load<const N: usize>(ram: &GuestRam, addr: u64) -> Option<[u8; N]> {
    let at = host_pointer(ram, addr, N)?;
    // SAFETY: all N bytes are mapped while `ram` lives, and a byte array needs no alignment. The guest may write meanwhile,
    // hence volatile: what is read here is looked at no second time.
    Some(unsafe { at.cast::<[u8; N]>().read_volatile() })
}

/// Writes `bytes` at `addr`; `false` when they are not RAM of one region.
#[inline]
pub fn store<const N: usize>(ram: &GuestRam, addr: u64, bytes: [u8; N]) -> bool {
    let Some(at) = host_pointer(ram, addr, N) else {
        return false;
    };
    // SAFETY: as in `load`.
    unsafe { at.cast::<[u8; N]>().write_volatile(bytes) };
    true
}

/// An `iovec` for `len` bytes of guest memory at `addr`. The pointer is valid while `ram` lives.
pub fn host_iovec(ram: &GuestRam, addr: GuestAddress, len: usize) -> Option<libc::iovec> {
    let base = host_pointer(ram, addr.raw_value(), len)?;
    Some(libc::iovec { iov_base: base.cast(), iov_len: len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_around_the_hole() {
        assert_eq!(ram_ranges(128), vec![(0, 128 << 20)]);
        assert_eq!(ram_ranges(3072), vec![(0, 0xC000_0000)]);
        assert_eq!(ram_ranges(4096), vec![(0, 0xC000_0000), (HIGH_RAM_START, 1 << 30)]);
    }

    #[test]
    fn bytes_are_loaded_and_stored_inside_ram_only() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x4000), 0x1000)]).unwrap();
        assert!(store(&ram, 0x4ffe, [1, 2]) && store(&ram, 0xfff, [3]));
        assert_eq!((load(&ram, 0x4ffe), load(&ram, 0xfff)), (Some([1, 2]), Some([3])));
        for addr in [0xfff, 0x1000, 0x3fff, 0x4fff, 0x5000, u64::MAX, u64::MAX - 1] {
            assert!(load::<2>(&ram, addr).is_none() && !store(&ram, addr, [9, 9]), "{addr:#x}");
            assert_eq!(host_pointer(&ram, addr, 2).is_some(), host_slice(&ram, GuestAddress(addr), 2).is_some());
        }
        assert_eq!((load(&ram, 0x4fff), load(&ram, 0xfff)), (Some([2]), Some([3])));
        assert_eq!(host_pointer(&ram, 0, usize::MAX), None);
        index(&ram, 0x4ffe).unwrap().store(0x1234, std::sync::atomic::Ordering::Release);
        assert_eq!(load(&ram, 0x4ffe), Some(0x1234u16.to_ne_bytes()));
        assert!(index(&ram, 0x4fff).is_none() && index(&ram, 1).is_none());
    }

    #[test]
    fn iovec_outside_ram_or_across_its_end_is_none() {
        let ram = allocate(32).unwrap();
        assert!(host_iovec(&ram, GuestAddress((32 << 20) - 4), 4).is_some());
        assert!(host_iovec(&ram, GuestAddress((32 << 20) - 4), 5).is_none());
        assert!(host_iovec(&ram, GuestAddress(u64::MAX), 2).is_none());
    }
}
