//! The OS slot: which one this kernel belongs to, its verity device, its file system as the new root.
//!
//! Corruption is answered in three layers. Before anything of a slot is used, all of it is read once through verity,
//! so that a changed byte is found at boot and not in the middle of a day. Later a bad block makes its read fail
//! with EIO rather than stopping the kernel, so that PID 1, whose own text is not in the slot, lives to write the
//! reason to STATE; [`Open::fault`] is looked at once a second. If even that cannot happen, the watchdog resets.
#![forbid(unsafe_code)]

use super::cmdline::Cmdline;
use holdfast_dm::table::{OnCorruption, Verity};
use holdfast_dm::{Control, DmError, Target};
use holdfast_format::pcr::sha256;
use holdfast_format::verity::{BLOCK, SALT};
use holdfast_model::boot::Partitions;
use holdfast_model::slot::Slot;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MsFlags, mount};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Name of the mapped device.
const NAME: &str = "slot";
/// Where the slot is mounted before it becomes the root.
pub const MOUNT_POINT: &str = "/slot";
/// Bytes read at a time by each reader while all of the slot is verified.
const CHUNK: usize = 256 << 10;
/// Most readers; more would only wait for the disk.
const MAX_READERS: u64 = 4;

/// Why a slot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Neither the loader nor the contents say which slot this is.
    #[error("no OS slot holds the image of this kernel (slot.root={root}): neither OS-A nor OS-B has its verity tree")]
    Unknown {
        /// The root hash of the command line, shortened.
        root: String,
    },
    /// The verity device.
    #[error("OS-{slot}: verity device: {source}")]
    Verity {
        /// The slot.
        slot: Slot,
        /// Why.
        source: DmError,
    },
    /// A block fails verification or cannot be read.
    #[error("OS-{slot}: the block of 4096 bytes number {block} fails verification against slot.root ({source})")]
    Corrupt {
        /// The slot.
        slot: Slot,
        /// First one found.
        block: u64,
        /// What the read said.
        source: io::Error,
    },
    /// The file system.
    #[error("OS-{slot}: mounting erofs: {source}")]
    Mount {
        /// The slot.
        slot: Slot,
        /// Why.
        source: io::Error,
    },
}

/// Which slot runs: the one that the firmware loaded, as its variables tell; without them (a kernel started by hand) the
/// first one whose verity tree has the root hash of the command line.
pub fn running(loaded: Option<Slot>, parts: &Partitions, cmdline: &Cmdline) -> Result<Slot, SlotError> {
    if let Some(slot) = loaded {
        return Ok(slot);
    }
    let holds = |slot: &Slot| has_tree(Path::new(os(parts, *slot)), cmdline).unwrap_or(false);
    Slot::ALL
        .into_iter()
        .find(holds)
        .ok_or_else(|| SlotError::Unknown { root: cmdline.root.hash[..8].iter().map(|b| format!("{b:02x}")).collect() })
}

/// Device path of a slot's OS partition.
pub fn os(parts: &Partitions, slot: Slot) -> &str {
    match slot {
        Slot::A => &parts.os_a,
        Slot::B => &parts.os_b,
    }
}

/// The top block of the tree has the root hash.
fn has_tree(device: &Path, cmdline: &Cmdline) -> io::Result<bool> {
    let mut top = vec![0u8; BLOCK as usize];
    File::open(device)?.read_exact_at(&mut top, cmdline.root.blocks * BLOCK)?;
    Ok(sha256(&[&SALT, &top]) == cmdline.root.hash)
}

/// An open slot.
#[derive(Debug)]
pub struct Open {
    slot: Slot,
    control: Control,
    node: PathBuf,
}

/// Makes the verity device of a slot.
pub fn open(slot: Slot, parts: &Partitions, cmdline: &Cmdline) -> Result<Open, SlotError> {
    let fault = |source| SlotError::Verity { slot, source };
    let device = os(parts, slot);
    let control = Control::open().map_err(fault)?;
    let target = Target::verity(&Verity {
        data_device: device,
        hash_device: device,
        data_blocks: cmdline.root.blocks,
        hash_start_block: cmdline.root.blocks,
        root_hash: &cmdline.root.hash,
        salt: &SALT,
        on_corruption: OnCorruption::Fail,
    });
    let number = control.activate(NAME, "", true, &[target]).map_err(fault)?;
    Ok(Open { slot, control, node: number.node() })
}

