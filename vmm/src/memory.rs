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
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use holdfast_model::contract::vm::PageSize;
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

/// Guest memory of such pages is a multiple of this many MiB.
pub fn unit_mib(pages: PageSize) -> u32 {
    match pages {
        PageSize::Transparent | PageSize::Ordinary => 1,
        PageSize::Huge2M => 2,
        PageSize::Huge1G => 1024,
    }
}

/// Where the host's administrator reserves such pages.
fn reserve(pages: PageSize) -> Option<&'static str> {
    match pages {
        PageSize::Transparent | PageSize::Ordinary => None,
        PageSize::Huge2M => Some("/proc/sys/vm/nr_hugepages"),
        PageSize::Huge1G => Some("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"),
    }
}

fn mmap_flags(pages: PageSize) -> libc::c_int {
    match pages {
        // Not reserved: a VM may be given more than the host has free, and is charged as it touches pages.
        PageSize::Transparent | PageSize::Ordinary => libc::MAP_NORESERVE,
        // Reserved: a lack of huge pages is found here, not by a SIGBUS in the running guest.
        PageSize::Huge2M => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
        PageSize::Huge1G => libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
    }
}
/// Guest memory could not be made.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host refuses so much.
    #[error("guest memory: {size_mib} MiB cannot be {what}: {source}; give the VM less memory_mib")]
    Refused {
        /// Bytes asked for, MiB.
        size_mib: u32,
        /// Reserved or touched.
        what: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// The host has not enough huge pages.
    #[error(
        "guest memory: the host lacks {pages} free huge pages of {unit_mib} MiB: {source}; \
         reserve them with `echo {pages} > {file}`, or set \"hugepages\": \"thp\""
    )]
    NoHugePages {
        /// Pages needed.
        pages: u32,
        /// Size of one.
        unit_mib: u32,
        /// Where they are reserved.
        file: &'static str,
        /// How it failed.
        source: io::Error,
    },
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
/// With `prefault` all of it is touched now: a slow start for a guest that never waits for a page later.
///
/// # Errors
/// [`MemoryError`] when the host refuses, with the way out.
pub fn allocate(size_mib: u32, pages: PageSize, prefault: bool) -> Result<Arc<GuestRam>, MemoryError> {
    let refused = |what| move |source| MemoryError::Refused { size_mib, what, source };
    let mut regions = Vec::new();
    for (start, len) in ram_ranges(size_mib) {
        let len = usize::try_from(len).map_err(|e| refused("reserved")(io::Error::other(e)))?;
        let mapping = MmapRegionBuilder::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | mmap_flags(pages))
            .build()
            .map_err(|e| match (reserve(pages), io::Error::other(e)) {
                (None, source) => refused("reserved")(source),
                (Some(file), source) => {
                    let unit_mib = unit_mib(pages);
                    MemoryError::NoHugePages { pages: size_mib / unit_mib, unit_mib, file, source }
                }
            })?;
        let advise = |advice| {
            // SAFETY: advice on a mapping we own; none of the kinds used here changes content.
            match unsafe { libc::madvise(mapping.as_ptr().cast(), len, advice) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // Both fail on a kernel without transparent huge pages, where nothing is to be asked for.
        let _ = match pages {
            PageSize::Transparent => advise(libc::MADV_HUGEPAGE),
            PageSize::Ordinary => advise(libc::MADV_NOHUGEPAGE),
            PageSize::Huge2M | PageSize::Huge1G => Ok(()),
        };
        // A core dump must not hold the guest's memory.
        advise(libc::MADV_DONTDUMP).map_err(refused("kept out of core dumps"))?;
        if prefault {
            advise(libc::MADV_POPULATE_WRITE).map_err(refused("touched (\"prefault\")"))?;
        }
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| refused("reserved")(io::Error::other("address overflow")))?;
        regions.push(region);
    }
    GuestRam::from_regions(regions).map(Arc::new).map_err(|e| refused("reserved")(io::Error::other(e)))
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

/// Guest memory whose place on the host was looked up, once for all that is read and written there. Both sides change it at
/// any time, so every value is loaded once. Offsets count from its start.
///
/// # Panics
/// All methods, when an offset does not leave room for what is accessed: the caller knows the length it asked for.
#[derive(Debug, Clone, Copy)]
pub struct View<'ram> {
    at: NonNull<u8>,
    len: usize,
    ram: PhantomData<&'ram GuestRam>,
}

impl<'ram> View<'ram> {
    /// The `len` bytes at `addr`, or `None` when any of them is not RAM of one region.
    #[inline]
    pub fn new(ram: &'ram GuestRam, addr: u64, len: usize) -> Option<Self> {
        Some(Self { at: NonNull::new(host_pointer(ram, addr, len)?)?, len, ram: PhantomData })
    }

    #[inline]
    fn pointer(self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "{len} bytes at {offset} of {}", self.len);
        self.at.as_ptr().wrapping_add(offset)
    }

    /// `N` bytes.
    #[inline]
    pub fn load<const N: usize>(self, offset: usize) -> [u8; N] {
        // SAFETY: inside the view, so mapped while the RAM lives, and a byte array needs no alignment. The guest may write
        // meanwhile, hence volatile: what is read here is looked at no second time.
        unsafe { self.pointer(offset, N).cast::<[u8; N]>().read_volatile() }
    }

    /// Writes `bytes`.
    #[inline]
    pub fn store<const N: usize>(self, offset: usize, bytes: [u8; N]) {
        // SAFETY: as in `load`.
        unsafe { self.pointer(offset, N).cast::<[u8; N]>().write_volatile(bytes) };
    }

    /// The 16-bit word, an index or flags, which both sides change; its address must be even.
    #[inline]
    pub fn word(self, offset: usize) -> &'ram AtomicU16 {
        let at = self.pointer(offset, size_of::<u16>()).cast::<u16>();
        assert!(at.is_aligned(), "a word at an odd address");
        // SAFETY: mapped while the RAM lives, aligned, and never accessed but atomically: what else is read there is a hostile
        // driver's own doing, and then any value will do.
        unsafe { AtomicU16::from_ptr(at) }
    }
}

