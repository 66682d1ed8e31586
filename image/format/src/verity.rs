//! dm-verity hash trees (kernel `Documentation/admin-guide/device-mapper/verity.rst`, format 1).
//!
//! ```text
//!  data      `blocks` blocks of 4096
//!  tree      right behind, no superblock: top level first, leaves last; 128 SHA-256 digests to a block
//! ```
//! Digest of a block = SHA-256(salt ‖ block), salt = 32 zero bytes: it only matters against precomputation over
//! images that are public anyway, and a fixed one keeps builds reproducible.

use sha2::{Digest, Sha256};
use std::io::{self, Read};

/// Size of data and hash blocks.
pub const BLOCK: u64 = 4096;
/// The salt of every Holdfast tree.
pub const SALT: [u8; 32] = [0; 32];
const PER_BLOCK: usize = BLOCK as usize / 32;

/// A verity tree and the root that stands for all of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// What the command line carries.
    pub root: Root,
    /// The blocks to put behind the data.
    pub bytes: Vec<u8>,
}

/// Root hash and number of data blocks: all that is needed to open the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// Digest of the top block.
    pub hash: [u8; 32],
    /// Data blocks of 4096 bytes; also the block at which the tree starts.
    pub blocks: u64,
}

/// Command line items that are missing or malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernel command line: {item}={found:?}, expected {expected}")]
pub struct RootError {
    item: &'static str,
    found: String,
    expected: &'static str,
}

impl Root {
    /// `slot.root=HEX slot.blocks=N`.
    #[must_use]
    pub fn to_cmdline(&self) -> String {
        format!("slot.root={} slot.blocks={}", hex::encode(self.hash), self.blocks)
    }

    /// Finds the two items in a command line.
    ///
    /// # Errors
    /// Names the item that is missing or malformed.
    pub fn from_cmdline(cmdline: &str) -> Result<Root, RootError> {
        let get = |item: &'static str| {
            let value = cmdline.split_ascii_whitespace().find_map(|w| w.strip_prefix(item)?.strip_prefix('='));
            value.unwrap_or_default()
        };
        let (root, blocks) = (get("slot.root"), get("slot.blocks"));
        let hash = hex::decode(root).ok().and_then(|h| h.try_into().ok());
        let hash =
            hash.ok_or_else(|| RootError { item: "slot.root", found: root.into(), expected: "64 hexadecimal digits" })?;
        let max = 1u64 << 40;
        let count = blocks.parse().ok().filter(|n| (1..=max).contains(n));
        let blocks = count.ok_or_else(|| RootError {
            item: "slot.blocks",
            found: blocks.into(),
            expected: "the number of data blocks",
        })?;
        Ok(Root { hash, blocks })
    }

    /// Bytes of data and tree together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        (self.blocks + tree_blocks(self.blocks)) * BLOCK
    }

    /// Parameters of the device-mapper target `verity` when data and tree lie on the same device (named by path or
    /// `major:minor`). Corruption panics the kernel, which leads to a reboot and the other slot.
    #[must_use]
    pub fn table_params(&self, device: &str) -> String {
        format!(
            "1 {device} {device} {BLOCK} {BLOCK} {blocks} {blocks} sha256 {root} {salt} 1 panic_on_corruption",
            blocks = self.blocks,
            root = hex::encode(self.hash),
            salt = hex::encode(SALT),
        )
    }

    /// Length of the resulting device in sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.blocks * (BLOCK / 512)
    }
}

/// Blocks of the tree over `data_blocks` blocks.
#[must_use]
pub fn tree_blocks(data_blocks: u64) -> u64 {
    let mut level = data_blocks;
    let mut sum = 0;
    while level > 1 {
        level = level.div_ceil(PER_BLOCK as u64);
        sum += level;
    }
    sum
}