impl Open {
    /// Reads every block once, on several processors, as hashing takes longer than reading. The pages are given back:
    /// file reads have their own cache.
    pub fn verify_all(&self, blocks: u64) -> Result<(), SlotError> {
        let fault = |(block, source)| SlotError::Corrupt { slot: self.slot, block, source };
        let device = File::open(&self.node).map_err(|e| fault((0, e)))?;
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let share = blocks.div_ceil(processors.min(MAX_READERS)).max(1);
        std::thread::scope(|scope| {
            let starts = (0..blocks).step_by(share as usize);
            let readers: Vec<_> = starts
                .map(|start| {
                    scope.spawn({
                        let device = &device;
                        move || read_blocks(device, start, (start + share).min(blocks))
                    })
                })
                .collect();
            // The first damaged block of the slot, whoever met it.
            readers.into_iter().try_for_each(|reader| match reader.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
        .map_err(fault)?;
        // Only memory is at stake.
        let _ = posix_fadvise(&device, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }

    /// Mounts it read-only at [`MOUNT_POINT`].
    pub fn mount(&self) -> Result<(), SlotError> {
        let fault = |source| SlotError::Mount { slot: self.slot, source };
        fs::create_dir_all(MOUNT_POINT).map_err(fault)?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some(&self.node), MOUNT_POINT, Some("erofs"), flags, None::<&str>).map_err(|e| fault(e.into()))
    }

    /// Undoes [`open`].
    pub fn close(self) {
        // When this fails the device stays, and the reboot that follows takes it away.
        let _ = self.control.remove(NAME);
    }

    /// Says so when verity has met a bad block since the slot was opened.
    pub fn fault(&self) -> Option<String> {
        let status = self.control.status(NAME).ok()?;
        // "V" while all blocks read so far were good, "C" after one was not.
        status.iter().any(|row| row.trim_start().starts_with('C')).then(|| {
            format!("OS-{}: a block that was read while running fails verification against slot.root", self.slot)
        })
    }
}

/// Reads blocks `from` up to `to`; on failure gives the first bad one.
fn read_blocks(device: &File, from: u64, to: u64) -> Result<(), (u64, io::Error)> {
    let mut buffer = vec![0u8; CHUNK];
    let (mut at, end) = (from * BLOCK, to * BLOCK);
    while at < end {
        let length = (end - at).min(CHUNK as u64) as usize;
        if let Err(error) = device.read_exact_at(&mut buffer[..length], at) {
            let bad = (at..at + length as u64)
                .step_by(BLOCK as usize)
                .find(|block| device.read_exact_at(&mut buffer[..BLOCK as usize], *block).is_err());
            return Err((bad.unwrap_or(at) / BLOCK, error));
        }
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::verity;

    #[test]
    fn blocks_are_read_to_the_end_and_the_first_bad_one_is_named() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100 * BLOCK).unwrap();
        assert!(read_blocks(&file, 0, 100).is_ok());
        assert!(read_blocks(&file, 99, 100).is_ok());
        // A file that is too short stands in for a block that cannot be read.
        assert_eq!(read_blocks(&file, 50, 120).unwrap_err().0, 100);
    }

    #[test]
    fn slot_is_known_by_its_esp_or_else_by_its_tree() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, data: &[u8]| {
            let tree = verity::build(data).unwrap();
            let path = dir.path().join(name);
            fs::write(&path, [data, &tree.bytes].concat()).unwrap();
            (path.display().to_string(), tree.root)
        };
        let (os_a, _) = write("a", &[1; 8192]);
        let (os_b, root) = write("b", &[2; 8192]);
        let parts = Partitions { os_a, os_b, ..Partitions::default() };
        let mut cmdline = Cmdline { root, version: "1".into(), epoch: 0 };
        assert_eq!(running(None, &parts, &cmdline).unwrap(), Slot::B);
        assert_eq!(running(Some(Slot::A), &parts, &cmdline).unwrap(), Slot::A);
        cmdline.root.hash[0] ^= 1;
        assert!(running(None, &parts, &cmdline).is_err());
    }
}
