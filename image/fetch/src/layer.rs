//! Applies layers to a tree, lowest first (OCI image spec, "Image Layer Filesystem Changeset").
//!
//! - Whiteouts (`.wh.name`, `.wh..wh..opq`) are for what lies below: those of a layer are applied before its entries, in whatever
//!   order they stand.
//! - Nothing is written to a file system: names live in the tree, contents in one spool file. A path can lead nowhere but
//!   into the tree; the tree follows symbolic links among parents inside itself.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek as _, Write as _};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use holdfast_format::erofs::{Data, Kind, Meta, Tree};

use crate::digest::{self, Digest, HashingReader};
use crate::failure::Failure;
use crate::tar::{Entry, EntryKind, TarError, TarReader};

/// Most entries of all layers together.
pub const ENTRIES_MAX: usize = 400_000;
/// Extended attributes that are kept. Others mean something to this host or to overlayfs, and are not for an image to set.
const XATTRS_KEPT: [&[u8]; 3] = [b"user.", b"security.capability", b"system.posix_acl_"];
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A file system in the making.
pub struct Flattener {
    tree: Tree,
    contents: File,
    /// Bytes in `contents`.
    written: u64,
    /// Longest they may become.
    max: u64,
    entries: usize,
}

/// What a layer says, in two parts.
#[derive(Default)]
struct Changes {
    removed: Vec<Vec<u8>>,
    emptied: Vec<Vec<u8>>,
    added: Vec<(Entry, u64)>,
}

impl Flattener {
    /// Nothing yet. Contents go to `contents`, at most `max` bytes of them.
    pub fn new(contents: File, max: u64) -> Self {
        Self { tree: Tree::new(ENTRIES_MAX), contents, written: 0, max, entries: 0 }
    }

    /// Applies a layer, plain or gzip, and checks its digest unpacked. `name` is for messages; `progress` gets the bytes of
    /// contents so far.
    ///
    /// # Errors
    /// [`Failure`]; what was built so far is then of no use.
    pub fn apply(
        &mut self,
        layer: &mut File,
        name: &str,
        diff_id: Digest,
        mut progress: impl FnMut(u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut magic = [0; 4];
        let got = read_up_to(layer, &mut magic).map_err(Failure::file("spool file"))?;
        layer.rewind().map_err(Failure::file("spool file"))?;
        let file = BufReader::with_capacity(256 << 10, layer);
        let stream: Box<dyn Read + '_> = match magic[..got] {
            [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(file)),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                return Err(Failure::content(format!("layer {name}: expected gzip or plain tar, found zstd")));
            }
            _ => Box::new(file),
        };
        // A tar of many empty entries has nearly no contents: bound the stream too.
        let bound = self.max.saturating_add(ENTRIES_MAX as u64 * 2048);
        let mut tar = TarReader::new(HashingReader::new(stream.take(bound)));
        let changes = self.read_changes(&mut tar, name, &mut progress)?;
        let mut rest = tar.into_inner();
        std::io::copy(&mut rest, &mut std::io::sink()).map_err(|e| unreadable(name, e.into()))?;
        let (found, read) = rest.finish();
        if read >= bound {
            return Err(Failure::content(format!("layer {name}: expected at most {bound} bytes unpacked, more came")));
        }
        digest::expect(&format!("layer {name} unpacked (diff_id)"), diff_id, found)?;
        self.merge(changes, name)
    }

    /// The tree, and the file that holds its contents.
    pub fn finish(self) -> (Tree, File) {
        (self.tree, self.contents)
    }

    fn read_changes(
        &mut self,
        tar: &mut TarReader<impl Read>,
        name: &str,
        progress: &mut impl FnMut(u64) -> Result<(), Failure>,
    ) -> Result<Changes, Failure> {
        let mut changes = Changes::default();
        let mut buffer = vec![0; 128 << 10];
        let mut out = BufWriter::with_capacity(256 << 10, &self.contents);
        while let Some(entry) = tar.next_entry().map_err(|e| unreadable(name, e))? {
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(Failure::content(format!(
                    "layer {name}: expected at most {ENTRIES_MAX} files in an image, found more"
                )));
            }
            let (parent, last) = split(&entry.path);
            if last == OPAQUE {
                changes.emptied.push(parent.to_vec());
                continue;
            }
            if let Some(hidden) = last.strip_prefix(WHITEOUT) {
                // `.wh..wh.*` are notes of other tools (aufs), not whiteouts.
                if !hidden.starts_with(WHITEOUT) {
                    changes.removed.push(join(parent, hidden));
                }
                continue;
            }
            let start = self.written;
            if self.written.saturating_add(entry.size) > self.max {
                return Err(Failure::content(format!(
                    "layer {name}: {}: expected at most {} bytes of contents in the image, found more",
                    shown(&entry.path),
                    self.max
                )));
            }
            loop {
                let n = tar.read(&mut buffer).map_err(|e| unreadable(name, e.into()))?;
                if n == 0 {
                    break;
                }
                out.write_all(&buffer[..n]).map_err(Failure::file("spool file"))?;
                self.written += n as u64;
                progress(self.written)?;
            }
            changes.added.push((entry, start));
        }
        out.flush().map_err(Failure::file("spool file"))?;
        Ok(changes)
    }

    fn merge(&mut self, changes: Changes, name: &str) -> Result<(), Failure> {
        for dir in &changes.emptied {
            self.tree.clear_dir(dir);
        }
        for path in &changes.removed {
            self.tree.remove(path);
        }
        for (entry, start) in changes.added {
            let refused = |e: &dyn std::fmt::Display| Failure::content(format!("layer {name}: {e}"));
            let kind = match entry.kind {
                EntryKind::HardLink => {
                    self.tree.hardlink(&entry.path, &entry.link).map_err(|e| refused(&e))?;
                    continue;
                }
                EntryKind::Dir => Kind::dir(),
                EntryKind::File if entry.size == 0 => Kind::File(Data::Bytes(Arc::from([]))),
                EntryKind::File => Kind::File(Data::Spool { offset: start, len: entry.size }),
                EntryKind::Symlink => Kind::Symlink(entry.link),
                EntryKind::Char => Kind::Char { major: entry.device.0, minor: entry.device.1 },
                EntryKind::Block => Kind::Block { major: entry.device.0, minor: entry.device.1 },
                EntryKind::Fifo => Kind::Fifo,
            };
            let mut xattrs = entry.xattrs;
            xattrs.retain(|name, _| XATTRS_KEPT.iter().any(|kept| name.starts_with(kept)));
            let meta =
                Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, mtime_nsec: 0, xattrs };
            self.tree.insert(&entry.path, meta, kind).map_err(|e| refused(&e))?;
        }
        Ok(())
    }
}

