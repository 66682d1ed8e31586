//! Loading kernels: ELF `vmlinux` (entered by PVH when it has the note, else by the Linux 64-bit protocol) and `bzImage`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use thiserror::Error;

use super::{ACPI_START, CMDLINE, HIGH_START, MemoryMapEntry, PVH_INFO, ZERO_PAGE, memory_map};
use crate::memory::{Address, ByteValued, Bytes, GuestAddress, GuestRam, ram_ranges};

/// Highest byte an initrd may end at: every kernel's `initrd_addr_max` allows it.
const INITRD_MAX: u64 = 0x7fff_0000;
const PAGE: u64 = 0x1000;
/// Offset of the 64-bit entry point of a bzImage (Linux x86 boot protocol, "64-bit boot protocol").
const BZIMAGE_ENTRY64: u64 = 0x200;
/// Bytes looked at to tell what an image is: up to the setup header of a bzImage.
const HEAD: u64 = 0x268;
/// Bytes of an ELF64 header, its class for 64 bits, and its machine number for x86-64 (System V ABI).
const ELF_HEADER: usize = 64;
const ELF_CLASS64: u8 = 2;
const ELF_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
/// `xloadflags` bit: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;

/// How the boot CPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit, paging off, `ebx` = start info (Xen PVH).
    Pvh {
        /// Entry point.
        rip: u64,
    },
    /// 64-bit, identity-mapped, `rsi` = zero page.
    Linux64 {
        /// Entry point.
        rip: u64,
    },
}

