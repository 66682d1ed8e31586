//! EFI variables through efivarfs, and the load options in `Boot####` (UEFI 2.10 §3.1.3, §8.2, §10.3).
//!
//! A file in efivarfs is four bytes of attributes, then the value; it is replaced by a single `write`.
//!
//! ```text
//!  EFI_LOAD_OPTION   attributes u32, length of the path list u16, description UTF-16 + NUL, path list, optional data
//!  hard drive node   04 01 2a 00, partition u32, start u64, size u64, GUID 16, format 02 (GPT), signature type 02 (GUID)
//!  file path node    04 04 length u16, UTF-16 + NUL
//!  end node          7f ff 04 00
//! ```

use holdfast_format::guid::Guid;
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where the kernel shows the variables.
pub const EFIVARS: &str = "/sys/firmware/efi/efivars";
/// EFI_GLOBAL_VARIABLE.
pub const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Vendor GUID of systemd-stub.
pub const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Non-volatile, accessible to boot services and at run time.
const ATTRIBUTES: u32 = 7;
/// LOAD_OPTION_ACTIVE.
const ACTIVE: u32 = 1;
const MAX_VALUE: usize = 64 * 1024;

/// What went wrong with a variable.
#[derive(Debug, thiserror::Error)]
#[error("EFI variable {name}: cannot {action}: {source}")]
pub struct EfiError {
    /// Variable name, or the directory.
    pub name: String,
    action: &'static str,
    source: io::Error,
}

/// The variables of this machine.
#[derive(Debug, Clone)]
pub struct EfiVars {
    dir: PathBuf,
    /// A plain directory (tests) needs the old file to be cut; efivarfs replaces the value by itself.
    truncate: bool,
}

impl EfiVars {
    /// Over efivarfs mounted at `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> EfiVars {
        EfiVars { dir: dir.into(), truncate: false }
    }

    /// Over a plain directory that plays efivarfs.
    #[must_use]
    pub fn plain(dir: &Path) -> EfiVars {
        EfiVars { dir: dir.into(), truncate: true }
    }

    /// Whether there are variables at all (booted by UEFI, efivarfs mounted).
    #[must_use]
    pub fn available(&self) -> bool {
        self.names().is_ok_and(|mut n| n.next().is_some())
    }

    /// Value of a variable without its attributes; `None` when it does not exist.
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn read(&self, name: &str, vendor: &str) -> Result<Option<Vec<u8>>, EfiError> {
        match fs::read(self.path(name, vendor)) {
            Ok(mut b) if b.len() >= 4 && b.len() <= MAX_VALUE => Ok(Some(b.split_off(4))),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(EfiError { name: name.into(), action: "read", source }),
        }
    }

    /// Writes a global variable, unless it has that value already: NVRAM wears.
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn write(&self, name: &str, value: &[u8]) -> Result<(), EfiError> {
        if self.read(name, GLOBAL)?.as_deref() == Some(value) {
            return Ok(());
        }
        let failed = |source| EfiError { name: name.into(), action: "write", source };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(self.truncate);
        let mut file = options.open(self.path(name, GLOBAL)).map_err(failed)?;
        let bytes = [&ATTRIBUTES.to_le_bytes()[..], value].concat();
        // One write call is one SetVariable; a short one would have been refused by firmware.
        let n = file.write(&bytes).map_err(failed)?;
        if n != bytes.len() {
            return Err(failed(io::ErrorKind::WriteZero.into()));
        }
        Ok(())
    }

    /// Numbers of all `Boot####` variables.
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn boot_numbers(&self) -> Result<BTreeSet<u16>, EfiError> {
        let suffix = format!("-{GLOBAL}");
        let number = |n: String| {
            let digits = n.strip_prefix("Boot")?.strip_suffix(&suffix)?.to_owned();
            let plain = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u16::from_str_radix(&digits, 16).ok())?
        };
        Ok(self.names()?.filter_map(number).collect())
    }

    /// A list of numbers such as `BootOrder`; empty when it does not exist.
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn numbers(&self, name: &str) -> Result<Vec<u16>, EfiError> {
        let value = self.read(name, GLOBAL)?.unwrap_or_default();
        Ok(value.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect())
    }

    /// Writes a list of numbers.
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn write_numbers(&self, name: &str, numbers: &[u16]) -> Result<(), EfiError> {
        let value: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.write(name, &value)
    }

    /// The unique GUID of the partition that the running UKI came from (systemd-stub's `LoaderDevicePartUUID`).
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn loader_partition(&self) -> Result<Option<Guid>, EfiError> {
        let value = self.read("LoaderDevicePartUUID", LOADER)?.unwrap_or_default();
        let text: String = utf16(&value).trim_end_matches('\0').into();
        Ok(text.parse().ok())
    }

    fn names(&self) -> Result<impl Iterator<Item = String>, EfiError> {
        let name = self.dir.display().to_string();
        let entries = fs::read_dir(&self.dir).map_err(|source| EfiError { name, action: "list", source })?;
        Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()))
    }

    fn path(&self, name: &str, vendor: &str) -> PathBuf {
        self.dir.join(format!("{name}-{vendor}"))
    }
}

