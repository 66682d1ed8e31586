//! The formats of Holdfast's disks and files: what the build writes and what the device reads back.
//!
//! 1. Every writer is deterministic: the same inputs give the same bytes, with no clock and no random source.
//! 2. Every reader treats its input as hostile: sizes are bounded before memory is taken, and it never panics.
//! 3. Nothing here starts a process, opens a device or talks to a network; callers hand in bytes or [`io::ReadAt`].
//! 4. Light: this crate is linked into the static PID 1. What only the build needs is behind the feature `build`.
//! 5. Foreign formats are pinned in the tests by a second implementation (`sfdisk`, `fsck.fat`, `sbverify`,
//!    `veritysetup`, `fsck.erofs`, `tpm2-tools`); a missing tool is reported by the test, not hidden.
//!
//! Reading order: [`layout`] (the disk), [`guid`], [`gpt`], [`fat`], [`pe`] and [`uki`], [`authenticode`], [`verity`],
//! [`pcr`] and [`policy`], [`keys`], [`site`], [`release`], [`payload`], [`cpio`], [`erofs`]. [`io`] holds what they share.

#![forbid(unsafe_code)]

pub mod authenticode;
pub mod cpio;
pub mod erofs;
pub mod fat;
pub mod gpt;
pub mod guid;
pub mod io;
pub mod keys;
pub mod layout;
pub mod payload;
pub mod pcr;
pub mod pe;
pub mod policy;
pub mod release;
pub mod site;
pub mod uki;
pub mod verity;
