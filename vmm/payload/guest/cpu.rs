//! The processor: entry, descriptor and page tables, ports, interrupts, time.
//!
//! ```text
//!  VMM --(64-bit, CPL0)--> _start --iretq--> main (CPL3, all ports open, interrupts on)
//!                                              |  interrupt: stub at CPL0 counts, writes EOI, iretq
//!                                              +  ud2: stub at CPL0 halts until the next interrupt
//! ```
//!
//! Why CPL3: some hosts run CPL3 natively and emulate each CPL0 instruction. So all that runs at CPL0 is the entry and
//! stubs of a few instructions. Such hosts ignore IOPL, hence the I/O permission bitmap; and they lose a software
//! interrupt that meets a device's, hence the exception as the way to halt.

use core::arch::{asm, global_asm, x86_64::_rdtsc};

/// Vectors with a stub: [`FIRST_VECTOR`] and up.
pub const VECTORS: usize = 32;
/// Vector of the first stub.
pub const FIRST_VECTOR: usize = 0x40;
/// #UD, the vector of the halt call.
const HALT_VECTOR: usize = 6;
/// Bytes of an interrupt stub.
const STUB: u64 = 32;
/// Local APIC (Intel SDM 3A §11.4.1) and IO-APIC.
const LAPIC: u64 = 0xfee0_0000;
const LAPIC_SPURIOUS: u64 = 0xf0;
const LAPIC_TIMER_LVT: u64 = 0x320;
const LAPIC_TIMER_START: u64 = 0x380;
const LAPIC_TIMER_NOW: u64 = 0x390;
const LAPIC_TIMER_DIVIDE: u64 = 0x3e0;
const IOAPIC: u64 = 0xfec0_0000;

// Selectors: 0x10 kernel code, 0x18 kernel data, 0x28 user data, 0x30 user code, 0x40 task state.
// Page tables: RAM below 1 GiB and the device window from 3 GiB, both open to CPL3, in 2 MiB pages.
global_asm!(
    r#"
.section .text.entry, "ax"
.global _start
_start:
    mov rax, offset pml4
    mov cr3, rax
    lgdt [gdt_pointer]
    lidt [idt_pointer]
    mov eax, offset task_state
    mov [task_descriptor + 2], ax
    shr eax, 16
    mov [task_descriptor + 4], al
    mov [task_descriptor + 7], ah
    mov eax, 0x40
    ltr ax
    mov rax, cr4
    or rax, 0x600                   # OSFXSR, OSXMMEXCPT: compiled code uses SSE registers
    mov cr4, rax
    push 0x2b
    push offset user_stack_end - 8     # as after a call
    push 0x3202                     # interrupts on, IOPL 3
    push 0x33
    push offset main                # rsi still holds the zero page
    iretq

.balign 32
.global interrupt_stubs
interrupt_stubs:
.set number, 0
.rept 32
    .balign 32
    push rax
    inc qword ptr [interrupt_counts + 8 * number]
    inc qword ptr [interrupt_total]
    mov eax, 0xfee000b0             # end of interrupt
    mov dword ptr [rax], 0
    pop rax
    iretq
    .set number, number + 1
.endr

.balign 32
.global halt_stub
halt_stub:                          # rax: the total that the caller has seen
    add qword ptr [rsp], 2          # past the ud2
    cmp rax, [interrupt_total]
    jne 1f
    sti                             # takes effect after hlt has begun: no interrupt is slept through
    hlt
1:  iretq

.section .data
.balign 4096
pml4:
    .quad pdpt + 7
    .zero 4088
pdpt:
    .quad low_pages + 7, 0, 0, high_pages + 7
    .zero 4064
low_pages:
.set address, 0
.rept 512
    .quad address + 0x87
    .set address, address + 0x200000
.endr
high_pages:
.set address, 0xc0000000
.rept 512
    .quad address + 0x87
    .set address, address + 0x200000
.endr
gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0x00cff3000000ffff, 0x00affb000000ffff, 0
task_descriptor:
    .quad 0x0000890000002068, 0
gdt_pointer:
    .word 79
    .quad gdt
.balign 16
idt_pointer:
    .word 4095
    .quad interrupt_table
.balign 16
task_state:                         # rsp0, then the bitmap that opens every port
    .long 0
    .quad kernel_stack_end
    .zero 90
    .word 104
    .zero 8192
    .byte 0xff
.balign 8
.global interrupt_counts
interrupt_counts:
    .zero 256
.global interrupt_total
interrupt_total:
    .quad 0

.section .bss
.balign 4096
.global interrupt_table
interrupt_table:
    .zero 4096
    .zero 4096
kernel_stack_end:
    .zero 65536
user_stack_end:
"#
);

