//! State of a vCPU before its first instruction: CPUID, MSRs, local APIC, registers.

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use super::kernel::{Entry, write};
use super::{GDT, PAGE_TABLES, PVH_INFO, STACK, ZERO_PAGE};
use crate::memory::GuestRam;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;

/// A vCPU could not be set up.
#[derive(Debug, Error)]
#[error("vCPU {index}: cannot set its {what}: {source}")]
pub struct CpuError {
    index: u8,
    what: &'static str,
    source: std::io::Error,
}

/// Sets up vCPU `index` of `count`. Only vCPU 0 has an entry: the others wait for its start-up interrupts.
///
/// # Errors
/// [`CpuError`] names the part that KVM refused.
pub fn set_up(
    vcpu: &VcpuFd,
    index: u8,
    count: u8,
    cpuid: &CpuId,
    tsc_deadline: bool,
    entry: Option<Entry>,
    ram: &GuestRam,
) -> Result<(), CpuError> {
    let fail = |what| {
        move |e: kvm_ioctls::Error| CpuError { index, what, source: std::io::Error::from_raw_os_error(e.errno()) }
    };
    let mut cpuid = cpuid.clone();
    for leaf in cpuid.as_mut_slice() {
        adjust_cpuid(leaf, index, count, tsc_deadline);
    }
    vcpu.set_cpuid2(&cpuid).map_err(fail("CPUID"))?;
    set_msrs(vcpu);
    set_lapic(vcpu).map_err(fail("local APIC"))?;
    let Some(entry) = entry else { return Ok(()) };
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }).map_err(fail("FPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(fail("segments"))?;
    let (code, data, task) = match entry {
        Entry::Pvh { .. } => (segment(1, 0xb, true, false), segment(2, 3, true, false), segment(3, 0xb, false, false)),
        // The Linux protocol wants selectors 0x10 and 0x18.
        Entry::Linux64 { .. } => {
            (segment(2, 0xb, false, true), segment(3, 3, true, false), segment(4, 0xb, false, false))
        }
    };
    let task = kvm_segment { limit: 0x67, g: 0, db: 0, s: 0, ..task };
    (sregs.cs, sregs.tr) = (code, task);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    let table = [0, descriptor(&sregs.cs), descriptor(&sregs.ds), descriptor(&sregs.tr), 0];
    // Entry n of the table is selector 8 * n; the 64-bit protocol's segments sit one further.
    let shift = usize::from(matches!(entry, Entry::Linux64 { .. }));
    for (n, value) in table.iter().take(4).enumerate().skip(1) {
        let at = GDT + 8 * (n + shift) as u64;
        write(ram, at, &value.to_le_bytes()).map_err(|e| CpuError {
            index,
            what: "descriptor table",
            source: std::io::Error::other(e),
        })?;
    }
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 39);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    let regs = match entry {
        Entry::Pvh { rip } => {
            // Protected mode, paging off (Xen docs/misc/pvh.pandoc).
            (sregs.cr0, sregs.cr4, sregs.efer) = (0x11, 0, 0);
            kvm_regs { rip, rbx: PVH_INFO, rflags: 2, ..Default::default() }
        }
        Entry::Linux64 { rip } => {
            write_page_tables(ram).map_err(|e| CpuError {
                index,
                what: "page tables",
                source: std::io::Error::other(e),
            })?;
            sregs.cr3 = PAGE_TABLES;
            // PAE; PE, ET, PG; LME, LMA.
            (sregs.cr4, sregs.cr0, sregs.efer) = (0x20, 0x8000_0011, 0x500);
            kvm_regs { rip, rsi: ZERO_PAGE, rsp: STACK, rbp: STACK, rflags: 2, ..Default::default() }
        }
    };
    vcpu.set_sregs(&sregs).map_err(fail("segments"))?;
    vcpu.set_regs(&regs).map_err(fail("registers"))
}

/// Whether the host's TSC ticks at one rate in all states. On hosts without (emulated ones above all) deadlines were seen to
/// be missed by 40 s.
pub fn has_invariant_tsc(cpuid: &CpuId) -> bool {
    cpuid.as_slice().iter().any(|leaf| leaf.function == 0x8000_0007 && leaf.edx & 1 << 8 != 0)
}

/// Per-vCPU changes to what KVM supports: ids, and a topology of one package of single-threaded cores.
fn adjust_cpuid(leaf: &mut kvm_cpuid_entry2, index: u8, count: u8, tsc_deadline: bool) {
    let (id, count) = (u32::from(index), u32::from(count));
    // Bits of an APIC id that number the cores.
    let core_bits = count.next_power_of_two().trailing_zeros();
    match leaf.function {
        0x1 => {
            leaf.ebx = leaf.ebx & 0x0000_ffff | id << 24 | count << 16;
            leaf.ecx |= 1 << 31;
            leaf.ecx = if tsc_deadline { leaf.ecx | 1 << 24 } else { leaf.ecx & !(1 << 24) };
            leaf.edx = if count > 1 { leaf.edx | 1 << 28 } else { leaf.edx & !(1 << 28) };
        }
        // Deterministic caches: cores in the package; caches up to level 2 are private.
        0x4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
            let sharing = if leaf.eax >> 5 & 7 > 2 { (1 << core_bits) - 1 } else { 0 };
            leaf.eax = leaf.eax & 0x0000_3fff | sharing << 14;
            if leaf.function == 0x4 {
                leaf.eax |= ((1 << core_bits) - 1) << 26;
            }
        }
        // Extended topology: threads, then cores.
        0xb | 0x1f => {
            (leaf.eax, leaf.ebx, leaf.ecx) = match leaf.index {
                0 => (0, 1, 1 << 8),
                1 => (core_bits, count, 2 << 8 | 1),
                index => (0, 0, index),
            };
            leaf.edx = id;
        }
        0x8000_0008 => leaf.ecx = leaf.ecx & !0xf0ff | core_bits << 12 | (count - 1),
        0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id & 0xff, 0),
        _ => {}
    }
}

