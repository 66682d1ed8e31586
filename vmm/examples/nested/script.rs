//! A guest without a kernel: a few instructions that work through a list of accesses. What the list says is decided on the
//! host, so a round of it costs milliseconds where a Linux guest costs seconds, and a seed is all it takes to repeat one.

use std::io::Write;

use holdfast_vmm::memory::{ECAM, PCI_WINDOW};
use holdfast_vmm::pci::virtio::BAR_SIZE;

use crate::host::text;

/// Where the instructions are, and the guest starts.
const CODE: u64 = 0x10_0000;
/// Where the list is.
const LIST: u64 = 0x10_1000;
/// Memory that the list may use: above it, below [`MEMORY_END`].
pub const MEMORY: u64 = 0x100_0000;
/// A guest of 32 MiB ends here.
pub const MEMORY_END: u64 = 0x200_0000;
/// Bytes between the instructions of two operations.
const STRIDE: usize = 32;
const FIRST: usize = 0x40;

/// What one entry of the list does, with an address (or port) and a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Op {
    Write8,
    Write16,
    Write32,
    Write64,
    Read8,
    Read16,
    Read32,
    Read64,
    Out8,
    Out16,
    Out32,
    In8,
    In16,
    In32,
    /// Counts the value down to 0.
    Spin,
    /// Halts for ever: interrupts are off.
    Halt,
    /// Waits until the 16 bits at the address are the value.
    Until,
    /// Counts the 64 bits at the address down, and goes on at the value until they are 0.
    Repeat,
    /// Writes a model-specific register.
    Wrmsr,
}

/// Instructions of each operation (rdx: address, rcx: value, rbx: the next entry).
const OPS: [&[u8]; 19] = [
    &[0x88, 0x0a],                   // mov [rdx], cl
    &[0x66, 0x89, 0x0a],             // mov [rdx], cx
    &[0x89, 0x0a],                   // mov [rdx], ecx
    &[0x48, 0x89, 0x0a],             // mov [rdx], rcx
    &[0x8a, 0x0a],                   // mov cl, [rdx]
    &[0x66, 0x8b, 0x0a],             // mov cx, [rdx]
    &[0x8b, 0x0a],                   // mov ecx, [rdx]
    &[0x48, 0x8b, 0x0a],             // mov rcx, [rdx]
    &[0x89, 0xc8, 0xee],             // mov eax, ecx; out dx, al
    &[0x89, 0xc8, 0x66, 0xef],       // mov eax, ecx; out dx, ax
    &[0x89, 0xc8, 0xef],             // mov eax, ecx; out dx, eax
    &[0xec],                         // in al, dx
    &[0x66, 0xed],                   // in ax, dx
    &[0xed],                         // in eax, dx
    &[0x48, 0xff, 0xc9, 0x75, 0xfb], // dec rcx; jnz -5
    &[0xf4, 0xeb, 0xfd],             // hlt; jmp -3
    &[0x66, 0x39, 0x0a, 0x75, 0xfb], // cmp [rdx], cx; jne -5
    // dec qword [rdx]; jz +3; mov rbx, rcx
    &[0x48, 0xff, 0x0a, 0x74, 0x03, 0x48, 0x89, 0xcb],
    // mov rax, rcx; mov rcx, rdx; mov rdx, rax; shr rdx, 32; wrmsr
    &[0x48, 0x89, 0xc8, 0x48, 0x89, 0xd1, 0x48, 0x89, 0xc2, 0x48, 0xc1, 0xea, 0x20, 0x0f, 0x30],
];

/// A list in the making.
#[derive(Debug, Clone, Default)]
pub struct Script(Vec<[u64; 3]>);

impl Script {
    pub fn push(&mut self, op: Op, addr: u64, value: u64) -> &mut Self {
        self.0.push([op as u64, addr, value]);
        self
    }

    /// As [`Script::push`], as a statement.
    pub fn put(&mut self, op: Op, addr: u64, value: u64) {
        self.push(op, addr, value);
    }