unsafe extern "C" {
    static interrupt_stubs: u8;
    static halt_stub: u8;
    static mut interrupt_table: [u64; 512];
    static interrupt_counts: [u64; VECTORS];
    static interrupt_total: u64;
}

/// Opens the interrupt vectors and the local APIC.
pub fn set_up_interrupts() {
    for n in 0..VECTORS {
        set_gate(FIRST_VECTOR + n, &raw const interrupt_stubs as u64 + STUB * n as u64);
    }
    set_gate(HALT_VECTOR, &raw const halt_stub as u64);
    // Software enable, spurious vector 0xff.
    write32(LAPIC + LAPIC_SPURIOUS, 0x1ff);
}

/// A 64-bit interrupt gate for CPL0 (Intel SDM 3A §6.14.1).
fn set_gate(vector: usize, target: u64) {
    let low = target & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (target >> 16 & 0xffff) << 48;
    let table = &raw mut interrupt_table as *mut u64;
    // SAFETY: the table has 256 entries of two words; every vector here is below 256.
    unsafe {
        table.add(2 * vector).write_volatile(low);
        table.add(2 * vector + 1).write_volatile(target >> 32);
    }
}

/// Interrupts taken on stub `n`.
pub fn interrupts(n: usize) -> u64 {
    // SAFETY: in bounds for every vector that `transport` hands out; the stub writes it behind the compiler's back.
    unsafe { (&raw const interrupt_counts as *const u64).add(n).read_volatile() }
}

/// All interrupts taken.
pub fn all_interrupts() -> u64 {
    // SAFETY: as above.
    unsafe { (&raw const interrupt_total).read_volatile() }
}

/// Halts until an interrupt comes, unless one has come since `seen` was read.
pub fn halt(seen: u64) {
    // SAFETY: the stub changes no register and no memory but the counters.
    unsafe { asm!("ud2", in("rax") seen) }
}

/// Routes IO-APIC `pin` to stub `n`, and silences the legacy PICs, which have the pin too. By its rising edge: the stub does
/// not know the device, so a level would interrupt again and again until the device is asked.
pub fn route_pin(pin: u32, n: usize) {
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    let entry = (FIRST_VECTOR + n) as u32;
    for (register, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, entry)] {
        write32(IOAPIC, register);
        write32(IOAPIC + 0x10, value);
    }
}

/// Time stamp counter.
pub fn now() -> u64 {
    // SAFETY: every processor that runs 64-bit code has it.
    unsafe { _rdtsc() }
}

/// Time stamp ticks in a millisecond, by the local APIC's timer, which ticks once a nanosecond under KVM.
pub fn ticks_per_ms() -> u64 {
    const NANOSECONDS: u32 = 10_000_000;
    write32(LAPIC + LAPIC_TIMER_LVT, 1 << 16);
    write32(LAPIC + LAPIC_TIMER_DIVIDE, 0xb);
    write32(LAPIC + LAPIC_TIMER_START, u32::MAX);
    let (from, start) = (read32(LAPIC + LAPIC_TIMER_NOW), now());
    loop {
        let (passed, ticks) = (from - read32(LAPIC + LAPIC_TIMER_NOW), now() - start);
        if passed >= NANOSECONDS {
            write32(LAPIC + LAPIC_TIMER_START, 0);
            return ticks * 1_000_000 / u64::from(passed);
        }
    }
}

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: ports belong to the VMM, not to our memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// Writes a word to a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as above.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) }
}

/// Reads a word from a port.
pub fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) }
    value
}

macro_rules! memory_access {
    ($read:ident, $write:ident, $type:ty) => {
        /// Reads memory or a device register at a physical address.
        pub fn $read(address: u64) -> $type {
            // SAFETY: all of RAM and the device window are mapped at their physical addresses.
            unsafe { (address as *const $type).read_volatile() }
        }

        /// Writes memory or a device register at a physical address.
        pub fn $write(address: u64, value: $type) {
            // SAFETY: as above; callers write devices, or memory that `memory::allocate` gave them.
            unsafe { (address as *mut $type).write_volatile(value) }
        }
    };
}
memory_access!(read8, write8, u8);
memory_access!(read16, write16, u16);
memory_access!(read32, write32, u32);
memory_access!(read64, write64, u64);

/// Ends the VM by a fault without a handler.
pub fn triple_fault() -> ! {
    loop {
        // Not mapped, and the page fault has no gate.
        read8(0x80_0000_0000);
    }
}
