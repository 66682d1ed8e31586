//! cpio archives in "newc" form, as the kernel unpacks an initramfs (`Documentation/driver-api/early-userspace/
//! buffer-format.rst`). Owners are root, times are zero, inodes count up: the same tree gives the same bytes.

use std::fmt::Write as _;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// Builds an archive entry by entry, parents before children.
#[derive(Debug, Default)]
pub struct Archive {
    out: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Archive {
        Archive::default()
    }

    /// A directory; `path` has no leading slash.
    pub fn dir(&mut self, path: &str, mode: u32) -> &mut Archive {
        self.entry(path, S_IFDIR | mode & 0o7777, (0, 0), b"")
    }

    /// A regular file.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> &mut Archive {
        self.entry(path, S_IFREG | mode & 0o7777, (0, 0), data)
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Archive {
        self.entry(path, S_IFLNK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device; the kernel opens `dev/console` of the initramfs before PID 1 runs.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> &mut Archive {
        self.entry(path, S_IFCHR | mode & 0o7777, (major, minor), b"")
    }

    /// The archive with its trailer, padded to 512 bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, (0, 0), 0, 1, 0);
        self.out.resize(self.out.len().next_multiple_of(512), 0);
        self.out
    }

    fn entry(&mut self, path: &str, mode: u32, rdev: (u32, u32), data: &[u8]) -> &mut Archive {
        self.inode += 1;
        let links = if mode & 0o170_000 == S_IFDIR { 2 } else { 1 };
        // A cpio size field is 32 bits; an initramfs file of 4 GiB could not be unpacked anyway.
        debug_assert!(u32::try_from(data.len()).is_ok());
        self.header(path, mode, rdev, data.len() as u32, links, self.inode);
        self.out.extend_from_slice(data);
        self.pad();
        self
    }

    fn header(&mut self, path: &str, mode: u32, rdev: (u32, u32), size: u32, links: u32, inode: u32) {
        let name_bytes = path.len() as u32 + 1;
        let mut h = String::from("070701");
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        for v in [inode, mode, 0, 0, links, 0, size, 0, 0, rdev.0, rdev.1, name_bytes, 0] {
            let _ = write!(h, "{v:08X}");
        }
        self.out.extend_from_slice(h.as_bytes());
        self.out.extend_from_slice(path.as_bytes());
        self.out.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_bytes_of_one_file() {
        let mut a = Archive::new();
        a.file("init", 0o755, b"hello");
        let bytes = a.finish();
        let text = "07070100000001000081ED00000000000000000000000100000000000000050000000000000000000000000000000000000005000000";
        let text = format!("{text}00init\0\0hello\0\0\0070701");
        assert_eq!(&bytes[..text.len()], text.as_bytes());
        assert_eq!(bytes.len() % 512, 0);
        assert!(bytes.windows(11).any(|w| w == b"TRAILER!!!\0"));
    }
}