/// Fast string operations on, memory write-back by default. KVM may know neither: a guest boots without.
fn set_msrs(vcpu: &VcpuFd) {
    for (index, data) in [(MSR_IA32_MISC_ENABLE, 1), (MSR_MTRR_DEF_TYPE, 0xc06)] {
        if let Ok(msrs) = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]) {
            let _ = vcpu.set_msrs(&msrs);
        }
    }
}

/// LINT0 takes the PIC's interrupts, LINT1 is the NMI.
fn set_lapic(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut lapic = vcpu.get_lapic()?;
    for (offset, mode) in [(0x350, 7u32), (0x360, 4)] {
        let value = mode << 8;
        for (slot, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
            *slot = byte as std::os::raw::c_char;
        }
    }
    vcpu.set_lapic(&lapic)
}

fn segment(entry: u16, type_: u8, wide: bool, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: entry * 8,
        type_,
        present: 1,
        dpl: 0,
        db: wide.into(),
        s: 1,
        l: long.into(),
        g: 1,
        ..Default::default()
    }
}

/// The descriptor that a segment register would have been loaded from (Intel SDM 3A §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g != 0 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags =
        u64::from(segment.avl) | u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Identity map of the first 4 GiB in 2 MiB pages.
fn write_page_tables(ram: &GuestRam) -> Result<(), super::ImageError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let pdpt = PAGE_TABLES + 0x1000;
    write(ram, PAGE_TABLES, &(pdpt | PRESENT_WRITABLE).to_le_bytes())?;
    for directory in 0..4u64 {
        let at = pdpt + 0x1000 * (directory + 1);
        write(ram, pdpt + 8 * directory, &(at | PRESENT_WRITABLE).to_le_bytes())?;
        let pages: Vec<u8> = (0..512u64)
            .flat_map(|page| ((directory * 512 + page) << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes())
            .collect();
        write(ram, at, &pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_segments_have_the_well_known_descriptors() {
        assert_eq!(descriptor(&segment(2, 0xb, true, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(2, 0xb, false, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(3, 3, true, false)), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn topology_names_each_vcpu_and_the_core_count() {
        let mut leaf = kvm_cpuid_entry2 { function: 0xb, index: 1, ..Default::default() };
        adjust_cpuid(&mut leaf, 2, 3, true);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx, leaf.edx), (2, 3, 0x201, 2));
        let mut leaf = kvm_cpuid_entry2 { function: 1, ebx: 0xffff_ffff, ..Default::default() };
        adjust_cpuid(&mut leaf, 2, 3, true);
        assert_eq!((leaf.ebx, leaf.ecx >> 24 & 1, leaf.edx >> 28 & 1), (0x0203_ffff, 1, 1));
        let mut single = kvm_cpuid_entry2 { function: 1, edx: 0xffff_ffff, ..Default::default() };
        adjust_cpuid(&mut single, 0, 1, false);
        assert_eq!(single.edx >> 28 & 1, 0);
    }

    #[test]
    fn kvms_own_leaves_reach_the_guest_as_they_are() {
        // Signature and paravirtual features, kvm-clock among them (Linux Documentation/virt/kvm/x86/cpuid.rst).
        for function in [0x4000_0000, 0x4000_0001] {
            let leaf = kvm_cpuid_entry2 { function, eax: 0x0100_007b, ebx: 0x4b4d_564b, ..Default::default() };
            let mut seen = leaf;
            adjust_cpuid(&mut seen, 3, 4, true);
            assert_eq!((seen.eax, seen.ebx, seen.ecx, seen.edx), (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx));
        }
    }

    #[test]
    fn tsc_deadline_is_offered_only_where_the_hosts_clock_is_steady() {
        let leaf = |edx| kvm_cpuid_entry2 { function: 0x8000_0007, edx, ..Default::default() };
        for (edx, steady) in [(0, false), (1 << 8, true), (!(1 << 8), false)] {
            let cpuid = CpuId::from_entries(&[leaf(edx)]).unwrap();
            assert_eq!(has_invariant_tsc(&cpuid), steady);
        }
        let mut one = kvm_cpuid_entry2 { function: 1, ecx: 1 << 24, ..Default::default() };
        adjust_cpuid(&mut one, 0, 1, false);
        assert_eq!((one.ecx >> 24 & 1, one.ecx >> 31), (0, 1), "no deadline timer; hypervisor bit");
    }
}
