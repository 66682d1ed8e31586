//! The vault on a real kernel: dm-crypt, ext4, keyring. Needs root, device-mapper and a scratch disk, so it runs where
//! `HOLDFAST_TEST_DISK` names a block device that may be overwritten and `HOLDFAST_TEST_SEED` an ext4 image; elsewhere it
//! says that it does not.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use holdfast_identity::vault::linux::{Linux, device_size};
use holdfast_identity::vault::platform::Platform as _;
use holdfast_identity::vault::{self, DEVICE_NAME, VaultOptions};
use holdfast_identity::{KeyProtection, SoftwareIdentity};

const MARKER: &[u8] = b"this text must not be readable on the disk";

#[test]
fn the_vault_is_made_found_open_opened_again_and_erased() {
    let (Ok(disk), Ok(seed)) = (std::env::var("HOLDFAST_TEST_DISK"), std::env::var("HOLDFAST_TEST_SEED")) else {
        println!("NOT RUN: HOLDFAST_TEST_DISK and HOLDFAST_TEST_SEED name no scratch disk and ext4 image");
        return;
    };
    let mount_point = PathBuf::from("/tmp/vault");
    fs::create_dir_all(&mount_point).unwrap();
    let options = VaultOptions { partition: disk.clone().into(), mount_point: mount_point.clone(), seed: seed.into() };
    let identity = SoftwareIdentity::new(&mount_point.join("identity"), "test");
    vault::erase(Path::new(&disk)).unwrap();

    let made = vault::open_or_create(&options, &identity).unwrap();
    assert!(made.created && made.protection == KeyProtection::Clear);
    fs::write(mount_point.join("file"), MARKER).unwrap();
    File::open(mount_point.join("file")).unwrap().sync_all().unwrap();
    let disk_bytes = device_size(&File::open(&disk).unwrap()).unwrap();
    let blocks = total_bytes(&mount_point);
    assert!(blocks > disk_bytes / 10 * 9, "the file system has {blocks} bytes on a disk of {disk_bytes}");
    assert!(!contains(&disk, MARKER), "clear text on the disk");

    let again = vault::open_or_create(&options, &identity).unwrap();
    assert!(!again.created && again.key.is_none());

    Linux.tear_down(DEVICE_NAME, &mount_point).unwrap();
    assert!(!mount_point.join("file").exists());
    let opened = vault::open_or_create(&options, &identity).unwrap();
    assert!(!opened.created);
    assert_eq!(fs::read(mount_point.join("file")).unwrap(), MARKER);
    assert_eq!(opened.key.unwrap().expose(), made.key.unwrap().expose());

    Linux.tear_down(DEVICE_NAME, &mount_point).unwrap();
    vault::erase(Path::new(&disk)).unwrap();
    let anew = vault::open_or_create(&options, &identity).unwrap();
    assert!(anew.created && !mount_point.join("file").exists());
    Linux.tear_down(DEVICE_NAME, &mount_point).unwrap();
}

fn total_bytes(path: &Path) -> u64 {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: all zero is a valid statfs; the path is NUL-terminated; the call fills the structure.
    let fs = unsafe {
        let mut fs: libc::statfs = std::mem::zeroed();
        assert_eq!(libc::statfs(path.as_ptr(), &mut fs), 0);
        fs
    };
    fs.f_blocks * u64::try_from(fs.f_bsize).unwrap()
}

/// Whether the disk holds these bytes, within one read or across two.
fn contains(disk: &str, text: &[u8]) -> bool {
    let mut file = File::open(disk).unwrap();
    let mut window = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).unwrap();
        if n == 0 {
            return false;
        }
        window.extend_from_slice(&buffer[..n]);
        // SAFETY: both pointers come with the lengths of their buffers.
        let found = unsafe { libc::memmem(window.as_ptr().cast(), window.len(), text.as_ptr().cast(), text.len()) };
        if !found.is_null() {
            return true;
        }
        window.drain(..window.len() - text.len().min(window.len()));
    }
}