/// An image cannot be booted.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Neither ELF nor bzImage.
    #[error("kernel {name}: starts with {found:02x?}; expected an x86-64 ELF vmlinux or a bzImage")]
    Format {
        /// The file.
        name: String,
        /// First bytes.
        found: Vec<u8>,
    },
    /// An ELF for something else.
    #[error("kernel {name}: is a {bits}-bit ELF for machine {machine}; expected a 64-bit one for x86-64 (machine 62)")]
    Foreign {
        /// The file.
        name: String,
        /// 32 or 64.
        bits: u8,
        /// `e_machine`.
        machine: u16,
    },
    /// It ends too early.
    #[error("kernel {name}: is {found} bytes, its header says {expected}; copy it again")]
    Truncated {
        /// The file.
        name: String,
        /// Bytes found.
        found: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// The loader refused it.
    #[error("kernel {name}: {reason}; is the file whole, and memory_mib large enough?")]
    Kernel {
        /// The file.
        name: String,
        /// The loader's words.
        reason: String,
    },
    /// The initrd cannot be loaded.
    #[error("initrd {name}: {reason}")]
    Initrd {
        /// The file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A table does not fit.
    #[error("boot data at {0:#x} does not fit into guest memory")]
    Space(u64),
}

/// Loads kernel, initrd and command line, and writes what the entry protocol wants.
///
/// # Errors
/// [`ImageError`].
pub(super) fn load(
    ram: &GuestRam,
    memory_mib: u32,
    (name, kernel): (&str, &mut File),
    initrd: Option<(&str, &mut File)>,
    cmdline: &str,
) -> Result<Entry, ImageError> {
    let loaded = load_image(ram, name, kernel)?;
    let low_end = ram_ranges(memory_mib).first().map_or(0, |(start, len)| start + len);
    let kernel_end = loaded.setup_header.map_or(loaded.kernel_end, |header| {
        // The decompressor needs more room than the image.
        let needs = { header.init_size };
        loaded.kernel_end.max(loaded.kernel_load.raw_value() + u64::from(needs))
    });
    if kernel_end > low_end {
        let reason = format!("needs memory up to {kernel_end:#x}, the VM has {low_end:#x}");
        return Err(ImageError::Kernel { name: name.into(), reason });
    }
    let initrd = initrd.map(|(name, file)| load_initrd(ram, name, file, kernel_end, low_end)).transpose()?;
    let mut line = cmdline.as_bytes().to_vec();
    line.push(0);
    write(ram, CMDLINE, &line)?;
    let map = memory_map(memory_mib);
    match (loaded.setup_header, loaded.pvh_boot_cap) {
        (None, PvhBootCapability::PvhEntryPresent(entry)) => {
            write_start_info(ram, &map, initrd)?;
            Ok(Entry::Pvh { rip: entry.raw_value() })
        }
        (header, _) => {
            let offset = if header.is_some() { BZIMAGE_ENTRY64 } else { 0 };
            write_zero_page(ram, &map, initrd, header, line.len())?;
            Ok(Entry::Linux64 { rip: loaded.kernel_load.raw_value() + offset })
        }
    }
}

fn load_image(ram: &GuestRam, name: &str, kernel: &mut File) -> Result<KernelLoaderResult, ImageError> {
    let fail = |reason: String| ImageError::Kernel { name: name.into(), reason };
    kernel.rewind().map_err(|e| fail(e.to_string()))?;
    let mut head = Vec::new();
    (&mut *kernel).take(HEAD).read_to_end(&mut head).map_err(|e| fail(e.to_string()))?;
    let size = kernel.seek(SeekFrom::End(0)).map_err(|e| fail(e.to_string()))?;
    let start = Some(GuestAddress(HIGH_START));
    if head.starts_with(b"\x7fELF") {
        check_elf(name, &head, size, kernel)?;
        return Elf::load(ram, None, kernel, start).map_err(|e| fail(e.to_string()));
    }
    if head.get(0x202..0x206) != Some(b"HdrS") {
        return Err(ImageError::Format { name: name.into(), found: head.iter().take(4).copied().collect() });
    }
    // Real-mode sectors (0 means 4) and the boot sector, then `syssize` paragraphs (Linux x86 boot protocol).
    let setup = if head[0x1f1] == 0 { 4 } else { u64::from(head[0x1f1]) };
    let expected = (setup + 1) * 512 + 16 * u64::from(dword(&head, 0x1f4));
    if size < expected {
        return Err(ImageError::Truncated { name: name.into(), found: size, expected });
    }
    let loaded = BzImage::load(ram, None, kernel, start).map_err(|e| fail(e.to_string()))?;
    match loaded.setup_header {
        Some(header) if { header.version } >= 0x20c && { header.xloadflags } & XLF_KERNEL_64 != 0 => Ok(loaded),
        _ => Err(fail("has no 64-bit entry point".into())),
    }
}

/// Whether an ELF is for this machine, and long enough for its segments.
fn check_elf(name: &str, head: &[u8], size: u64, kernel: &mut File) -> Result<(), ImageError> {
    let truncated = |expected| ImageError::Truncated { name: name.into(), found: size, expected };
    if head.len() < ELF_HEADER {
        return Err(truncated(ELF_HEADER as u64));
    }
    let word = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let (class, machine) = (head[4], word(18));
    if class != ELF_CLASS64 || machine != ELF_X86_64 {
        let bits = if class == ELF_CLASS64 { 64 } else { 32 };
        return Err(ImageError::Foreign { name: name.into(), bits, machine });
    }
    // e_phoff, e_phentsize, e_phnum; then p_type, p_offset and p_filesz of each.
    let (table, entry, count) = (qword(head, 32), usize::from(word(54)), u64::from(word(56)));
    let end = table.saturating_add(entry as u64 * count);
    if end > size {
        return Err(truncated(end));
    }
    let mut header = vec![0u8; entry.max(56)];
    for n in 0..count {
        let read = kernel
            .seek(SeekFrom::Start(table + n * entry as u64))
            .and_then(|_| kernel.read_exact(&mut header[..entry]));
        read.map_err(|e| ImageError::Kernel { name: name.into(), reason: e.to_string() })?;
        let end = qword(&header, 8).saturating_add(qword(&header, 32));
        if dword(&header, 0) == PT_LOAD && end > size {
            return Err(truncated(end));
        }
    }
    Ok(())
}

fn dword(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn qword(bytes: &[u8], at: usize) -> u64 {
    u64::from(dword(bytes, at)) | u64::from(dword(bytes, at + 4)) << 32
}

/// Puts the initrd at the top of low memory; its address and length.
fn load_initrd(
    ram: &GuestRam,
    name: &str,
    file: &mut File,
    kernel_end: u64,
    low_end: u64,
) -> Result<(u64, u64), ImageError> {
    let fail = |reason: String| ImageError::Initrd { name: name.into(), reason };
    let len = file.seek(SeekFrom::End(0)).map_err(|e| fail(e.to_string()))?;
    file.rewind().map_err(|e| fail(e.to_string()))?;
    let place = low_end.min(INITRD_MAX).checked_sub(len).map(|start| start & !(PAGE - 1));
    let Some(start) = place.filter(|start| *start >= kernel_end && len > 0) else {
        let room = low_end.min(INITRD_MAX).saturating_sub(kernel_end);
        return Err(fail(format!("is {len} bytes, expected 1 to {room}; give the VM more memory_mib")));
    };
    let bytes = usize::try_from(len).map_err(|e| fail(e.to_string()))?;
    ram.read_exact_volatile_from(GuestAddress(start), file, bytes).map_err(|e| fail(e.to_string()))?;
    Ok((start, len))
}

fn write_start_info(ram: &GuestRam, map: &[MemoryMapEntry], initrd: Option<(u64, u64)>) -> Result<(), ImageError> {
    // hvm_start_info, then one module, then the map (Xen public/arch-x86/hvm/start_info.h).
    let modules = PVH_INFO + 0x40;
    let table = PVH_INFO + 0x80;
    let info = hvm_start_info {
        magic: 0x336e_c578,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: initrd.map_or(0, |_| modules),
        cmdline_paddr: CMDLINE,
        rsdp_paddr: ACPI_START,
        memmap_paddr: table,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    write(ram, PVH_INFO, Wire(info).as_slice())?;
    if let Some((paddr, size)) = initrd {
        write(ram, modules, Wire(hvm_modlist_entry { paddr, size, ..Default::default() }).as_slice())?;
    }
    for (n, entry) in (0u64..).zip(map) {
        let type_ = e820_type(entry);
        let wire = Wire(hvm_memmap_table_entry { addr: entry.start, size: entry.len, type_, ..Default::default() });
        write(ram, table + n * 24, wire.as_slice())?;
    }
    Ok(())
}

fn write_zero_page(
    ram: &GuestRam,
    map: &[MemoryMapEntry],
    initrd: Option<(u64, u64)>,
    header: Option<setup_header>,
    cmdline_len: usize,
) -> Result<(), ImageError> {
    let mut params = boot_params { hdr: header.unwrap_or_default(), ..Default::default() };
    if header.is_none() {
        params.hdr.boot_flag = 0xaa55;
        params.hdr.header = 0x5372_6448;
        params.hdr.kernel_alignment = 0x0100_0000;
    }
    params.hdr.type_of_loader = 0xff;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    params.acpi_rsdp_addr = ACPI_START;
    if let Some((start, len)) = initrd {
        // Below 2 GiB both.
        params.hdr.ramdisk_image = start as u32;
        params.hdr.ramdisk_size = len as u32;
    }
    let mut table = [boot_e820_entry::default(); 128];
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr: entry.start, size: entry.len, r#type: e820_type(entry) };
    }
    params.e820_table = table;
    params.e820_entries = map.len() as u8;
    write(ram, ZERO_PAGE, params.as_slice())
}

fn e820_type(entry: &MemoryMapEntry) -> u32 {
    if entry.usable { 1 } else { 2 }
}

/// Writes boot data.
pub(super) fn write(ram: &GuestRam, at: u64, data: &[u8]) -> Result<(), ImageError> {
    ram.write_slice(data, GuestAddress(at)).map_err(|_| ImageError::Space(at))
}

/// A structure that goes to guest memory as it is.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Wire<T>(T);

// SAFETY: plain old data without padding: 56 bytes of integers, checked by the defining crate.
unsafe impl ByteValued for Wire<hvm_start_info> {}
// SAFETY: as above, 32 bytes.
unsafe impl ByteValued for Wire<hvm_modlist_entry> {}
// SAFETY: as above, 24 bytes.
unsafe impl ByteValued for Wire<hvm_memmap_table_entry> {}

/// Fuzz entry: arbitrary bytes as a kernel image.
#[doc(hidden)]
pub fn fuzz_kernel(data: &[u8]) {
    use std::io::Write;
    use std::os::fd::FromRawFd;
    // SAFETY: a new anonymous file; the name is a constant.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return;
    }
    // SAFETY: just created, owned by nobody else.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let Ok(ram) = GuestRam::from_ranges(&[(GuestAddress(0), 32 << 20)]) else {
        return;
    };
    if file.write_all(data).is_ok() {
        let _ = load(&ram, 32, ("fuzz", &mut file), None, "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap()
    }

    /// A 64-bit ELF with one segment of 16 bytes at 1 MiB, and a PVH note when asked.
    fn elf(pvh: bool) -> Vec<u8> {
        let mut image = vec![0u8; 0x100];
        image[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &2u16.to_le_bytes());
        put(18, &62u16.to_le_bytes());
        put(24, &0x10_0000u64.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(52, &64u16.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &if pvh { 2u16 } else { 1 }.to_le_bytes());
        // PT_LOAD: offset 0xf0, paddr 1 MiB, 16 bytes.
        put(64, &1u32.to_le_bytes());
        put(72, &0xf0u64.to_le_bytes());
        put(88, &0x10_0000u64.to_le_bytes());
        put(96, &16u64.to_le_bytes());
        put(104, &16u64.to_le_bytes());
        if pvh {
            // PT_NOTE: offset 0xb8, 20 bytes: "Xen", type 18, entry 0x10_0008.
            put(120, &4u32.to_le_bytes());
            put(128, &0xb8u64.to_le_bytes());
            put(152, &20u64.to_le_bytes());
            put(160, &20u64.to_le_bytes());
            put(168, &4u64.to_le_bytes());
            put(0xb8, &4u32.to_le_bytes());
            put(0xbc, &4u32.to_le_bytes());
            put(0xc0, &18u32.to_le_bytes());
            put(0xc4, b"Xen\0");
            put(0xc8, &0x10_0008u32.to_le_bytes());
        }
        image
    }

    #[test]
    fn elf_is_entered_by_pvh_when_it_has_the_note() {
        let ram = ram();
        let mut initrd = file(b"cpio");
        let entry = load(&ram, 32, ("k", &mut file(&elf(true))), Some(("i", &mut initrd)), "quiet").unwrap();
        assert_eq!(entry, Entry::Pvh { rip: 0x10_0008 });
        let magic: u32 = ram.read_obj(GuestAddress(PVH_INFO)).unwrap();
        assert_eq!(magic, 0x336e_c578);
        let module: u64 = ram.read_obj(GuestAddress(PVH_INFO + 0x40)).unwrap();
        let mut content = [0; 4];
        ram.read_slice(&mut content, GuestAddress(module)).unwrap();
        assert_eq!(&content, b"cpio");
        let mut line = [0; 6];
        ram.read_slice(&mut line, GuestAddress(CMDLINE)).unwrap();
        assert_eq!(&line, b"quiet\0");
    }

    #[test]
    fn elf_without_note_is_entered_by_the_64_bit_protocol() {
        let ram = ram();
        let entry = load(&ram, 32, ("k", &mut file(&elf(false))), None, "").unwrap();
        assert_eq!(entry, Entry::Linux64 { rip: 0x10_0000 });
        let entries: u8 = ram.read_obj(GuestAddress(ZERO_PAGE + 0x1e8)).unwrap();
        assert_eq!(usize::from(entries), memory_map(32).len());
        let rsdp: u64 = ram.read_obj(GuestAddress(ZERO_PAGE + 0x70)).unwrap();
        assert_eq!(rsdp, ACPI_START);
    }

    #[test]
    fn foreign_empty_and_truncated_kernels_are_named() {
        let mut truncated = elf(false);
        truncated.truncate(0xf8);
        let mut no_header = elf(false);
        no_header.truncate(20);
        let mut arm = elf(false);
        arm[18] = 183;
        let mut narrow = elf(false);
        narrow[4] = 1;
        let mut bzimage = vec![0u8; 0x400];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        bzimage[0x1f4] = 0x40;
        let cases = [
            (&b"#!/bin/sh\n"[..], "expected an x86-64 ELF"),
            (&b""[..], "expected an x86-64 ELF"),
            (&b"MZ\0\0"[..], "expected an x86-64 ELF"),
            (&truncated, "is 248 bytes, its header says 256"),
            (&no_header, "is 20 bytes, its header says 64"),
            (&arm, "64-bit ELF for machine 183"),
            (&narrow, "32-bit ELF"),
            (&bzimage, "is 1024 bytes, its header says 3584"),
        ];
        for (content, words) in cases {
            let error = load(&ram(), 32, ("/boot/k", &mut file(content)), None, "").unwrap_err().to_string();
            assert!(error.contains("/boot/k") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn initrd_that_does_not_fit_says_how_much_would() {
        let mut initrd = tempfile::tempfile().unwrap();
        initrd.set_len(32 << 20).unwrap();
        let error = load(&ram(), 32, ("k", &mut file(&elf(false))), Some(("big", &mut initrd)), "").unwrap_err();
        assert!(error.to_string().contains("initrd big") && error.to_string().contains("memory_mib"), "{error}");
    }

    #[test]
    fn mangled_images_never_panic() {
        let whole = elf(true);
        for at in 0..whole.len() {
            let mut image = whole.clone();
            image[at] ^= 0xff;
            fuzz_kernel(&image);
        }
    }
}