/// The partition that a load option names: short-form hard drive node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HardDrive {
    /// Partition number, from 1.
    pub number: u32,
    /// First sector.
    pub start_lba: u64,
    /// Size in sectors.
    pub sectors: u64,
    /// Unique partition GUID: what firmware looks for.
    pub guid: Guid,
}

/// A load option of the form that Holdfast writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOption {
    /// Shown in firmware menus; never relied on.
    pub description: String,
    /// Partition.
    pub drive: HardDrive,
    /// Path on it, with backslashes.
    pub file: String,
}

impl LoadOption {
    /// The variable's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut list = vec![0x04, 0x01, 42, 0];
        list.extend(self.drive.number.to_le_bytes());
        list.extend(self.drive.start_lba.to_le_bytes());
        list.extend(self.drive.sectors.to_le_bytes());
        list.extend(self.drive.guid.0);
        list.extend([2, 2]);
        let file = wide(&self.file);
        list.extend([0x04, 0x04]);
        list.extend((file.len() as u16 + 4).to_le_bytes());
        list.extend(file);
        list.extend([0x7f, 0xff, 4, 0]);
        let mut out = ACTIVE.to_le_bytes().to_vec();
        out.extend((list.len() as u16).to_le_bytes());
        out.extend(wide(&self.description));
        out.extend(list);
        out
    }

    /// Reads an untrusted load option; `None` when it is not active or not a file on a GPT partition. Nodes before the
    /// hard drive node (firmware may have written the long form) and optional data are passed over.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<LoadOption> {
        let attributes = u32::from_le_bytes(value.get(..4)?.try_into().ok()?);
        let list_bytes = usize::from(u16::from_le_bytes(value.get(4..6)?.try_into().ok()?));
        let rest = value.get(6..)?;
        let text_end = rest.chunks_exact(2).position(|c| c == [0, 0])? * 2;
        let description = utf16(&rest[..text_end]);
        let mut list = rest.get(text_end + 2..)?.get(..list_bytes)?;
        let (mut drive, mut file) = (None, None);
        while let Some(head) = list.get(..4) {
            let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
            let node = list.get(..length).filter(|n| n.len() >= 4)?;
            match (head[0], head[1]) {
                (0x04, 0x01) => drive = decode_drive(node),
                (0x04, 0x04) => file = Some(utf16(&node[4..]).trim_end_matches('\0').to_owned()),
                (0x7f, _) => break,
                _ => {}
            }
            list = &list[length..];
        }
        (attributes & ACTIVE != 0).then_some(LoadOption { description, drive: drive?, file: file? })
    }
}

fn decode_drive(node: &[u8]) -> Option<HardDrive> {
    let gpt = node.len() == 42 && node[40] == 2 && node[41] == 2;
    gpt.then_some(())?;
    Some(HardDrive {
        number: u32::from_le_bytes(node[4..8].try_into().ok()?),
        start_lba: u64::from_le_bytes(node[8..16].try_into().ok()?),
        sectors: u64::from_le_bytes(node[16..24].try_into().ok()?),
        guid: Guid(node[24..40].try_into().ok()?),
    })
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

fn utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]]));
    char::decode_utf16(units).map(|c| c.unwrap_or('?')).collect()
}