/// Any bytes as a layer on top of a small tree.
#[doc(hidden)]
pub fn fuzz_layer(data: &[u8]) {
    let mut changes = Changes::default();
    let mut tar = TarReader::new(data);
    while let Ok(Some(entry)) = tar.next_entry() {
        let (parent, last) = split(&entry.path);
        match last.strip_prefix(WHITEOUT) {
            Some(hidden) => changes.removed.push(join(parent, hidden)),
            None => changes.added.push((entry, 0)),
        }
    }
    let Ok(contents) = File::open("/dev/null") else {
        return;
    };
    let _ = Flattener::new(contents, 1 << 20).merge(changes, "fuzz");
}

fn unreadable(name: &str, e: TarError) -> Failure {
    match &e {
        TarError::Read(io) if io.raw_os_error().is_some() => Failure::local(format!("layer {name}: {e}")),
        _ => Failure::content(format!("layer {name}: {e}")),
    }
}

/// Directory and last component, trailing slashes aside.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let path = &path[..path.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1)];
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned()
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..])? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::write::{end, entry, header, pax};
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    fn spool(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn flatten(layers: &[Vec<u8>], max: u64) -> Result<Flattener, Failure> {
        let mut flat = Flattener::new(tempfile::tempfile().unwrap(), max);
        for (i, tar) in layers.iter().enumerate() {
            let tar = [tar.as_slice(), &end()].concat();
            let packed = if i % 2 == 0 { gzip(&tar) } else { tar.clone() };
            flat.apply(&mut spool(&packed), &i.to_string(), Digest::of(&tar), |_| Ok(()))?;
        }
        Ok(flat)
    }

    fn names(flat: &Flattener) -> Vec<String> {
        fn walk(tree: &Tree, id: holdfast_format::erofs::NodeId, prefix: &str, out: &mut Vec<String>) {
            for (name, child) in tree.children(id).into_iter().flatten() {
                let path = format!("{prefix}/{}", String::from_utf8_lossy(name));
                out.push(path.clone());
                walk(tree, *child, &path, out);
            }
        }
        let mut out = Vec::new();
        walk(&flat.tree, flat.tree.root(), "", &mut out);
        out
    }

    #[test]
    fn whiteouts_hide_what_is_below_and_never_what_is_beside() {
        let lower = [
            entry("a/", b'5', b"", ""),
            entry("a/old", b'0', b"1", ""),
            entry("a/gone", b'0', b"2", ""),
            entry("b/one", b'0', b"3", ""),
            entry("b/sub/two", b'0', b"4", ""),
        ]
        .concat();
        // The opaque mark comes after an entry of the same layer, which must stay.
        let upper = [
            entry("a/.wh.gone", b'0', b"", ""),
            entry("b/new", b'0', b"5", ""),
            entry("b/.wh..wh..opq", b'0', b"", ""),
            entry(".wh..wh.plnk", b'0', b"", ""),
            entry(".wh.never-there", b'0', b"", ""),
        ]
        .concat();
        let flat = flatten(&[lower, upper], 1 << 20).unwrap();
        assert_eq!(names(&flat), ["/a", "/a/old", "/b", "/b/new"]);
    }

    #[test]
    fn a_file_replaces_a_directory_and_links_keep_their_node() {
        let lower = [entry("d/x", b'0', b"1", ""), entry("f", b'0', b"contents", "")].concat();
        let upper =
            [entry("d", b'0', b"now a file", ""), entry("g", b'1', b"", "f"), entry("s", b'2', b"", "../../etc")]
                .concat();
        let flat = flatten(&[lower, upper], 1 << 20).unwrap();
        assert_eq!(names(&flat), ["/d", "/f", "/g", "/s"]);
        assert_eq!(flat.tree.lookup(b"f"), flat.tree.lookup(b"g"));
        let file = flat.tree.node(flat.tree.lookup(b"f").unwrap());
        assert_eq!((file.meta.mode, file.meta.uid, file.meta.gid), (0o644, 1000, 1001));
        let Kind::File(Data::Spool { offset, len }) = file.kind else { panic!("{file:?}") };
        let mut contents = vec![0; usize::try_from(len).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(&flat.contents, &mut contents, offset).unwrap();
        assert_eq!(contents, b"contents");
    }

    #[test]
    fn paths_lead_nowhere_but_into_the_tree() {
        for path in ["../x", "a/../../x", "a/.."] {
            let error = flatten(&[entry(path, b'0', b"x", "")], 1 << 20).err().expect(path).text;
            assert!(error.contains(".."), "{path}: {error}");
        }
        // Through a link that points outside: stays inside.
        let through =
            [entry("out", b'2', b"", "/../../etc"), entry("etc/", b'5', b"", ""), entry("out/passwd", b'0', b"x", "")]
                .concat();
        assert_eq!(names(&flatten(&[through], 1 << 20).unwrap()), ["/etc", "/etc/passwd", "/out"]);
        let whiteout = [entry("keep", b'0', b"", ""), entry("a/.wh...", b'0', b"", "")].concat();
        assert_eq!(names(&flatten(&[whiteout], 1 << 20).unwrap()), ["/keep"]);
        assert!(flatten(&[entry("h", b'1', b"", "../../etc/passwd")], 1 << 20).is_err());
    }

    #[test]
    fn attributes_of_the_host_and_of_overlayfs_are_left_out() {
        let tar = [
            pax(&[
                ("SCHILY.xattr.security.capability", b"cap"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.security.selinux", b"x"),
            ]),
            entry("ping", b'0', b"", ""),
        ]
        .concat();
        let flat = flatten(&[tar], 1 << 20).unwrap();
        let node = flat.tree.node(flat.tree.lookup(b"ping").unwrap());
        assert_eq!(node.meta.xattrs.keys().map(Vec::as_slice).collect::<Vec<_>>(), [b"security.capability"]);
    }

    #[test]
    fn sizes_are_bounded_before_they_are_taken() {
        let bomb = header(b"bomb", b'0', 1 << 32, b"").to_vec();
        assert!(flatten(&[bomb], 1 << 20).err().unwrap().text.contains("bomb: expected at most 1048576 bytes"));
        let two = [entry("a", b'0', &[0; 600], ""), entry("b", b'0', &[0; 600], "")].concat();
        assert!(flatten(std::slice::from_ref(&two), 1200).is_ok());
        assert!(flatten(&[two], 1199).is_err());
    }

    #[test]
    fn a_layer_that_unpacks_to_something_else_is_refused() {
        let mut flat = Flattener::new(tempfile::tempfile().unwrap(), 1 << 20);
        let tar = [entry("a", b'0', b"x", ""), end()].concat();
        let error = flat.apply(&mut spool(&tar), "l", Digest([0; 32]), |_| Ok(())).unwrap_err();
        assert!(error.text.contains("diff_id"), "{error}");
        let error = flat.apply(&mut spool(&[0x28, 0xb5, 0x2f, 0xfd]), "l", Digest([0; 32]), |_| Ok(())).unwrap_err();
        assert!(error.text.contains("zstd"), "{error}");
        let mut broken = gzip(&tar);
        let end = broken.len() - 6;
        broken[end] ^= 1;
        assert!(flat.apply(&mut spool(&broken), "l", Digest::of(&tar), |_| Ok(())).is_err());
    }

    proptest! {
        #[test]
        fn any_layer_is_survived(data in proptest::collection::vec(any::<u8>(), 0..800), path in "[a.w/h]{0,20}", kind in 0u8..8) {
            let path = &path[..path.len().min(99)];
            fuzz_layer(&[header(path.as_bytes(), b'0' + kind, 0, b"a/b").as_slice(), &data].concat());
        }
    }
}
