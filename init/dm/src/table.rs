//! Targets: what a mapped device consists of, and the parameter strings of the two we use.
#![forbid(unsafe_code)]

use core::fmt::Write as _;

/// Device-mapper counts in sectors of 512 bytes, whatever the disk's own sector size is.
pub const SECTOR_SIZE: u64 = 512;

/// One row of a device-mapper table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// First sector of the mapped device that this row covers.
    pub start_sectors: u64,
    /// Number of sectors it covers.
    pub length_sectors: u64,
    /// Target type, at most 15 bytes: `verity`, `crypt`, `linear`...
    pub kind: String,
    /// Target parameters, as in the kernel's `Documentation/admin-guide/device-mapper/`.
    pub params: String,
}

/// What the kernel does when a block does not match the hash tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCorruption {
    /// The read fails with EIO.
    Fail,
    /// The kernel panics (and with `panic=N` on its command line reboots).
    Panic,
    /// The kernel reboots at once.
    Restart,
}

/// A dm-verity tree over one data area with sha256 and 4096 byte blocks.
#[derive(Debug, Clone, Copy)]
pub struct Verity<'a> {
    /// Device that holds the data, a path or `major:minor`.
    pub data_device: &'a str,
    /// Device that holds the hash tree; may be the same.
    pub hash_device: &'a str,
    /// Data blocks of 4096 bytes.
    pub data_blocks: u64,
    /// First block of the tree's root level on the hash device, in blocks of 4096 bytes.
    pub hash_start_block: u64,
    /// Root hash.
    pub root_hash: &'a [u8; 32],
    /// Salt; empty for none.
    pub salt: &'a [u8],
    /// Reaction to a bad block.
    pub on_corruption: OnCorruption,
}

impl Target {
    /// A read-only verity target that covers its whole data area.
    pub fn verity(v: &Verity<'_>) -> Self {
        let salt = if v.salt.is_empty() { "-".to_owned() } else { hex(v.salt) };
        let option = match v.on_corruption {
            OnCorruption::Fail => "",
            OnCorruption::Panic => " 1 panic_on_corruption",
            OnCorruption::Restart => " 1 restart_on_corruption",
        };
        Self {
            start_sectors: 0,
            length_sectors: v.data_blocks * (4096 / SECTOR_SIZE),
            kind: "verity".into(),
            params: format!(
                "1 {} {} 4096 4096 {} {} sha256 {} {salt}{option}",
                v.data_device,
                v.hash_device,
                v.data_blocks,
                v.hash_start_block,
                hex(v.root_hash),
            ),
        }
    }

    /// A crypt target: AES-256 in XTS mode (a key of 64 bytes) over `length_sectors` sectors of
    /// `device`, beginning `offset_sectors` into it. The key is the one of type `logon` that the caller
    /// has put into a keyring under `key_description`. Discards pass through: flash wear matters more
    /// on an edge machine than hiding which blocks are free.
    pub fn crypt(device: &str, offset_sectors: u64, length_sectors: u64, key_description: &str) -> Self {
        Self {
            start_sectors: 0,
            length_sectors,
            kind: "crypt".into(),
            params: format!("aes-xts-plain64 :64:logon:{key_description} 0 {device} {offset_sectors} 1 allow_discards"),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        // Writing to a String cannot fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verity_parameters_follow_the_kernel_document() {
        let t = Target::verity(&Verity {
            data_device: "/dev/sda3",
            hash_device: "/dev/sda3",
            data_blocks: 100,
            hash_start_block: 101,
            root_hash: &[0xab; 32],
            salt: &[],
            on_corruption: OnCorruption::Panic,
        });
        assert_eq!(t.length_sectors, 800);
        assert_eq!(
            t.params,
            format!("1 /dev/sda3 /dev/sda3 4096 4096 100 101 sha256 {} - 1 panic_on_corruption", "ab".repeat(32))
        );
    }

    #[test]
    fn crypt_parameters_name_the_key_and_never_hold_it() {
        let t = Target::crypt("/dev/vda7", 2048, 4096, "holdfast:data");
        assert_eq!(t.kind, "crypt");
        assert_eq!(t.params, "aes-xts-plain64 :64:logon:holdfast:data 0 /dev/vda7 2048 1 allow_discards");
    }
}