/// Fuzz entry: the value of a `Boot####` variable.
#[doc(hidden)]
pub fn fuzz_load_option(data: &[u8]) {
    // What is read of an option of ordinary size is what is written again.
    if let Some(o) = LoadOption::decode(data).filter(|_| data.len() < 4096) {
        assert_eq!(LoadOption::decode(&o.encode()).map(|d| d.drive), Some(o.drive));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option() -> LoadOption {
        LoadOption {
            description: "Holdfast A".into(),
            drive: HardDrive {
                number: 1,
                start_lba: 2048,
                sectors: 262_144,
                guid: "01020304-0506-0708-090a-0b0c0d0e0f10".parse().unwrap(),
            },
            file: "\\EFI\\BOOT\\BOOTX64.EFI".into(),
        }
    }

    #[test]
    fn a_load_option_has_the_bytes_that_the_specification_gives() {
        // Built by hand from UEFI 2.10: attributes, list length 0x5e, description, HD node, file node, end.
        let want = concat!(
            "01000000",
            "5e00",
            "48006f006c0064006600610073007400200041000000",
            "04012a00",
            "01000000",
            "0008000000000000",
            "0000040000000000",
            "0403020106050807090a0b0c0d0e0f10",
            "0202",
            "04043000",
            "5c004500460049005c0042004f004f0054005c0042004f004f0054005800360034002e004500460049000000",
            "7fff0400",
        );
        let bytes = option().encode();
        assert_eq!(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>(), want);
        assert_eq!(LoadOption::decode(&bytes), Some(option()));
    }

    #[test]
    fn the_long_form_and_optional_data_are_understood_and_foreign_options_are_not() {
        let mut bytes = option().encode();
        let at = 6 + 22;
        // An ACPI PciRoot node in front, and data behind.
        bytes.splice(at..at, [0x02, 0x01, 12, 0, 0xd0, 0x41, 0x03, 0x0a, 0, 0, 0, 0]);
        bytes[4] += 12;
        bytes.extend(b"optional");
        assert_eq!(LoadOption::decode(&bytes), Some(option()));
        let mut inactive = option().encode();
        inactive[0] = 0;
        assert_eq!(LoadOption::decode(&inactive), None);
        for n in 0..bytes.len() - 8 {
            assert_eq!(LoadOption::decode(&bytes[..n]), None, "{n}");
        }
    }

    proptest::proptest! {
        #[test]
        fn hostile_options_do_not_panic(at in 0usize..150, value: u8, at2 in 0usize..150, value2: u8) {
            let mut bytes = option().encode();
            let n = bytes.len();
            bytes[at % n] = value;
            bytes[at2 % n] = value2;
            fuzz_load_option(&bytes);
        }
    }

    #[test]
    fn variables_are_replaced_whole_and_only_when_they_differ() {
        let dir = tempfile::tempdir().unwrap();
        let vars = EfiVars::plain(dir.path());
        assert!(!vars.available());
        vars.write_numbers("BootOrder", &[3, 1, 2]).unwrap();
        vars.write_numbers("BootOrder", &[1]).unwrap();
        assert_eq!(vars.numbers("BootOrder").unwrap(), [1]);
        let path = dir.path().join(format!("BootOrder-{GLOBAL}"));
        assert_eq!(fs::read(&path).unwrap(), [7, 0, 0, 0, 1, 0]);
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        vars.write_numbers("BootOrder", &[1]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
        vars.write("Boot000A", b"x").unwrap();
        assert_eq!(vars.boot_numbers().unwrap(), [0xA].into());
    }

    #[test]
    fn the_loader_partition_is_read_from_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let vars = EfiVars::plain(dir.path());
        assert_eq!(vars.loader_partition().unwrap(), None);
        let text = "01020304-0506-0708-090A-0B0C0D0E0F10";
        fs::write(vars.path("LoaderDevicePartUUID", LOADER), [&[6, 0, 0, 0], &wide(text)[..]].concat()).unwrap();
        assert_eq!(vars.loader_partition().unwrap(), Some(option().drive.guid));
    }
}
