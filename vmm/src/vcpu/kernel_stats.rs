//! What only the kernel can count: exits that KVM answered itself (timer, APIC, CPUID, halts).
//!
//! Read from the statistics descriptor of a vCPU (`KVM_GET_STATS_FD`, Linux 5.14), whose file is: header, id, descriptors
//! of the counters, data (linux/kvm.h). The layout is the same for all vCPUs of a host.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// Bytes of `kvm_stats_header`.
const HEADER: usize = 24;
/// Bytes of `kvm_stats_desc` before the name; the offset of its data is at [`DATA_OFFSET`].
const DESCRIPTOR: usize = 16;
const DATA_OFFSET: usize = 8;
/// More counters than any kernel has: a bound for what is read.
const MOST_COUNTERS: usize = 512;
/// Longest name.
const MOST_NAME: usize = 256;

/// One vCPU's counters in the kernel.
#[derive(Debug)]
pub struct KernelStats {
    file: File,
    exits: u64,
    halts: u64,
}

impl KernelStats {
    /// The counters of `vcpu`; `None` where the kernel has none, or is refused them. Opens a descriptor, so before the jail
    /// closes.
    pub fn of(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: takes no argument; makes a descriptor or fails.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD as _) };
        if fd < 0 {
            return None;
        }
        // SAFETY: just made, owned by nobody else.
        Self::read_layout(unsafe { File::from_raw_fd(fd) })
    }

    fn read_layout(file: File) -> Option<Self> {
        let mut header = [0u8; HEADER];
        file.read_exact_at(&mut header, 0).ok()?;
        // flags, name size, number, offset of id, of descriptors, of data
        let [_, name, count, _, descriptors, data] = [0, 4, 8, 12, 16, 20].map(|at| word(&header, at) as usize);
        if count > MOST_COUNTERS || name > MOST_NAME {
            return None;
        }
        let mut table = vec![0u8; count * (DESCRIPTOR + name)];
        file.read_exact_at(&mut table, descriptors as u64).ok()?;
        let place = |wanted: &str| {
            let entry = table.chunks_exact(DESCRIPTOR + name).find(|entry| {
                let name = &entry[DESCRIPTOR..];
                name.split(|byte| *byte == 0).next() == Some(wanted.as_bytes())
            })?;
            Some(data as u64 + u64::from(word(entry, DATA_OFFSET)))
        };
        let (exits, halts) = (place("exits")?, place("halt_exits")?);
        Some(Self { file, exits, halts })
    }

    /// Every exit of this vCPU, and how many of them were `HLT`.
    pub fn totals(&self) -> (u64, u64) {
        let read = |at| {
            let mut value = [0u8; 8];
            // The counter cannot vanish; a failure reads as nothing counted.
            self.file.read_exact_at(&mut value, at).map_or(0, |()| u64::from_ne_bytes(value))
        };
        (read(self.exits), read(self.halts))
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(names: &[&str], values: &[u64]) -> File {
        let (name, mut bytes) = (48u32, Vec::new());
        let descriptors = 64u32;
        let data = descriptors + names.len() as u32 * (16 + name);
        for field in [0, name, names.len() as u32, 24, descriptors, data] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.resize(descriptors as usize, 0);
        for (n, text) in names.iter().enumerate() {
            bytes.extend([0; 8]);
            bytes.extend((8 * n as u32).to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(text.as_bytes());
            bytes.resize(descriptors as usize + (n + 1) * (16 + name as usize), 0);
        }
        values.iter().for_each(|value| bytes.extend(value.to_ne_bytes()));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn counters_are_found_by_name() {
        let stats = KernelStats::read_layout(file(&["pf_taken", "exits", "halt_exits"], &[1, 22, 333])).unwrap();
        assert_eq!(stats.totals(), (22, 333));
    }

    #[test]
    fn missing_counters_and_short_files_are_none() {
        assert!(KernelStats::read_layout(file(&["pf_taken", "exits_too"], &[1, 2])).is_none());
        let short = file(&["exits", "halt_exits"], &[]);
        short.set_len(90).unwrap();
        assert!(KernelStats::read_layout(short).is_none());
        assert!(KernelStats::read_layout(tempfile::tempfile().unwrap()).is_none());
    }
}
