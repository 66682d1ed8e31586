//! Memory: a heap that only grows, and the four functions that compiled code calls.

use core::arch::asm;

/// Above the image; the smallest VM has 32 MiB.
const HEAP: (u64, u64) = (4 << 20, 30 << 20);

static mut NEXT: u64 = HEAP.0;

/// `bytes` of zeroed memory, page-aligned; its physical address.
///
/// # Panics
/// When the heap is used up.
pub fn allocate(bytes: u64) -> u64 {
    // SAFETY: one processor, and interrupt stubs do not allocate.
    let start = unsafe { NEXT };
    let end = start + bytes.next_multiple_of(4096);
    assert!(end <= HEAP.1, "heap is used up");
    // SAFETY: as above. A VM's memory starts zeroed, and nothing is given back.
    unsafe { NEXT = end };
    start
}

/// A slice of allocated memory.
pub fn slice<'a>(address: u64, bytes: usize) -> &'a mut [u8] {
    // SAFETY: callers pass what `allocate` gave them and hold one slice of it at a time.
    unsafe { core::slice::from_raw_parts_mut(address as *mut u8, bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges.
    unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") bytes => _) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= bytes {
        // SAFETY: the start of `to` is not inside `from`, so copying upwards is right.
        return unsafe { memcpy(to, from, bytes) };
    }
    // SAFETY: downwards from the last byte; the caller vouches for both ranges.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rdi") to.wrapping_add(bytes).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(bytes).wrapping_sub(1) => _, inout("rcx") bytes => _);
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range.
    unsafe { asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") bytes => _) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, bytes: usize) -> i32 {
    for n in 0..bytes {
        // SAFETY: the caller vouches for both ranges. Volatile, so that this loop is not turned into a call of itself.
        let (a, b) = unsafe { (a.add(n).read_volatile(), b.add(n).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, bytes: usize) -> i32 {
    // SAFETY: as for `memcmp`.
    unsafe { memcmp(a, b, bytes) }
}

/// Named by unwinding tables that are thrown away; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
