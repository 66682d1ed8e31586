//! What firmware and the UKI's stub tell in EFI variables.
#![forbid(unsafe_code)]

use holdfast_format::guid::Guid;
use std::fs;
use std::path::Path;

/// Where the variables are mounted.
pub const EFIVARS: &str = "/sys/firmware/efi/efivars";

/// The unique GUID of the partition that the running UKI was loaded from (systemd-stub's `LoaderDevicePartUUID`).
pub fn loader_partition(efivars: &Path) -> Option<Guid> {
    let data = read(
        efivars,
        "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
    )?;
    let units: Vec<u16> = data
        .chunks_exact(2)
        .map(|c| u16::from_le_bytes([c[0], c[1]]))
        .collect();
    let text = String::from_utf16(&units).ok()?;
    text.trim_end_matches('\0').parse().ok()
}

/// Secure Boot is on.
pub fn secure_boot(efivars: &Path) -> bool {
    read(efivars, "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").is_some_and(|data| data == [1])
}

/// The value behind the four bytes of attributes.
fn read(efivars: &Path, name: &str) -> Option<Vec<u8>> {
    let mut data = fs::read(efivars.join(name)).ok()?;
    (data.len() >= 4).then(|| data.split_off(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_partition_is_read_from_utf16_with_attributes() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(loader_partition(dir.path()), None);
        let guid = holdfast_format::layout::Part::EspB.guid();
        let mut data = vec![6, 0, 0, 0];
        data.extend(
            format!("{}\0", guid.to_string().to_uppercase())
                .encode_utf16()
                .flat_map(u16::to_le_bytes),
        );
        let path = dir
            .path()
            .join("LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f");
        fs::write(&path, &data).unwrap();
        assert_eq!(loader_partition(dir.path()), Some(guid));
        fs::write(&path, [6, 0, 0]).unwrap();
        assert_eq!(loader_partition(dir.path()), None);
    }

    #[test]
    fn secure_boot_is_on_only_when_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!secure_boot(dir.path()));
        let path = dir
            .path()
            .join("SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c");
        for (data, on) in [([6, 0, 0, 0, 1], true), ([6, 0, 0, 0, 0], false)] {
            fs::write(&path, data).unwrap();
            assert_eq!(secure_boot(dir.path()), on);
        }
    }
}