    pub fn append(&mut self, other: &Script) {
        self.0.extend(&other.0);
    }

    /// Address of the next entry, for [`Op::Repeat`].
    pub fn here(&self) -> u64 {
        LIST + 24 * self.0.len() as u64
    }

    /// Writes bytes to memory.
    pub fn bytes(&mut self, addr: u64, bytes: &[u8]) -> &mut Self {
        for (at, chunk) in (addr..).step_by(8).zip(bytes.chunks(8)) {
            let mut value = [0; 8];
            value[..chunk.len()].copy_from_slice(chunk);
            self.push(Op::Write64, at, u64::from_le_bytes(value));
        }
        self
    }

    /// Powers off by ACPI S5 (exit code 0).
    pub fn power_off(&mut self) -> &mut Self {
        self.push(Op::Out16, 0x604, 1 << 13 | 5 << 10).push(Op::Halt, 0, 0)
    }

    /// Resets by the ACPI reset register (exit code 10).
    pub fn reset(&mut self) -> &mut Self {
        self.push(Op::Out8, 0x608, 1).push(Op::Halt, 0, 0)
    }

    /// An ELF image that the VMM boots by the 64-bit protocol.
    pub fn image(&self) -> Vec<u8> {
        let mut code = vec![0xf4; (LIST - CODE) as usize];
        let mut put = |at: usize, bytes: &[u8]| code[at..at + bytes.len()].copy_from_slice(bytes);
        // mov rbx, LIST
        put(0, &[0x48, 0xbb]);
        put(2, &LIST.to_le_bytes());
        // next: mov rax, [rbx]; mov rdx, [rbx + 8]; mov rcx, [rbx + 16]; add rbx, 24
        put(0x0a, &[0x48, 0x8b, 0x03, 0x48, 0x8b, 0x53, 0x08, 0x48, 0x8b, 0x4b, 0x10, 0x48, 0x83, 0xc3, 0x18]);
        // and eax, 31; shl eax, 5; lea rsi, [rip + first]; add rax, rsi; jmp rax
        put(0x19, &[0x83, 0xe0, 0x1f, 0xc1, 0xe0, 0x05, 0x48, 0x8d, 0x35, 0x1a, 0, 0, 0, 0x48, 0x01, 0xf0, 0xff, 0xe0]);
        for (n, op) in OPS.iter().enumerate() {
            let at = FIRST + n * STRIDE;
            put(at, op);
            // jmp next
            let end = at + op.len() + 5;
            put(at + op.len(), &[0xe9]);
            put(at + op.len() + 1, &(0x0a - end as i32).to_le_bytes());
        }
        for entry in self.0.iter().chain([&[Op::Halt as u64, 0, 0]]) {
            entry.iter().for_each(|word| code.extend(word.to_le_bytes()));
        }
        let mut image = vec![0u8; 0x1000];
        let mut field = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        // ELF64 header: little-endian, executable, x86-64, entry, one program header behind it.
        field(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        field(16, &[2, 0, 62, 0, 1]);
        field(24, &CODE.to_le_bytes());
        field(32, &64u64.to_le_bytes());
        field(52, &[64, 0, 56, 0, 1]);
        // PT_LOAD, readable and executable: offset, addresses, sizes.
        let len = code.len() as u64;
        field(64, &[1, 0, 0, 0, 5]);
        for (at, value) in [(72, 0x1000), (80, CODE), (88, CODE), (96, len), (104, len)] {
            field(at, &value.to_le_bytes());
        }
        image.extend(code);
        image
    }

    /// Writes the image to a file.
    pub fn save(&self, path: &str) -> Result<(), String> {
        let mut file = std::fs::File::create(path).map_err(|e| format!("{path}: {e}"))?;
        file.write_all(&self.image()).map_err(text)
    }
}

/// Registers of the common configuration (virtio 1.3 §4.1.4.3): offset and the operation of their width.
pub const STATUS: (u64, Op) = (0x14, Op::Write8);
pub const COMMON: [(u64, Op); 17] = [
    (0x00, Op::Write32),
    (0x04, Op::Write32),
    (0x08, Op::Write32),
    (0x0c, Op::Write32),
    (0x10, Op::Write16),
    STATUS,
    (0x16, Op::Write16),
    (0x18, Op::Write16),
    (0x1a, Op::Write16),
    (0x1c, Op::Write16),
    (0x1e, Op::Write16),
    (0x20, Op::Write32),
    (0x24, Op::Write32),
    (0x28, Op::Write32),
    (0x2c, Op::Write32),
    (0x30, Op::Write32),
    (0x34, Op::Write32),
];
/// VIRTIO_F_VERSION_1, in the upper half of the features.
const VERSION_1: u64 = 1;

/// One virtqueue as a script lays it out.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    pub index: u64,
    pub size: u64,
    pub table: u64,
    pub avail: u64,
    pub used: u64,
    /// 32 KiB for buffers.
    pub buffers: u64,
}

