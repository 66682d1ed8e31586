//! The app's root: the image (erofs, read-only) under a writable overlay, the kernel's file systems, and the volumes.

use crate::disks;
use crate::document::Error as DocumentError;
use crate::inroot;
use holdfast_model::contract::guest::{AppDocument, Mount};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the app's root is put together, in the initramfs.
pub const ROOT: &str = "/app/root";
const IMAGE: &str = "/app/image";
const OVERLAY: &str = "/app/overlay";
/// virtio devices are probed before init starts; this allows for late ones.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// The app's root cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A disk is not there.
    #[error(transparent)]
    Disk(#[from] disks::Missing),
    /// The app document is bad.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A mount failed.
    #[error("mount {what} at {at}: {source}")]
    Mount {
        /// Disk or file system.
        what: String,
        /// Mount point.
        at: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Something else failed.
    #[error("{what}: {source}")]
    Other {
        /// What was being done, with the object's name.
        what: String,
        /// The reason.
        source: io::Error,
    },
}

fn other(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    |source| Error::Other { what, source }
}

fn mount_at(what: &str, at: &Path, kind: &str, flags: MsFlags, data: &str) -> Result<(), Error> {
    mount(Some(what), at, Some(kind), flags, Some(data)).map_err(|e| Error::Mount {
        what: what.into(),
        at: at.display().to_string(),
        source: e.into(),
    })
}

/// `/proc`, `/sys` and `/dev` of the initramfs, for ourselves.
///
/// # Errors
/// When one cannot be mounted.
pub fn mount_own() -> Result<(), Error> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    for (kind, at, flags) in [
        ("proc", "/proc", safe),
        ("sysfs", "/sys", safe),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC),
    ] {
        fs::create_dir_all(at).map_err(other(format!("make {at}")))?;
        match mount_at(kind, Path::new(at), kind, flags, "") {
            Err(Error::Mount { source, .. }) if source.raw_os_error() == Some(Errno::EBUSY as i32) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Reads the app document from its disk.
///
/// # Errors
/// A missing disk or a bad document.
pub fn document() -> Result<AppDocument, Error> {
    let path = find("config")?;
    let disk = File::open(&path).map_err(other(format!("open disk config ({})", path.display())))?;
    Ok(crate::document::read(disk)?)
}

fn find(serial: &str) -> Result<PathBuf, Error> {
    Ok(disks::wait_for(Path::new("/sys/block"), serial, DISK_TIMEOUT)?)
}

/// Puts the app's root together at [`ROOT`] and opens it.
///
/// # Errors
/// A missing disk, or a mount that fails.
pub fn assemble(mounts: &[Mount]) -> Result<OwnedFd, Error> {
    for folder in [IMAGE, OVERLAY, ROOT] {
        fs::create_dir_all(folder).map_err(other(format!("make {folder}")))?;
    }
    let image = find("rootfs")?;
    mount_at(&image.display().to_string(), Path::new(IMAGE), "erofs", MsFlags::MS_RDONLY | MsFlags::MS_NODEV, "")?;
    let device = mount_volume("overlay", Path::new(OVERLAY), false)?;
    grow(&device, Path::new(OVERLAY)).map_err(other("grow the file system of disk overlay"))?;
    for folder in ["upper", "work"] {
        let path = Path::new(OVERLAY).join(folder);
        fs::create_dir_all(&path).map_err(other(format!("make {}", path.display())))?;
    }
    copy_owner(Path::new(IMAGE), &Path::new(OVERLAY).join("upper")).map_err(other("owner of the root folder"))?;
    mount_at(
        "overlay",
        Path::new(ROOT),
        "overlay",
        MsFlags::empty(),
        &format!("lowerdir={IMAGE},upperdir={OVERLAY}/upper,workdir={OVERLAY}/work"),
    )?;

    let root = inroot::root(Path::new(ROOT)).map_err(other(format!("open {ROOT}")))?;
    kernel_file_systems(&root)?;
    for mount in mounts {
        let folder = inroot::folder(&root, &mount.at)
            .map_err(other(format!("make the mount point {} of {}", mount.at, mount.disk)))?;
        let before = fs::metadata(inroot::magic_path(&folder)).map_err(other(format!("look at {}", mount.at)))?;
        let device = mount_volume(&mount.disk, &inroot::magic_path(&folder), mount.read_only)?;
        if !mount.read_only {
            // Opened again: `folder` is the one that is now covered.
            let mounted = inroot::folder(&root, &mount.at).map_err(other(format!("open {}", mount.at)))?;
            grow(&device, &inroot::magic_path(&mounted))
                .map_err(other(format!("grow the file system of disk {}", mount.disk)))?;
            adopt(&inroot::magic_path(&mounted), &before).map_err(other(format!("owner of {}", mount.at)))?;
        }
    }
    Ok(root)
}

/// The overlay's upper folder is the root the app sees: it takes owner and mode from the image's root.
fn copy_owner(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::metadata(from)?;
    fchown(File::open(to)?, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

/// A volume that holds nothing yet gets owner and mode of the image's folder it covers, so that an app that is not root can use it.
fn adopt(volume: &Path, image: &fs::Metadata) -> io::Result<()> {
    for entry in fs::read_dir(volume)? {
        if entry?.file_name() != "lost+found" {
            return Ok(());
        }
    }
    fchown(File::open(volume)?, Some(image.uid()), Some(image.gid()))?;
    fs::set_permissions(volume, fs::Permissions::from_mode(image.mode() & 0o7777))
}

/// Mounts an ext4 volume; gives its device.
fn mount_volume(serial: &str, at: &Path, read_only: bool) -> Result<PathBuf, Error> {
    let device = find(serial)?;
    let read_only = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let data = if discards(&device) { "errors=remount-ro,discard" } else { "errors=remount-ro" };
    mount_at(&device.display().to_string(), at, "ext4", MsFlags::MS_NODEV | MsFlags::MS_NOATIME | read_only, data)?;
    Ok(device)
}

fn discards(device: &Path) -> bool {
    let name = device.file_name().unwrap_or_default();
    let limit = Path::new("/sys/block").join(name).join("queue/discard_max_bytes");
    fs::read_to_string(limit).is_ok_and(|text| text.trim() != "0")
}

nix::ioctl_write_ptr!(
    /// `EXT4_IOC_RESIZE_FS`: grows a mounted file system to this many blocks, crash safe by its journal.
    ext4_resize_fs,
    b'f',
    16,
    u64
);

/// Grows the mounted file system to its disk.
fn grow(device: &Path, at: &Path) -> io::Result<()> {
    let mut disk = File::open(device)?;
    let disk_bytes = disk.seek(SeekFrom::End(0))?;
    let mut superblock = [0; 1024];
    disk.seek(SeekFrom::Start(1024))?;
    disk.read_exact(&mut superblock)?;
    let Some((blocks, block_bytes)) = ext4_size(&superblock) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no ext4 superblock"));
    };
    let wanted = disk_bytes / block_bytes;
    if wanted <= blocks {
        return Ok(());
    }
    let folder = File::open(at)?;
    // SAFETY: the ioctl reads one u64, which lives until the call returns.
    unsafe { ext4_resize_fs(folder.as_raw_fd(), &raw const wanted) }?;
    Ok(())
}

/// Blocks and bytes per block of an ext4 superblock: magic at 0x38, block count at 4 and 0x150, log2 of the block size less 10 at 0x18.
fn ext4_size(superblock: &[u8; 1024]) -> Option<(u64, u64)> {
    let word =
        |at: usize| u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]]);
    let magic = u16::from_le_bytes([superblock[0x38], superblock[0x39]]);
    let shift = word(0x18);
    if magic != 0xEF53 || shift > 6 {
        return None;
    }
    // INCOMPAT_64BIT says whether the upper half is in use.
    let high = if word(0x60) & 0x80 == 0 { 0 } else { word(0x150) };
    Some((u64::from(word(4)) | u64::from(high) << 32, 1024 << shift))
}

