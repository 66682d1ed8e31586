//! A writer of read-only, uncompressed erofs images (kernel `fs/erofs/erofs_fs.h`, `Documentation/filesystems/erofs.rst`).
//!
//! ```text
//!  block 0        superblock at byte 1024
//!  block 1 ..     inodes, each followed by its xattrs and, when it fits, the tail of its data; root first (nid 128)
//!  then           whole data blocks of directories, files and symbolic links
//! ```
//! - Every inode is the extended kind (64 bytes, 32-bit owners, modification time), aligned to 64 bytes.
//! - Data that is not a whole number of blocks keeps its tail beside the inode (flat inline), so small files cost no block.
//! - File contents are ranges of a spool file: an image of many GB needs memory only for its names.
//! - The image is written front to back in one pass and depends on the tree alone, not on the order of insertion.
//!
//! Modules: [`tree`] is the file system in memory with the operations that applying OCI layers needs; [`writer`] lays it
//! out and writes it.

pub mod tree;
pub mod writer;

pub use tree::{Data, Kind, Meta, Node, NodeId, Tree, TreeError};
pub use writer::{Options, WriteError, write};

#[cfg(test)]
mod tests;
