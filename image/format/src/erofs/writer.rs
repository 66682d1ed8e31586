//! Lays a tree out and writes the image, front to back.

use super::tree::{Data, Kind, Node, NodeId, Tree};
use crate::io::{ReadAt, round_up};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

/// Block size.
pub const BLOCK: u64 = 4096;
const MAGIC: u32 = 0xE0F5_E1E2;
const SUPERBLOCK_AT: usize = 1024;
/// Feature_compat: superblock checksum, modification times.
const COMPAT: u32 = 0x1 | 0x2;
const INODE: u64 = 64;
/// Unit of a node id.
const SLOT: u64 = 32;
const EXTENDED: u16 = 1;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2 << 1;
const DIRENT: usize = 12;
const XATTR_HEADER: usize = 12;
const NO_BLOCK: u32 = u32::MAX;

/// What is not in the tree.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// UUID of the file system; fix it, or derive it from what the image is made from.
    pub uuid: [u8; 16],
    /// Volume name, NUL padded.
    pub volume_name: [u8; 16],
    /// Build time, seconds since 1970.
    pub build_time: u64,
}

/// Why no image was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output failed.
    #[error("cannot write the erofs image: {0}")]
    Output(io::Error),
    /// The spool file failed.
    #[error("cannot read file contents from the spool at byte {offset}: {source}")]
    Spool {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// An extended attribute that erofs cannot hold.
    #[error("extended attribute {name:?}: {what}")]
    Xattr {
        /// Its name.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// More than the format can hold.
    #[error("erofs image grows beyond {0}")]
    TooLarge(&'static str),
}

/// Where an inode lies.
struct Placed {
    id: NodeId,
    /// Byte offset of the inode.
    at: u64,
    xattrs: Vec<u8>,
    size: u64,
    /// Length of the data kept beside the inode; 0 means flat plain.
    tail: u64,
    /// First block of the other data.
    block: u32,
    nlink: u32,
    /// The directory this one is in.
    parent: NodeId,
}

impl Placed {
    fn nid(&self) -> u64 {
        self.at / SLOT
    }

    /// Data that lies in blocks of its own.
    fn block_bytes(&self) -> u64 {
        self.size - self.tail
    }
}

/// Writes the image of `tree` to `out`; gives its length in bytes. `spool` holds the contents of [`Data::Spool`] files.
///
/// # Errors
/// [`WriteError`].
pub fn write(
    out: &mut impl Write,
    tree: &Tree,
    spool: &(impl ReadAt + ?Sized),
    options: Options,
) -> Result<u64, WriteError> {
    let plan = Plan::of(tree)?;
    let mut w = Output { out, at: 0 };
    w.put(&plan.head(options))?;
    for p in &plan.placed {
        w.pad_to(p.at)?;
        let node = tree.node(p.id);
        w.put(&inode(node, p, plan.number(p.id)))?;
        w.put(&p.xattrs)?;
        if p.tail > 0 {
            plan.contents(&mut w, tree, spool, p, p.block_bytes(), p.tail)?;
        }
    }
    for p in plan.placed.iter().filter(|p| has_data(tree.node(p.id)) && p.block_bytes() > 0) {
        w.pad_to(u64::from(p.block) * BLOCK)?;
        plan.contents(&mut w, tree, spool, p, 0, p.block_bytes())?;
    }
    w.pad_to(plan.blocks * BLOCK)?;
    Ok(w.at)
}

struct Plan<'t> {
    tree: &'t Tree,
    placed: Vec<Placed>,
    index: HashMap<NodeId, usize>,
    blocks: u64,
}

impl<'t> Plan<'t> {
    fn of(tree: &'t Tree) -> Result<Plan<'t>, WriteError> {
        let mut plan = Plan { tree, placed: Vec::new(), index: HashMap::new(), blocks: 0 };
        let mut at = BLOCK;
        // Depth first without recursion; the root comes first, as its nid has 16 bits.
        let mut todo = vec![(tree.root(), tree.root())];
        while let Some((id, parent)) = todo.pop() {
            if let Some(&known) = plan.index.get(&id) {
                plan.placed[known].nlink += 1;
                continue;
            }
            let node = tree.node(id);
            let mut nlink = 1;
            if let Kind::Dir(children) = &node.kind {
                nlink = 2 + children.values().filter(|c| matches!(tree.node(**c).kind, Kind::Dir(_))).count() as u32;
                todo.extend(children.values().rev().map(|c| (*c, id)));
            }
            let size = match &node.kind {
                Kind::Dir(children) => directory_size(children),
                Kind::File(data) => data.len(),
                Kind::Symlink(target) => target.len() as u64,
                _ => 0,
            };
            let xattrs = encode_xattrs(node)?;
            let fixed = INODE + xattrs.len() as u64;
            let mut tail = size % BLOCK;
            // The tail must not cross a block border; one that would always do so, or fill most of a block, gets its own.
            if tail > BLOCK / 2 && !matches!(node.kind, Kind::Symlink(_)) || tail + INODE > BLOCK {
                tail = 0;
            }
            at = round_up(at, INODE);
            if tail > 0 && (at + fixed) % BLOCK + tail > BLOCK {
                // Move so that the tail starts a block at worst.
                let tail_at = round_up(at + fixed, BLOCK);
                at = round_up(tail_at.saturating_sub(fixed).max(at), INODE);
                if (at + fixed) % BLOCK + tail > BLOCK {
                    tail = 0;
                }
            }
            plan.index.insert(id, plan.placed.len());
            plan.placed.push(Placed { id, at, xattrs, size, tail, block: NO_BLOCK, nlink, parent });
            at += fixed + tail;
        }
        let mut block = at.div_ceil(BLOCK);
        for p in &mut plan.placed {
            if has_data(tree.node(p.id)) && p.block_bytes() > 0 {
                p.block = u32::try_from(block).map_err(|_| WriteError::TooLarge("2^32 blocks"))?;
                block += p.block_bytes().div_ceil(BLOCK);
            }
        }
        if block >= u64::from(NO_BLOCK) {
            return Err(WriteError::TooLarge("2^32 blocks"));
        }
        plan.blocks = block;
        Ok(plan)
    }

    fn placed(&self, id: NodeId) -> &Placed {
        &self.placed[self.index[&id]]
    }

    /// Inode number: what stat() shows on 32-bit systems; counts from 1.
    fn number(&self, id: NodeId) -> u32 {
        self.index[&id] as u32 + 1
    }

    /// Block 0, with the superblock and its checksum.
    fn head(&self, options: Options) -> Vec<u8> {
        let mut b = vec![0u8; BLOCK as usize];
        {
            let s = &mut b[SUPERBLOCK_AT..];
            s[0..4].copy_from_slice(&MAGIC.to_le_bytes());
            s[8..12].copy_from_slice(&COMPAT.to_le_bytes());
            s[12] = BLOCK.trailing_zeros() as u8;
            s[14..16].copy_from_slice(&((BLOCK / SLOT) as u16).to_le_bytes());
            s[16..24].copy_from_slice(&(self.placed.len() as u64).to_le_bytes());
            s[24..32].copy_from_slice(&options.build_time.to_le_bytes());
            s[36..40].copy_from_slice(&(self.blocks as u32).to_le_bytes());
            s[48..64].copy_from_slice(&options.uuid);
            s[64..80].copy_from_slice(&options.volume_name);
        }
        // Over the rest of the block, as the kernel's crc32c(): start with all ones, no final inversion.
        let crc = crc32c(&b[SUPERBLOCK_AT..]);
        b[SUPERBLOCK_AT + 4..SUPERBLOCK_AT + 8].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Writes `len` bytes of a node's contents from `from`.
    fn contents<W: Write>(
        &self,
        w: &mut Output<'_, W>,
        tree: &Tree,
        spool: &(impl ReadAt + ?Sized),
        p: &Placed,
        from: u64,
        len: u64,
    ) -> Result<(), WriteError> {
        let part = |b: &[u8]| b[from as usize..(from + len) as usize].to_vec();
        match &tree.node(p.id).kind {
            Kind::Symlink(target) => w.put(&part(target)),
            Kind::Dir(_) => w.put(&part(&self.directory(p))),
            Kind::File(Data::Bytes(b)) => w.put(&b[from as usize..(from + len) as usize]),
            Kind::File(Data::Spool { offset, .. }) => {
                let mut buf = vec![0u8; len.min(1 << 18) as usize];
                let (mut at, mut left) = (offset + from, len);
                while left > 0 {
                    let n = left.min(buf.len() as u64) as usize;
                    spool
                        .read_exact_at(&mut buf[..n], at)
                        .map_err(|source| WriteError::Spool { offset: at, source })?;
                    w.put(&buf[..n])?;
                    at += n as u64;
                    left -= n as u64;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The bytes of a directory: `.` and `..` sorted among the names, each block self-contained.
    fn directory(&self, p: &Placed) -> Vec<u8> {
        let empty = BTreeMap::new();
        let children = self.tree.children(p.id).unwrap_or(&empty);
        let mut entries: Vec<(&[u8], NodeId)> = children.iter().map(|(n, c)| (n.as_slice(), *c)).collect();
        entries.extend([(b".".as_slice(), p.id), (b"..", p.parent)]);
        entries.sort();
        let mut out = Vec::new();
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let n = fit(rest.iter().map(|e| e.0.len()));
            let (now, later) = rest.split_at(n);
            let start = out.len();
            let mut name_at = n * DIRENT;
            for (name, id) in now {
                out.extend(self.placed(*id).nid().to_le_bytes());
                out.extend((name_at as u16).to_le_bytes());
                out.extend([file_type(self.tree.node(*id)), 0]);
                name_at += name.len();
            }
            now.iter().for_each(|(name, _)| out.extend_from_slice(name));
            if !later.is_empty() {
                out.resize(start + BLOCK as usize, 0);
            }
            rest = later;
        }
        out
    }
}

/// How many of these names go into one directory block; at least one, as a name has at most 255 bytes.
fn fit(lengths: impl Iterator<Item = usize>) -> usize {
    let mut used = 0;
    lengths
        .take_while(|l| {
            used += DIRENT + l;
            used <= BLOCK as usize
        })
        .count()
}

/// Bytes of a directory with these children; agrees with [`Plan::directory`].
fn directory_size(children: &BTreeMap<Vec<u8>, NodeId>) -> u64 {
    let mut names: Vec<&[u8]> = children.keys().map(Vec::as_slice).chain([b".".as_slice(), b".."]).collect();
    names.sort_unstable();
    let mut size = 0;
    let mut rest = &names[..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at(fit(rest.iter().map(|n| n.len())));
        size += match later.is_empty() {
            true => now.iter().map(|n| (DIRENT + n.len()) as u64).sum(),
            false => BLOCK,
        };
        rest = later;
    }
    size
}

fn has_data(node: &Node) -> bool {
    matches!(node.kind, Kind::Dir(_) | Kind::File(_) | Kind::Symlink(_))
}

fn file_type(node: &Node) -> u8 {
    match node.kind {
        Kind::File(_) => 1,
        Kind::Dir(_) => 2,
        Kind::Char { .. } => 3,
        Kind::Block { .. } => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

fn mode(node: &Node) -> u16 {
    let kind = match node.kind {
        Kind::Fifo => 0o010_000,
        Kind::Char { .. } => 0o020_000,
        Kind::Dir(_) => 0o040_000,
        Kind::Block { .. } => 0o060_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::Socket => 0o140_000,
    };
    kind | node.meta.mode & 0o7777
}

fn inode(node: &Node, p: &Placed, number: u32) -> [u8; INODE as usize] {
    let mut i = [0u8; INODE as usize];
    let layout = if p.tail > 0 { FLAT_INLINE } else { FLAT_PLAIN };
    let union = match node.kind {
        // new_encode_dev()
        Kind::Char { major, minor } | Kind::Block { major, minor } => minor & 0xff | major << 8 | (minor & !0xff) << 12,
        Kind::Fifo | Kind::Socket => 0,
        _ => p.block,
    };
    let xattr_count = if p.xattrs.is_empty() { 0 } else { (p.xattrs.len() - XATTR_HEADER) / 4 + 1 };
    i[0..2].copy_from_slice(&(EXTENDED | layout).to_le_bytes());
    i[2..4].copy_from_slice(&(xattr_count as u16).to_le_bytes());
    i[4..6].copy_from_slice(&mode(node).to_le_bytes());
    i[8..16].copy_from_slice(&p.size.to_le_bytes());
    i[16..20].copy_from_slice(&union.to_le_bytes());
    i[20..24].copy_from_slice(&number.to_le_bytes());
    i[24..28].copy_from_slice(&node.meta.uid.to_le_bytes());
    i[28..32].copy_from_slice(&node.meta.gid.to_le_bytes());
    i[32..40].copy_from_slice(&node.meta.mtime.to_le_bytes());
    i[40..44].copy_from_slice(&node.meta.mtime_nsec.to_le_bytes());
    i[44..48].copy_from_slice(&p.nlink.to_le_bytes());
    i
}

/// Inline xattrs: a 12-byte header without shared ones, then entries padded to 4.
fn encode_xattrs(node: &Node) -> Result<Vec<u8>, WriteError> {
    let mut out = Vec::new();
    for (name, value) in &node.meta.xattrs {
        let bad = |what| WriteError::Xattr { name: String::from_utf8_lossy(name).into_owned(), what };
        let known: [(&[u8], u8); 5] = [
            (b"user.", 1),
            (b"system.posix_acl_access", 2),
            (b"system.posix_acl_default", 3),
            (b"trusted.", 4),
            (b"security.", 6),
        ];
        let found = known.iter().find_map(|(prefix, index)| {
            let rest = name.strip_prefix(*prefix)?;
            // The ACLs have no name behind their prefix, the others must have one.
            (rest.is_empty() == matches!(index, 2 | 3)).then_some((*index, rest))
        });
        let (index, rest) = found.ok_or_else(|| bad("erofs has no namespace for it"))?;
        let name_len = u8::try_from(rest.len()).map_err(|_| bad("name is longer than 255 bytes"))?;
        let value_len = u16::try_from(value.len()).map_err(|_| bad("value is longer than 65535 bytes"))?;
        if out.is_empty() {
            out.resize(XATTR_HEADER, 0);
        }
        out.extend([name_len, index]);
        out.extend(value_len.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
        if out.len() > 4 * usize::from(u16::MAX) {
            return Err(bad("the attributes of this file are too large together"));
        }
    }
    Ok(out)
}

/// CRC-32C (Castagnoli), reflected, initial value all ones, not inverted at the end.
fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(!0u32, |mut crc, b| {
        crc ^= u32::from(*b);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

/// Counts what is written, so that positions can be padded to.
struct Output<'o, W> {
    out: &'o mut W,
    at: u64,
}

impl<W: Write> Output<'_, W> {
    fn put(&mut self, data: &[u8]) -> Result<(), WriteError> {
        self.out.write_all(data).map_err(WriteError::Output)?;
        self.at += data.len() as u64;
        Ok(())
    }

    fn pad_to(&mut self, at: u64) -> Result<(), WriteError> {
        debug_assert!(at >= self.at, "layout went backwards: at {}, wanted {at}", self.at);
        let zeros = [0u8; BLOCK as usize];
        while self.at < at {
            let n = (at - self.at).min(BLOCK);
            self.put(&zeros[..n as usize])?;
        }
        Ok(())
    }
}
