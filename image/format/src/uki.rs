//! Unified kernel images: which sections a Holdfast UKI has, and what PCR 11 becomes when one boots.

use crate::pcr::{self, Digest};
use crate::pe::{self, Pe, PeError};

/// What goes into a UKI, in file order.
#[derive(Debug, Clone, Copy)]
pub struct Uki<'a> {
    /// systemd-stub 252 (`linuxx64.efi.stub`).
    pub stub: &'a [u8],
    /// os-release text.
    pub osrel: &'a [u8],
    /// Kernel command line: printable ASCII, no newline at the end.
    pub cmdline: &'a str,
    /// Public key of the PCR policy, PEM; empty leaves the section out.
    pub pcrpkey: &'a [u8],
    /// Signed PCR policy document ([`crate::policy`]); not measured. Empty leaves the section out.
    pub pcrsig: &'a [u8],
    /// The kernel's bzImage.
    pub linux: &'a [u8],
    /// The initramfs, a cpio archive.
    pub initrd: &'a [u8],
    /// Seconds since 1970 for the PE header (SOURCE_DATE_EPOCH).
    pub timestamp: u32,
}

/// Why a UKI could not be put together or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UkiError {
    /// The PE file itself.
    #[error(transparent)]
    Pe(#[from] PeError),
    /// The command line has a byte the stub would not pass on.
    #[error("command line has byte {byte:#04x} at {at}: expected printable ASCII")]
    Cmdline {
        /// Position.
        at: usize,
        /// The byte.
        byte: u8,
    },
    /// A section that every UKI has is not there.
    #[error("not a UKI: no section {0}")]
    Missing(&'static str),
}

impl Uki<'_> {
    /// The unsigned UKI.
    ///
    /// # Errors
    /// [`UkiError`].
    pub fn build(&self) -> Result<Vec<u8>, UkiError> {
        if let Some((at, byte)) = self.cmdline.bytes().enumerate().find(|(_, b)| !(0x20..0x7f).contains(b)) {
            return Err(UkiError::Cmdline { at, byte });
        }
        let all = [
            (".osrel", self.osrel),
            (".cmdline", self.cmdline.as_bytes()),
            (".pcrpkey", self.pcrpkey),
            (".pcrsig", self.pcrsig),
            (".linux", self.linux),
            (".initrd", self.initrd),
        ];
        let present: Vec<_> = all.into_iter().filter(|(_, data)| !data.is_empty()).collect();
        Ok(pe::append_sections(self.stub, &present, self.timestamp)?)
    }
}

/// PCR 11 after this UKI has booted and `phases` have been extended: what to sign before `.pcrsig` is added, since
/// that section is not measured.
///
/// # Errors
/// [`UkiError`] when the file is not a UKI.
pub fn predict_pcr11(uki: &[u8], phases: &[&str]) -> Result<Digest, UkiError> {
    let pe = Pe::parse(uki)?;
    pe.section(".linux").ok_or(UkiError::Missing(".linux"))?;
    let sections = pcr::MEASURED_SECTIONS.iter().filter_map(|n| Some((*n, pe.section(n)?.data(uki))));
    Ok(pcr::predict_pcr11(sections, phases))
}

/// The command line inside a UKI.
///
/// # Errors
/// [`UkiError`] when the file is not a UKI or the section is not ASCII.
pub fn cmdline(uki: &[u8]) -> Result<String, UkiError> {
    let pe = Pe::parse(uki)?;
    let data = pe.section(".cmdline").ok_or(UkiError::Missing(".cmdline"))?.data(uki);
    match data.iter().enumerate().find(|(_, b)| !(0x20..0x7f).contains(*b)) {
        Some((at, byte)) => Err(UkiError::Cmdline { at, byte: *byte }),
        None => Ok(data.iter().map(|b| char::from(*b)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uki(pcrsig: &[u8]) -> Vec<u8> {
        let stub = pe::tiny_pe();
        let uki = Uki {
            stub: &stub,
            osrel: b"ID=holdfast\n",
            cmdline: "quiet panic=10",
            pcrpkey: b"",
            pcrsig,
            linux: &[1; 5000],
            initrd: &[2; 700],
            timestamp: 1,
        };
        uki.build().unwrap()
    }

    #[test]
    fn the_policy_signature_is_not_measured_and_everything_else_is() {
        let before = predict_pcr11(&uki(b""), &["enter-pid1"]).unwrap();
        assert_eq!(predict_pcr11(&uki(b"{}"), &["enter-pid1"]).unwrap(), before);
        assert_ne!(predict_pcr11(&uki(b"{}"), &[]).unwrap(), before);
        assert_eq!(cmdline(&uki(b"{}")).unwrap(), "quiet panic=10");
    }

    #[test]
    fn a_newline_in_the_command_line_is_refused() {
        let stub = pe::tiny_pe();
        let bad = Uki {
            stub: &stub,
            osrel: b"",
            cmdline: "quiet\n",
            pcrpkey: b"",
            pcrsig: b"",
            linux: b"k",
            initrd: b"",
            timestamp: 0,
        };
        assert_eq!(bad.build(), Err(UkiError::Cmdline { at: 5, byte: 10 }));
    }
}
