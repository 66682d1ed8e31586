//! Gives guest memory back to the host.

use crate::memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRam};

/// Why a range cannot be given back.
#[derive(Debug)]
pub(super) enum DiscardError {
    /// Not whole pages of RAM.
    Range,
    /// The host refused.
    Host,
}

/// Gives `len` bytes from `addr` on back: they read as zeros when touched again. Returns the bytes that the host got; with
/// pages larger than 4 KiB (hugetlb) only whole ones go, and the rest of the range stays.
///
/// # Errors
/// [`DiscardError::Range`] when the range is not whole 4 KiB pages inside one region of RAM: then nothing is done.
/// [`DiscardError::Host`] when the host refuses, as it does for locked memory.
pub(super) fn discard(ram: &GuestRam, addr: u64, len: u64) -> Result<u64, DiscardError> {
    const BASE_PAGE: u64 = 4096;
    if !addr.is_multiple_of(BASE_PAGE) || !len.is_multiple_of(BASE_PAGE) || len == 0 {
        return Err(DiscardError::Range);
    }
    let region = ram.find_region(GuestAddress(addr)).ok_or(DiscardError::Range)?;
    let offset = addr - region.start_addr().raw_value();
    if region.len() - offset < len {
        return Err(DiscardError::Range);
    }
    let flags = region.flags();
    let page = page_bytes(flags);
    let host = region.as_ptr() as u64 + offset;
    // Host addresses of a region are aligned to its page size; guest addresses need not be.
    let (start, end) = (host.next_multiple_of(page), (host + len) / page * page);
    if start >= end {
        return Ok(0);
    }
    // Shared memory keeps its pages until a hole is punched; private memory has none to punch.
    let advice = if flags & libc::MAP_SHARED != 0 { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
    let bytes = end - start;
    // SAFETY: whole pages inside one mapping of ours, checked above. Guest memory is only read and written through
    // volatile accesses and by the kernel, neither of which minds that bytes become zero.
    let done = unsafe { libc::madvise(start as *mut libc::c_void, bytes as usize, advice) };
    if done == 0 { Ok(bytes) } else { Err(DiscardError::Host) }
}

/// Bytes of the pages behind a mapping made with these `mmap` flags (mmap(2): `MAP_HUGE_SHIFT`, 6 bits of log2).
fn page_bytes(flags: libc::c_int) -> u64 {
    if flags & libc::MAP_HUGETLB == 0 {
        return 4096;
    }
    match flags >> libc::MAP_HUGE_SHIFT & 0x3f {
        0 => 2 << 20,
        shift => 1 << shift,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Bytes;

    const SIZE: usize = 16 * 4096;

    /// RAM of ones at 64 KiB and at 1 MiB.
    fn ram() -> GuestRam {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0x1_0000), SIZE), (GuestAddress(0x10_0000), SIZE)]).unwrap();
        for start in [0x1_0000, 0x10_0000] {
            ram.write_slice(&[1; SIZE], GuestAddress(start)).unwrap();
        }
        ram
    }

    fn zeros(ram: &GuestRam) -> usize {
        let count = |start| {
            let mut all = vec![0; SIZE];
            ram.read_slice(&mut all, GuestAddress(start)).unwrap();
            all.iter().filter(|byte| **byte == 0).count()
        };
        count(0x1_0000) + count(0x10_0000)
    }

    #[test]
    fn exactly_the_range_becomes_zero() {
        let ram = ram();
        assert_eq!(discard(&ram, 0x1_2000, 0x3000).unwrap(), 0x3000);
        let mut around = vec![0; 0x5000];
        ram.read_slice(&mut around, GuestAddress(0x1_1000)).unwrap();
        assert!(around[..0x1000].iter().chain(&around[0x4000..]).all(|byte| *byte == 1));
        assert_eq!(zeros(&ram), 0x3000);
        assert_eq!(discard(&ram, 0x1_2000, 0x3000).unwrap(), 0x3000, "again is no harm");
    }

    #[test]
    fn ranges_that_are_not_whole_pages_of_ram_touch_nothing() {
        let ram = ram();
        let end = 0x1_0000 + SIZE as u64;
        for (addr, len) in [
            (0x1_0001, 0x1000),
            (0x1_0000, 0x1001),
            (0x1_0000, 0),
            (0, 0x1000),
            (0xf000, 0x2000),
            (end - 0x1000, 0x2000),
            (end, 0x1000),
            (0x1_0000, 0x10_0000),
            (0xc000_0000, 0x1000),
            (u64::MAX - 0xfff, 0x1000),
            (0x1_0000, u64::MAX - 0xfff),
        ] {
            assert!(matches!(discard(&ram, addr, len), Err(DiscardError::Range)), "{addr:#x} {len:#x}");
        }
        assert_eq!(zeros(&ram), 0);
    }

    #[test]
    fn page_size_follows_the_mapping() {
        assert_eq!(page_bytes(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), 4096);
        assert_eq!(page_bytes(libc::MAP_HUGETLB), 2 << 20);
        assert_eq!(page_bytes(libc::MAP_HUGETLB | libc::MAP_HUGE_2MB), 2 << 20);
        assert_eq!(page_bytes(libc::MAP_HUGETLB | libc::MAP_HUGE_1GB), 1 << 30);
    }
}
