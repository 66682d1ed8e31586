//! The boot variables of the two slots: the real [`Firmware`] for UEFI machines.
//!
//! A slot's entry is whichever active `Boot####` names its ESP's partition GUID and the UKI's path; its text and number
//! are never relied on. A missing one is made under the lowest free number.

use crate::efivars::{EFIVARS, EfiError, EfiVars, HardDrive, LoadOption};
use crate::run::Firmware;
use crate::step::Nvram;
use holdfast_format::gpt::Table;
use holdfast_format::layout::{Part, slot_of_esp};
use holdfast_model::slot::Slot;
use std::path::Path;

/// Path of the UKI on its ESP.
pub const UKI_PATH: &str = "\\EFI\\BOOT\\BOOTX64.EFI";

/// What can go wrong with boot entries.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A variable.
    #[error(transparent)]
    Variable(#[from] EfiError),
    /// All 65536 numbers are taken.
    #[error("no free number for a boot entry of slot {0}")]
    Full(Slot),
    /// The disk has no such partition.
    #[error("the partition table has no {0}")]
    NoEsp(&'static str),
}

/// Boot entries over EFI variables.
#[derive(Debug, Clone)]
pub struct EfiBoot {
    vars: EfiVars,
    esp: [HardDrive; 2],
}

impl EfiBoot {
    /// For the disk with this partition table, over the machine's efivarfs.
    ///
    /// # Errors
    /// [`BootError::NoEsp`].
    pub fn new(table: &Table) -> Result<EfiBoot, BootError> {
        EfiBoot::over(EfiVars::new(Path::new(EFIVARS)), table)
    }

    /// Over these variables.
    ///
    /// # Errors
    /// [`BootError::NoEsp`].
    pub fn over(vars: EfiVars, table: &Table) -> Result<EfiBoot, BootError> {
        let esp = |slot: Slot| {
            let name = Part::esp(slot).name();
            let index = table.partitions.iter().position(|p| p.name == name).ok_or(BootError::NoEsp(name))?;
            let p = &table.partitions[index];
            let sectors = p.last_lba - p.first_lba + 1;
            Ok::<_, BootError>(HardDrive { number: index as u32 + 1, start_lba: p.first_lba, sectors, guid: p.guid })
        };
        Ok(EfiBoot { vars, esp: [esp(Slot::A)?, esp(Slot::B)?] })
    }

    /// The variables.
    #[must_use]
    pub fn vars(&self) -> &EfiVars {
        &self.vars
    }

    /// What [`crate::BootFacts`] wants to know. Unreadable variables count as not available.
    #[must_use]
    pub fn nvram(&self) -> Nvram {
        let state = || -> Result<Option<Slot>, BootError> {
            let entries = [self.entry(Slot::A)?, self.entry(Slot::B)?];
            let order = self.vars.numbers("BootOrder")?;
            let [Some(a), Some(b)] = entries else {
                return Ok(None);
            };
            Ok(match order.get(..2) {
                Some(o) if o == [a, b] => Some(Slot::A),
                Some(o) if o == [b, a] => Some(Slot::B),
                _ => None,
            })
        };
        match state() {
            Ok(first) => Nvram { available: self.vars.available(), first },
            Err(_) => Nvram::default(),
        }
    }

    /// The slot that runs: by the partition its UKI came from, else by `BootCurrent`.
    #[must_use]
    pub fn running(&self) -> Option<Slot> {
        if let Some(slot) = self.vars.loader_partition().ok().flatten().and_then(slot_of_esp) {
            return Some(slot);
        }
        let current = *self.vars.numbers("BootCurrent").ok()?.first()?;
        Slot::ALL.into_iter().find(|s| self.is_entry(current, *s).unwrap_or(false))
    }

    fn drive(&self, slot: Slot) -> &HardDrive {
        match slot {
            Slot::A => &self.esp[0],
            Slot::B => &self.esp[1],
        }
    }

    /// Number of the slot's entry.
    fn entry(&self, slot: Slot) -> Result<Option<u16>, BootError> {
        for n in self.vars.boot_numbers()? {
            if self.is_entry(n, slot)? {
                return Ok(Some(n));
            }
        }
        Ok(None)
    }

    fn is_entry(&self, number: u16, slot: Slot) -> Result<bool, BootError> {
        let value = self.vars.read(&format!("Boot{number:04X}"), crate::efivars::GLOBAL)?;
        let option = value.as_deref().and_then(LoadOption::decode);
        Ok(option.is_some_and(|o| o.drive.guid == self.drive(slot).guid && o.file.eq_ignore_ascii_case(UKI_PATH)))
    }

    /// Number of the slot's entry, made if missing.
    fn ensure(&self, slot: Slot) -> Result<u16, BootError> {
        if let Some(n) = self.entry(slot)? {
            return Ok(n);
        }
        let taken = self.vars.boot_numbers()?;
        let free = (0..=u16::MAX).find(|n| !taken.contains(n)).ok_or(BootError::Full(slot))?;
        let option =
            LoadOption { description: format!("Holdfast {slot}"), drive: *self.drive(slot), file: UKI_PATH.into() };
        self.vars.write(&format!("Boot{free:04X}"), &option.encode())?;
        Ok(free)
    }
}

impl Firmware for EfiBoot {
    type Error = BootError;

    fn ensure_entries(&mut self) -> Result<(), BootError> {
        Slot::ALL.into_iter().try_for_each(|s| self.ensure(s).map(drop))
    }

    fn set_boot_order(&mut self, first: Slot) -> Result<(), BootError> {
        let mut order = vec![self.ensure(first)?, self.ensure(first.other())?];
        let rest = self.vars.numbers("BootOrder")?;
        order.extend(rest.into_iter().filter(|n| !order[..2].contains(n)).collect::<Vec<_>>());
        Ok(self.vars.write_numbers("BootOrder", &order)?)
    }

    fn set_boot_next(&mut self, slot: Slot) -> Result<(), BootError> {
        let number = self.ensure(slot)?;
        Ok(self.vars.write_numbers("BootNext", &[number])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efivars::{GLOBAL, LOADER};
    use holdfast_format::layout;
    use std::fs;

    fn boot(dir: &Path) -> EfiBoot {
        EfiBoot::over(EfiVars::plain(dir), &layout::table(4 << 30).unwrap()).unwrap()
    }

    #[test]
    fn entries_are_made_once_and_the_order_keeps_what_else_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut b = boot(dir.path());
        b.vars().write("Boot0000", b"\x01\0\0\0\0\0U\0I\0\0\0").unwrap();
        b.vars().write_numbers("BootOrder", &[0]).unwrap();
        assert_eq!(b.nvram(), Nvram { available: true, first: None });
        b.ensure_entries().unwrap();
        b.ensure_entries().unwrap();
        assert_eq!(b.vars().boot_numbers().unwrap(), [0, 1, 2].into());
        b.set_boot_order(Slot::B).unwrap();
        assert_eq!(b.vars().numbers("BootOrder").unwrap(), [2, 1, 0]);
        assert_eq!(b.nvram().first, Some(Slot::B));
        b.set_boot_order(Slot::A).unwrap();
        assert_eq!(b.vars().numbers("BootOrder").unwrap(), [1, 2, 0]);
        b.set_boot_next(Slot::B).unwrap();
        assert_eq!(b.vars().numbers("BootNext").unwrap(), [2]);
    }

    #[test]
    fn a_firmware_that_forgot_everything_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let mut b = boot(dir.path());
        b.set_boot_order(Slot::A).unwrap();
        for f in fs::read_dir(dir.path()).unwrap() {
            fs::remove_file(f.unwrap().path()).unwrap();
        }
        b.vars().write("Lang", b"eng").unwrap();
        assert_eq!(b.nvram(), Nvram { available: true, first: None });
        b.set_boot_order(Slot::A).unwrap();
        assert_eq!(b.nvram().first, Some(Slot::A));
    }

    #[test]
    fn the_running_slot_is_known_from_the_stub_or_the_current_entry() {
        let dir = tempfile::tempdir().unwrap();
        let mut b = boot(dir.path());
        assert_eq!(b.running(), None);
        b.set_boot_order(Slot::A).unwrap();
        b.vars().write_numbers("BootCurrent", &[1]).unwrap();
        assert_eq!(b.running(), Some(Slot::B));
        let text: Vec<u8> =
            format!("{}\0", Part::EspA.guid()).to_uppercase().encode_utf16().flat_map(u16::to_le_bytes).collect();
        fs::write(dir.path().join(format!("LoaderDevicePartUUID-{LOADER}")), [&[6, 0, 0, 0], &text[..]].concat())
            .unwrap();
        assert_eq!(b.running(), Some(Slot::A));
    }

    #[test]
    fn variables_that_cannot_be_read_count_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let b = boot(&dir.path().join("nothing"));
        assert_eq!(b.nvram(), Nvram::default());
        let _ = GLOBAL;
    }
}
