//! A reader of tar streams (POSIX.1-2017 pax and ustar, GNU long names) that trusts nothing: every extension is bounded,
//! contents pass by without being held.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, Read};

/// Block size.
const BLOCK: usize = 512;
/// Longest pax header or GNU long name. Extended attributes are in there.
const EXTENSION_MAX: u64 = 1 << 20;

/// Why a tar stream is refused.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream itself failed (decompression, disk).
    #[error("{0}")]
    Read(#[from] io::Error),
    /// A header is wrong.
    #[error("tar header at byte {offset}: {what}")]
    Header {
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file with contents.
    File,
    /// Another name of `link`.
    HardLink,
    /// Symbolic link to `link`.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Directory.
    Dir,
    /// Named pipe.
    Fifo,
}

/// The head of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as it stands there.
    pub path: Vec<u8>,
    /// Kind.
    pub kind: EntryKind,
    /// Bytes of contents that follow; 0 unless a file.
    pub size: u64,
    /// Permission bits with set-id and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Device numbers.
    pub device: (u32, u32),
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads entries one after the other.
pub struct TarReader<R> {
    inner: R,
    offset: u64,
    /// Contents of the current entry not read yet, and the padding behind them.
    left: u64,
    padding: u64,
    global: Pax,
}

/// Values of a pax header that override the entry's own.
#[derive(Debug, Clone, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    /// Over `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, offset: 0, left: 0, padding: 0, global: Pax::default() }
    }

    /// The next entry; what was not read of the last one is skipped. `None` at the end.
    ///
    /// # Errors
    /// [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pax = self.global.clone();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let at = self.offset;
            let error = |what: &str| TarError::Header { offset: at, what: what.into() };
            let mut block = [0; BLOCK];
            if !self.fill_block(&mut block)? || block == [0; BLOCK] {
                return Ok(None);
            }
            if !checksum_fits(&block) {
                return Err(error("its checksum is wrong"));
            }
            let kind = block[156];
            let mut size = number(&block[124..136]).ok_or_else(|| error("its size is no number"))?;
            if matches!(kind, b'x' | b'g' | b'L' | b'K') {
                if size > EXTENSION_MAX {
                    return Err(error(&format!(
                        "expected an extension of at most {EXTENSION_MAX} bytes, found {size}"
                    )));
                }
                let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
                self.fill(&mut data)?;
                self.padding = padding(size);
                match kind {
                    b'x' => pax.read(&data).map_err(|what| error(&what))?,
                    b'g' => {
                        self.global.read(&data).map_err(|what| error(&what))?;
                        pax = self.global.clone();
                    }
                    b'L' => long_path = Some(until_nul(&data).to_vec()),
                    _ => long_link = Some(until_nul(&data).to_vec()),
                }
                continue;
            }
            size = pax.size.unwrap_or(size);
            let path = pax.path.take().or(long_path.take()).unwrap_or_else(|| ustar_path(&block));
            let link = pax.link.take().or(long_link.take()).unwrap_or_else(|| until_nul(&block[157..257]).to_vec());
            let kind = match kind {
                // Tars from before ustar mark directories by their name.
                0 | b'0' if path.ends_with(b"/") => EntryKind::Dir,
                0 | b'0' | b'7' => EntryKind::File,
                b'1' => EntryKind::HardLink,
                b'2' => EntryKind::Symlink,
                b'3' => EntryKind::Char,
                b'4' => EntryKind::Block,
                b'5' => EntryKind::Dir,
                b'6' => EntryKind::Fifo,
                other => {
                    return Err(error(&format!("entries of type {:?} are not supported", char::from(other))));
                }
            };
            let small = |range: std::ops::Range<usize>, what: &str| -> Result<u32, TarError> {
                let value = number(&block[range]).ok_or_else(|| error(&format!("its {what} is no number")))?;
                u32::try_from(value).map_err(|_| error(&format!("its {what} is too large")))
            };
            let uid = match pax.uid {
                Some(uid) => uid,
                None => small(108..116, "owner")?,
            };
            let gid = match pax.gid {
                Some(gid) => gid,
                None => small(116..124, "group")?,
            };
            let mtime = pax.mtime.or_else(|| i64::try_from(number(&block[136..148])?).ok()).unwrap_or(0);
            let device = match kind {
                EntryKind::Char | EntryKind::Block => {
                    (small(329..337, "major number")?, small(337..345, "minor number")?)
                }
                _ => (0, 0),
            };
            // Only files have contents; some writers put the linked file's size beside a hard link.
            let contents = if kind == EntryKind::File { size } else { 0 };
            self.left = contents;
            self.padding = padding(contents);
            return Ok(Some(Entry {
                path,
                kind,
                size: contents,
                // Masked to 12 bits.
                mode: u16::try_from(small(100..108, "mode")? & 0o7777).unwrap_or(0),
                uid,
                gid,
                mtime,
                link,
                device,
                xattrs: pax.xattrs,
            }));
        }
    }

    /// Contents of the current entry.
    ///
    /// # Errors
    /// The stream's; a stream that ends within the contents is `UnexpectedEof`.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buf[..most])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tar ends within a file"));
        }
        self.left -= n as u64;
        self.offset += n as u64;
        Ok(n)
    }

    /// The stream behind the archive.
    pub fn into_inner(self) -> R {
        self.inner
    }

    fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        let mut buffer = [0; 8192];
        while bytes > 0 {
            let part = buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            self.fill(&mut buffer[..part])?;
            bytes -= part as u64;
        }
        Ok(())
    }

    fn fill(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(buf)?;
        self.offset += buf.len() as u64;
        Ok(())
    }

    /// `false` at a clean end: some writers leave the two zero blocks out.
    fn fill_block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut got = 0;
        while got < BLOCK {
            match self.inner.read(&mut block[got..])? {
                0 if got == 0 => return Ok(false),
                0 => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tar ends within a header"));
                }
                n => got += n,
            }
        }
        self.offset += BLOCK as u64;
        Ok(true)
    }
}