/// What every container finds: `/proc`, `/sys`, `/dev` with its usual nodes, `/run`, `/tmp`, cgroup2 (runtime-spec, "Default Filesystems").
fn kernel_file_systems(root: &OwnedFd) -> Result<(), Error> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let dev = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let shared = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let table = [
        ("proc", "/proc", safe, ""),
        ("sysfs", "/sys", safe, ""),
        ("cgroup2", "/sys/fs/cgroup", safe, ""),
        ("tmpfs", "/dev", dev, "mode=755,size=64k"),
        ("devpts", "/dev/pts", dev, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("tmpfs", "/dev/shm", safe, "mode=1777"),
        ("mqueue", "/dev/mqueue", safe, ""),
        ("tmpfs", "/run", shared, "mode=755"),
        ("tmpfs", "/tmp", shared, "mode=1777"),
    ];
    for (kind, at, flags, data) in table {
        let folder = inroot::folder(root, at).map_err(other(format!("make {at} in the image")))?;
        mount_at(kind, &inroot::magic_path(&folder), kind, flags, data)?;
    }
    device_nodes(root).map_err(other("make the device nodes"))
}

fn device_nodes(root: &OwnedFd) -> io::Result<()> {
    let dev = inroot::folder(root, "/dev")?;
    let nodes = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
        ("fuse", 10, 229),
    ];
    let make = |folder: &OwnedFd, name: &str, major, minor| -> io::Result<()> {
        mknodat(folder, name, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))?;
        fs::set_permissions(inroot::magic_path(folder).join(name), fs::Permissions::from_mode(0o666))
    };
    for (name, major, minor) in nodes {
        make(&dev, name, major, minor)?;
    }
    make(&inroot::folder(root, "/dev/net")?, "tun", 10, 200)?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        inroot::link(&dev, name, target)?;
    }
    Ok(())
}