/// Builds the tree over everything `data` yields; a last block that is not whole counts as padded with zeros.
/// Memory: 32 bytes for each 4096 of data.
///
/// # Errors
/// What `data` reports, or `InvalidInput` when it is empty.
pub fn build(mut data: impl Read) -> io::Result<Tree> {
    let mut level: Vec<u8> = Vec::new();
    let mut blocks = 0u64;
    let mut buf = vec![0u8; PER_BLOCK * BLOCK as usize];
    loop {
        let n = read_full(&mut data, &mut buf)?;
        let padded = n.next_multiple_of(BLOCK as usize);
        buf[n..padded].fill(0);
        for block in buf[..padded].chunks_exact(BLOCK as usize) {
            level.extend(digest(block));
            blocks += 1;
        }
        if n < buf.len() {
            break;
        }
    }
    if blocks == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no data to build a verity tree over"));
    }
    // Levels from the leaves up; stored the other way round.
    let mut levels = Vec::new();
    while level.len() > 32 {
        level.resize(level.len().next_multiple_of(BLOCK as usize), 0);
        let above = level.chunks_exact(BLOCK as usize).flat_map(digest).collect();
        levels.push(std::mem::replace(&mut level, above));
    }
    let mut hash = [0u8; 32];
    hash.copy_from_slice(&level);
    let bytes = levels.into_iter().rev().flatten().collect();
    Ok(Tree { root: Root { hash, blocks }, bytes })
}

/// Reads a whole slot image (data, then tree) and says whether it is the one that `root` stands for.
///
/// # Errors
/// What `image` reports; an image that is too short is `UnexpectedEof`.
pub fn check(image: &mut impl Read, root: &Root) -> io::Result<bool> {
    let built = build((&mut *image).take(root.blocks * BLOCK))?;
    if built.root.blocks != root.blocks {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut stored = vec![0u8; built.bytes.len()];
    image.read_exact(&mut stored)?;
    Ok(built.root == *root && stored == built.bytes)
}

fn digest(block: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(SALT).chain_update(block).finalize().into()
}

fn read_full(data: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match data.read(&mut buf[n..]) {
            Ok(0) => break,
            Ok(k) => n += k,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_has_the_predicted_size_at_each_level_border() {
        for blocks in [1u64, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1] {
            let t = build(io::repeat(3).take(blocks * BLOCK)).unwrap();
            assert_eq!(t.bytes.len() as u64, tree_blocks(blocks) * BLOCK, "{blocks}");
            assert_eq!(t.root.blocks, blocks);
        }
    }

    #[test]
    fn any_changed_byte_of_data_or_tree_is_noticed() {
        let data: Vec<u8> = (0..300u32 * 4096).map(|i| (i / 7) as u8).collect();
        let t = build(&data[..]).unwrap();
        let image = [data, t.bytes.clone()].concat();
        assert!(check(&mut &image[..], &t.root).unwrap());
        for at in [0, 4096 * 150 + 5, 4096 * 300 - 1, 4096 * 300, image.len() - 4000] {
            let mut bad = image.clone();
            bad[at] ^= 1;
            assert!(!check(&mut &bad[..], &t.root).unwrap(), "{at}");
        }
        assert!(check(&mut &image[..4096 * 200], &t.root).is_err());
    }

    #[test]
    fn the_command_line_round_trips_and_names_what_is_wrong() {
        let root = Root { hash: [0xab; 32], blocks: 6000 };
        let line = format!("quiet {} panic=10", root.to_cmdline());
        assert_eq!(Root::from_cmdline(&line), Ok(root));
        let e = Root::from_cmdline(&line.replace("slot.blocks=6000", "slot.blocks=0")).unwrap_err();
        assert_eq!(e.to_string(), "kernel command line: slot.blocks=\"0\", expected the number of data blocks");
        assert!(Root::from_cmdline("slot.blocks=1 slot.root=abcd").unwrap_err().to_string().contains("slot.root"));
    }

    #[test]
    fn table_parameters_are_what_the_kernel_documents() {
        let root = Root { hash: [1; 32], blocks: 10 };
        let want = format!(
            "1 /dev/vda3 /dev/vda3 4096 4096 10 10 sha256 {} {} 1 panic_on_corruption",
            "01".repeat(32),
            "00".repeat(32)
        );
        assert_eq!(root.table_params("/dev/vda3"), want);
        assert_eq!(root.sectors(), 80);
    }
}