impl Pax {
    /// Records are `LENGTH KEYWORD=VALUE\n`, LENGTH counting all of it.
    fn read(&mut self, mut data: &[u8]) -> Result<(), String> {
        while !data.is_empty() {
            let bad = || "a pax record is malformed".to_owned();
            let space = data.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let length = decimal(&data[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
            let record = data.get(space + 1..length).ok_or_else(bad)?;
            let (b'\n', record) = record.split_last().ok_or_else(bad)? else {
                return Err(bad());
            };
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            data = &data[length..];
        }
        Ok(())
    }

    fn set(&mut self, keyword: &[u8], value: &[u8]) -> Result<(), String> {
        let shown = || String::from_utf8_lossy(keyword).into_owned();
        let number = || decimal(value).ok_or_else(|| format!("pax {}: expected a number", shown()));
        match keyword {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(u32::try_from(number()?).map_err(|_| "pax uid is too large")?),
            b"gid" => self.gid = Some(u32::try_from(number()?).map_err(|_| "pax gid is too large")?),
            // Fractions are cut off; times before 1970 become 1970.
            b"mtime" => {
                let whole = value.split(|b| *b == b'.').next().unwrap_or_default();
                self.mtime = decimal(whole).and_then(|n| i64::try_from(n).ok());
            }
            _ if keyword.starts_with(b"GNU.sparse") => {
                return Err("sparse files are not supported".into());
            }
            _ => {
                if let Some(name) = keyword.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }
}

/// Octal digits, or GNU's base 256 (first bit set); a negative number is none.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7f);
        for b in &field[1..] {
            value = value.checked_mul(256)?.checked_add(u64::from(*b))?;
        }
        return Some(value);
    }
    let digits = until_nul(field);
    let digits = digits.trim_ascii();
    digits.iter().try_fold(0u64, |value, b| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn ustar_path(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    // GNU's own magic ("ustar  ") uses the prefix field for other things.
    let prefix = if &block[257..263] == b"ustar\0" { until_nul(&block[345..500]) } else { &[] };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn checksum_fits(block: &[u8; BLOCK]) -> bool {
    let sum = |signed: bool| -> i64 {
        block
            .iter()
            .enumerate()
            .map(|(i, b)| match i {
                148..156 => i64::from(b' '),
                _ if signed => i64::from(b.cast_signed()),
                _ => i64::from(*b),
            })
            .sum()
    };
    let Some(wanted) = number(&block[148..156]).and_then(|n| i64::try_from(n).ok()) else {
        return false;
    };
    // Old writers added the bytes as signed.
    wanted == sum(false) || wanted == sum(true)
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// Any bytes as a tar stream.
#[doc(hidden)]
pub fn fuzz_tar(data: &[u8]) {
    let mut tar = TarReader::new(data);
    let mut buffer = [0; 100];
    while let Ok(Some(_)) = tar.next_entry() {
        let _ = tar.read(&mut buffer);
    }
}

/// Writes what tests read.
#[cfg(test)]
pub(crate) mod write {
    use super::{BLOCK, padding};

    pub(crate) fn header(name: &[u8], kind: u8, size: u64, link: &[u8]) -> [u8; BLOCK] {
        let mut b = [0; BLOCK];
        b[..name.len()].copy_from_slice(name);
        b[100..108].copy_from_slice(b"0000644\0");
        b[108..116].copy_from_slice(b"0001750\0");
        b[116..124].copy_from_slice(b"0001751\0");
        b[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        b[136..148].copy_from_slice(b"00000000017\0");
        b[156] = kind;
        b[157..157 + link.len()].copy_from_slice(link);
        b[257..265].copy_from_slice(b"ustar\x0000");
        b[329..337].copy_from_slice(b"0000001\0");
        b[337..345].copy_from_slice(b"0000003\0");
        seal(&mut b);
        b
    }

    pub(crate) fn seal(b: &mut [u8; BLOCK]) {
        b[148..156].copy_from_slice(b"        ");
        let sum: u64 = b.iter().map(|b| u64::from(*b)).sum();
        b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    pub(crate) fn entry(name: &str, kind: u8, data: &[u8], link: &str) -> Vec<u8> {
        let mut out = header(name.as_bytes(), kind, data.len() as u64, link.as_bytes()).to_vec();
        out.extend(data);
        out.resize(out.len() + usize::try_from(padding(data.len() as u64)).unwrap(), 0);
        out
    }

    pub(crate) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut data = Vec::new();
        for (name, value) in records {
            let body = [b" ", name.as_bytes(), b"=", *value, b"\n"].concat();
            let mut length = body.len() + 1;
            while format!("{length}").len() + body.len() != length {
                length += 1;
            }
            data.extend(format!("{length}").as_bytes());
            data.extend(body);
        }
        entry("pax", b'x', &data, "")
    }

    pub(crate) fn end() -> Vec<u8> {
        vec![0; 2 * BLOCK]
    }
}

#[cfg(test)]
mod tests {
    use super::write::{end, entry, header, pax, seal};
    use super::*;
    use proptest::prelude::*;

    fn all(tar: &[u8]) -> Result<Vec<Entry>, TarError> {
        let mut reader = TarReader::new(tar);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    #[test]
    fn every_kind_of_entry_is_read_with_its_metadata() {
        let tar = [
            entry("dir/", b'5', b"", ""),
            entry("dir/file", b'0', b"hello", ""),
            entry("dir/hard", b'1', b"", "dir/file"),
            entry("dir/soft", b'2', b"", "/etc/x"),
            entry("null", b'3', b"", ""),
            entry("disk", b'4', b"", ""),
            entry("pipe", b'6', b"", ""),
            entry("old/", 0, b"", ""),
            end(),
        ]
        .concat();
        let entries = all(&tar).unwrap();
        let kinds: Vec<_> = entries.iter().map(|e| e.kind).collect();
        use EntryKind::{Block, Char, Dir, Fifo, File, HardLink, Symlink};
        assert_eq!(kinds, [Dir, File, HardLink, Symlink, Char, Block, Fifo, Dir]);
        let file = &entries[1];
        assert_eq!((file.size, file.mode, file.uid, file.gid, file.mtime), (5, 0o644, 1000, 1001, 15));
        assert_eq!((entries[2].link.as_slice(), entries[4].device), (b"dir/file".as_slice(), (1, 3)));
    }

    #[test]
    fn long_names_and_attributes_override_the_header() {
        let long = "d/".repeat(200) + "name";
        let tar = [
            entry("././@LongLink", b'L', format!("{long}\0").as_bytes(), ""),
            entry("short", b'0', b"x", ""),
            pax(&[
                ("path", "påth".as_bytes()),
                ("uid", b"70000"),
                ("mtime", b"99.5"),
                ("SCHILY.xattr.user.a", b"\0=\n"),
            ]),
            entry("short", b'0', b"y", ""),
            entry("plain", b'0', b"", ""),
            end(),
        ]
        .concat();
        let entries = all(&tar).unwrap();
        assert_eq!(entries[0].path, long.as_bytes());
        assert_eq!((entries[1].path.as_slice(), entries[1].uid, entries[1].mtime), ("påth".as_bytes(), 70000, 99));
        assert_eq!(entries[1].xattrs.get(b"user.a".as_slice()).unwrap(), b"\0=\n");
        assert_eq!((entries[2].uid, entries[2].xattrs.len()), (1000, 0), "a pax header is for one entry");
    }

    #[test]
    fn contents_pass_by_and_what_is_not_read_is_skipped() {
        let tar = [entry("a", b'0', &[7; 1000], ""), entry("b", b'0', b"second", ""), end()].concat();
        let mut reader = TarReader::new(tar.as_slice());
        reader.next_entry().unwrap().unwrap();
        let mut some = [0; 10];
        assert_eq!(reader.read(&mut some).unwrap(), 10);
        reader.next_entry().unwrap().unwrap();
        let mut all = [0; 100];
        assert_eq!(reader.read(&mut all).unwrap(), 6);
        assert_eq!(reader.read(&mut all).unwrap(), 0);
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn hostile_headers_are_refused() {
        let mut huge = header(b"x", b'x', 0, b"");
        huge[124..136].copy_from_slice(b"77777777777\0");
        seal(&mut huge);
        let mut wrong = header(b"x", b'0', 0, b"");
        wrong[0] ^= 1;
        let mut negative = header(b"x", b'0', 0, b"");
        negative[124..136].copy_from_slice(&[0xff; 12]);
        seal(&mut negative);
        for (name, tar, wanted) in [
            ("extension", huge.to_vec(), "extension of at most"),
            ("checksum", wrong.to_vec(), "checksum"),
            ("size", negative.to_vec(), "size is no number"),
            ("type", entry("x", b'S', b"", ""), "type 'S'"),
            ("cut", header(b"x", b'0', 0, b"")[..100].to_vec(), "within a header"),
            ("pax", entry("p", b'x', b"999 path=x\n", ""), "malformed"),
            ("sparse", [pax(&[("GNU.sparse.major", b"1")]), entry("x", b'0', b"", "")].concat(), "sparse"),
        ] {
            let error = all(&tar).unwrap_err().to_string();
            assert!(error.contains(wanted), "{name}: {error}");
        }
        let cut = &entry("x", b'0', &[1; 600], "")[..900];
        let mut reader = TarReader::new(cut);
        reader.next_entry().unwrap();
        assert!(reader.next_entry().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..1200), kind: u8) {
            fuzz_tar(&data);
            fuzz_tar(&[header(b"name", kind, 30, b"").as_slice(), &data].concat());
            fuzz_tar(&[entry("p", b'x', &data[..data.len().min(400)], ""), data].concat());
        }
    }
}