/// A [`View`] that keeps its RAM mapped.
#[derive(Debug, Clone)]
pub struct Area {
    at: NonNull<u8>,
    len: usize,
    /// Held, not looked at: `at` points into it.
    _ram: Arc<GuestRam>,
}

// SAFETY: the pointer is into RAM that is kept mapped, wherever this is; accesses go through `View`.
unsafe impl Send for Area {}

impl Area {
    /// The `len` bytes at `addr`, or `None` when any of them is not RAM of one region.
    pub fn new(ram: &Arc<GuestRam>, addr: u64, len: usize) -> Option<Self> {
        let View { at, len, .. } = View::new(ram, addr, len)?;
        Some(Self { at, len, _ram: ram.clone() })
    }

    /// Its content.
    #[inline]
    pub fn view(&self) -> View<'_> {
        View { at: self.at, len: self.len, ram: PhantomData }
    }
}

/// `N` bytes at `addr`, read once, or `None` when they are not RAM of one region.
#[inline]
pub fn load<const N: usize>(ram: &GuestRam, addr: u64) -> Option<[u8; N]> {
    Some(View::new(ram, addr, N)?.load(0))
}

/// Writes `bytes` at `addr`; `false` when they are not RAM of one region.
#[inline]
pub fn store<const N: usize>(ram: &GuestRam, addr: u64, bytes: [u8; N]) -> bool {
    View::new(ram, addr, N).map(|view| view.store(0, bytes)).is_some()
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
    }

    #[test]
    fn view_reaches_its_own_bytes_and_no_others() {
        let ram =
            Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x4000), 0x1000)]).unwrap());
        assert!(Area::new(&ram, 0x4ff8, 9).is_none() && View::new(&ram, 0xff8, 9).is_none());
        let area = Area::new(&ram, 0x4ff8, 8).unwrap();
        let view = area.view();
        view.word(6).store(0x1234, std::sync::atomic::Ordering::Release);
        view.store(0, [7, 8]);
        assert_eq!((load(&ram, 0x4ffe), load(&ram, 0x4ff8)), (Some(0x1234u16.to_ne_bytes()), Some([7, 8])));
        assert_eq!(view.load(1), [8, 0, 0, 0, 0, 0x34, 0x12]);
        let refused = |access: &(dyn Fn() + std::panic::RefUnwindSafe)| std::panic::catch_unwind(access).is_err();
        let view = std::panic::AssertUnwindSafe(view);
        assert!(refused(&|| assert_eq!(view.load::<2>(7), [0; 2])) && refused(&|| view.store(usize::MAX, [0])));
        for odd_or_outside in [1, 7] {
            assert!(refused(&|| {
                view.word(odd_or_outside);
            }));
        }
    }

    #[test]
    fn iovec_outside_ram_or_across_its_end_is_none() {
        let ram = allocate(32, PageSize::Transparent, false).unwrap();
        assert!(host_iovec(&ram, GuestAddress((32 << 20) - 4), 4).is_some());
        assert!(host_iovec(&ram, GuestAddress((32 << 20) - 4), 5).is_none());
        assert!(host_iovec(&ram, GuestAddress(u64::MAX), 2).is_none());
    }

    /// Resident pages of the region at its start, by the kernel's word.
    fn resident(ram: &GuestRam, len: usize) -> usize {
        let mut pages = vec![0u8; len / 4096];
        let base = host_slice(ram, GuestAddress(0), len).unwrap().ptr_guard_mut().as_ptr();
        // SAFETY: the mapping is as long as `len`, and there is a byte for each page.
        assert_eq!(unsafe { libc::mincore(base.cast(), len, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn only_prefaulted_memory_is_there_before_the_guest_touches_it() {
        let len = 4 << 20;
        let lazy = allocate(4, PageSize::Ordinary, false).unwrap();
        assert_eq!(resident(&lazy, len), 0);
        let ready = allocate(4, PageSize::Ordinary, true).unwrap();
        assert_eq!(resident(&ready, len), len / 4096);
    }

    #[test]
    fn lack_of_huge_pages_names_their_number_and_the_file_to_write_it_to() {
        // No machine that runs this has 512 free pages of 1 GiB.
        let error = allocate(512 << 10, PageSize::Huge1G, false).unwrap_err();
        assert!(matches!(error, MemoryError::NoHugePages { pages: 512, .. }), "{error}");
        let text = error.to_string();
        assert!(
            ["echo 512 >", "hugepages-1048576kB/nr_hugepages", "\"thp\""].iter().all(|w| text.contains(w)),
            "{text}"
        );
    }

    #[test]
    fn page_sizes_have_short_names_in_json() {
        for (pages, text) in [
            (PageSize::Transparent, "\"thp\""),
            (PageSize::Ordinary, "\"none\""),
            (PageSize::Huge2M, "\"2M\""),
            (PageSize::Huge1G, "\"1G\""),
        ] {
            assert_eq!(serde_json::to_string(&pages).unwrap(), text);
            assert_eq!(serde_json::from_str::<PageSize>(text).unwrap(), pages);
        }
    }
}