/// Unmounts everything of the app's, deepest first. What is busy is remounted read-only instead; its disk is consistent then too.
/// Returns the mount points that could not be left clean.
pub fn dismantle() -> Vec<String> {
    nix::unistd::sync();
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut unclean = Vec::new();
    for at in mount_points(&table, "/app").into_iter().rev() {
        let done = umount2(at.as_str(), MntFlags::empty()).or_else(|_| {
            mount(None::<&str>, at.as_str(), None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>)
        });
        if done.is_err() {
            unclean.push(at);
        }
    }
    nix::unistd::sync();
    unclean
}

/// Mount points at and below `below` in the order of mounting; `\040` and the like are decoded (proc(5)).
fn mount_points(table: &str, below: &str) -> Vec<String> {
    let decode = |field: &str| {
        let mut out = Vec::new();
        let mut rest = field.as_bytes();
        while let [first, tail @ ..] = rest {
            let escape = (*first == b'\\')
                .then(|| tail.get(..3))
                .flatten()
                .and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
            match escape {
                Some(byte) => {
                    out.push(byte);
                    rest = &tail[3..];
                }
                None => {
                    out.push(*first);
                    rest = tail;
                }
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let points = table.lines().filter_map(|l| l.split(' ').nth(1)).map(decode);
    points.filter(|p| p.strip_prefix(below).is_some_and(|rest| rest.starts_with('/'))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_an_ext4_file_system_is_read_from_its_superblock() {
        let mut superblock = [0; 1024];
        superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        superblock[4..8].copy_from_slice(&1000_u32.to_le_bytes());
        superblock[0x18] = 2;
        superblock[0x150] = 1;
        assert_eq!(ext4_size(&superblock), Some((1000, 4096)));
        superblock[0x60] = 0x80;
        assert_eq!(ext4_size(&superblock), Some((1000 + (1 << 32), 4096)));
        superblock[0x18] = 7;
        assert_eq!(ext4_size(&superblock), None);
        superblock[0x18] = 2;
        superblock[0x38] = 0;
        assert_eq!(ext4_size(&superblock), None);
    }

    #[test]
    fn the_resize_ioctl_has_the_number_of_the_kernel() {
        assert_eq!(nix::request_code_write!(b'f', 16, 8), 0x4008_6610);
    }

    #[test]
    fn mount_points_of_the_app_are_listed_in_order() {
        let table = "rootfs / rootfs rw 0 0\nproc /proc proc rw 0 0\n/dev/vda /app/image erofs ro 0 0\nvol0 /app/root/my\\040data ext4 rw 0 0\nx /apparel tmpfs rw 0 0\n";
        assert_eq!(mount_points(table, "/app"), ["/app/image", "/app/root/my data"]);
    }

    #[test]
    fn an_empty_volume_takes_owner_and_mode_of_the_folder_it_covers() {
        let dir = tempfile::tempdir().unwrap();
        let (image, volume) = (dir.path().join("image"), dir.path().join("volume"));
        fs::create_dir(&image).unwrap();
        fs::create_dir_all(volume.join("lost+found")).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o1770)).unwrap();
        adopt(&volume, &fs::metadata(&image).unwrap()).unwrap();
        assert_eq!(fs::metadata(&volume).unwrap().mode() & 0o7777, 0o1770);
        fs::write(volume.join("data"), "").unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o700)).unwrap();
        adopt(&volume, &fs::metadata(&image).unwrap()).unwrap();
        assert_eq!(fs::metadata(&volume).unwrap().mode() & 0o7777, 0o1770);
    }
}