/// A virtio function by its place on the bus.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// Device number; 0 is the host bridge.
    pub number: u64,
}

impl Function {
    /// Its configuration space in ECAM.
    pub fn config(self) -> u64 {
        ECAM.0 + (self.number << 15)
    }

    /// Its BAR 0, where the VMM puts it.
    pub fn bar(self) -> u64 {
        PCI_WINDOW.0 + u64::from(BAR_SIZE) * self.number
    }

    /// The doorbell of a queue.
    pub fn doorbell(self, queue: u64) -> u64 {
        self.bar() + 0x3000 + 4 * queue
    }

    /// Memory for one of its queues.
    pub fn ring(self, index: u64, size: u64) -> Ring {
        let base = MEMORY + self.number * 0x8_0000 + index * 0x1_0000;
        Ring { index, size, table: base, avail: base + 0x2000, used: base + 0x4000, buffers: base + 0x8000 }
    }

    /// Memory decoding and bus mastering on.
    pub fn enable(self, script: &mut Script) {
        script.push(Op::Write16, self.config() + 4, 6);
    }

    /// Reset, features, rings, DRIVER_OK, as virtio 1.3 §3.1.1 wants it. A ring that the device does not have is ignored.
    pub fn bring_up(self, script: &mut Script, features_low: u64, rings: &[Ring]) {
        let mut write = |offset: u64, op: Op, value: u64| script.put(op, self.bar() + offset, value);
        for status in [0, 1, 3] {
            write(STATUS.0, STATUS.1, status);
        }
        for (select, features) in [(0, features_low), (1, VERSION_1)] {
            write(0x08, Op::Write32, select);
            write(0x0c, Op::Write32, features);
        }
        write(STATUS.0, STATUS.1, 0xb);
        for ring in rings {
            write(0x16, Op::Write16, ring.index);
            write(0x18, Op::Write16, ring.size);
            for (register, area) in [(0x20, ring.table), (0x28, ring.avail), (0x30, ring.used)] {
                write(register, Op::Write32, area & 0xffff_ffff);
                write(register + 4, Op::Write32, area >> 32);
            }
            write(0x1c, Op::Write16, 1);
        }
        write(STATUS.0, STATUS.1, 0xf);
    }
}

impl Ring {
    /// Writes descriptor `index`.
    pub fn descriptor(&self, script: &mut Script, index: u64, addr: u64, len: u64, flags: u64, next: u64) {
        let at = self.table + 16 * index;
        script.push(Op::Write64, at, addr).push(Op::Write64, at + 8, len | flags << 32 | next << 48);
    }

    /// Puts `head` into slot `n` of the available ring and sets the index behind it.
    pub fn offer(&self, script: &mut Script, n: u64, head: u64) {
        script.push(Op::Write16, self.avail + 4 + 2 * (n % self.size), head);
        script.push(Op::Write16, self.avail + 2, n + 1);
    }

    /// Waits until the device has given back `n` chains.
    pub fn wait(&self, script: &mut Script, n: u64) {
        script.push(Op::Until, self.used + 2, n);
    }
}
