//! One TPM command by hand: `TPM2_PCR_Extend` through the kernel's resource manager.
//!
//! ```text
//!  command   0 u16 0x8002 (with sessions)   2 u32 65      6 u32 0x00000182 (PCR_Extend)
//!           10 u32 PCR                     14 u32 9 (bytes of the session area)
//!           18 u32 0x40000009 (password)   22 u16 0       24 u8 0   25 u16 0 (empty password)
//!           27 u32 1 (one digest)          31 u16 0x000B (sha256)   33 [32] digest
//!  answer    0 u16 tag   2 u32 size   6 u32 response code
//! ```
//! Source: TCG TPM 2.0 Library, Part 3, 22.2; Part 2, 10.9 and 10.13. All numbers are big-endian.
#![forbid(unsafe_code)]

use holdfast_model::boot::Measurement;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// The device that shares the TPM between processes.
pub const DEVICE: &str = "/dev/tpmrm0";
/// Longest wait for one answer; the profile allows a PCR_Extend 20 ms.
const ANSWER_DEADLINE_MS: u16 = 5000;
/// Tries while the TPM says that it is busy.
const TRIES: u32 = 10;
/// `TPM_RC_RETRY`, `TPM_RC_YIELDED`, `TPM_RC_TESTING`.
const BUSY: [u32; 3] = [0x922, 0x908, 0x90A];

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The device could not be used.
    #[error("TPM {DEVICE}: {0}")]
    Device(#[from] io::Error),
    /// No answer.
    #[error("TPM {DEVICE}: no answer to PCR_Extend within {ANSWER_DEADLINE_MS} ms")]
    Deadline,
    /// The TPM refused.
    #[error("TPM: PCR_Extend of PCR {pcr}: expected response 0, found {code:#x} (is the SHA-256 bank on?)")]
    Refused {
        /// Which PCR.
        pcr: u32,
        /// Response code of the TPM.
        code: u32,
    },
    /// The answer is no TPM answer.
    #[error("TPM: answer of {found} bytes is malformed")]
    Malformed {
        /// Its length.
        found: usize,
    },
}

/// The TPM, and what was extended through it.
#[derive(Debug)]
pub struct Tpm {
    device: Option<File>,
    measurements: Vec<Measurement>,
}

impl Tpm {
    /// Opens the TPM if the machine has one.
    pub fn open() -> Tpm {
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
        Tpm { device: device.ok(), measurements: Vec::new() }
    }

    /// True when there is one and it has not failed.
    pub fn is_there(&self) -> bool {
        self.device.is_some()
    }

    /// Extends `pcr` (SHA-256 bank) by the digest of `data`. Without a TPM it does nothing. After a failure the TPM
    /// counts as absent: a policy over half a history is worth nothing.
    pub fn measure(&mut self, pcr: u32, what: &str, data: &[u8]) -> Result<(), TpmError> {
        let Some(device) = &mut self.device else {
            return Ok(());
        };
        let digest = holdfast_format::pcr::sha256(&[data]);
        if let Err(error) = extend(device, pcr, &digest) {
            self.device = None;
            return Err(error);
        }
        let sha256 = digest.iter().map(|b| format!("{b:02x}")).collect();
        self.measurements.push(Measurement { pcr, what: what.to_owned(), sha256 });
        Ok(())
    }

    /// What was extended, in order.
    pub fn measurements(&self) -> &[Measurement] {
        &self.measurements
    }
}

fn extend(device: &mut File, pcr: u32, digest: &[u8; 32]) -> Result<(), TpmError> {
    let command = command(pcr, digest);
    let mut wait = Duration::from_millis(20);
    for _ in 0..TRIES {
        device.write_all(&command)?;
        let timeout = PollTimeout::from(ANSWER_DEADLINE_MS);
        if poll(&mut [PollFd::new(device.as_fd(), PollFlags::POLLIN)], timeout).map_err(io::Error::from)? == 0 {
            return Err(TpmError::Deadline);
        }
        let mut buffer = [0u8; 4096];
        let length = device.read(&mut buffer)?;
        match response_code(&buffer[..length])? {
            0 => return Ok(()),
            code if BUSY.contains(&code) => {}
            code => return Err(TpmError::Refused { pcr, code }),
        }
        std::thread::sleep(wait);
        wait *= 2;
    }
    Err(TpmError::Refused { pcr, code: BUSY[0] })
}

fn command(pcr: u32, digest: &[u8; 32]) -> [u8; 65] {
    let mut c = [0u8; 65];
    c[0..2].copy_from_slice(&0x8002u16.to_be_bytes());
    c[2..6].copy_from_slice(&65u32.to_be_bytes());
    c[6..10].copy_from_slice(&0x182u32.to_be_bytes());
    c[10..14].copy_from_slice(&pcr.to_be_bytes());
    c[14..18].copy_from_slice(&9u32.to_be_bytes());
    c[18..22].copy_from_slice(&0x4000_0009u32.to_be_bytes());
    c[27..31].copy_from_slice(&1u32.to_be_bytes());
    c[31..33].copy_from_slice(&0x000Bu16.to_be_bytes());
    c[33..].copy_from_slice(digest);
    c
}

fn response_code(answer: &[u8]) -> Result<u32, TpmError> {
    let malformed = TpmError::Malformed { found: answer.len() };
    let word = |at: usize| Some(u32::from_be_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    match (word(2), word(6)) {
        (Some(size), Some(code)) if size as usize == answer.len() => Ok(code),
        _ => Err(malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_has_the_bytes_of_the_specification() {
        let found: String = command(11, &[0xAB; 32]).iter().map(|b| format!("{b:02x}")).collect();
        let expected = "8002000000410000018200000 00b0000000940000009000000000000000001000b".replace(' ', "");
        assert_eq!(found, expected + &"ab".repeat(32));
    }

    #[test]
    fn answers_are_read_with_care() {
        let ok = [0x80, 2, 0, 0, 0, 10, 0, 0, 0, 0];
        assert_eq!(response_code(&ok).unwrap(), 0);
        let busy = [0x80, 1, 0, 0, 0, 10, 0, 0, 0x09, 0x22];
        assert!(BUSY.contains(&response_code(&busy).unwrap()));
        for n in 0..10 {
            assert!(response_code(&ok[..n]).is_err());
        }
        assert!(response_code(&[0x80, 1, 0, 0, 0, 99, 0, 0, 0, 0]).is_err());
    }
}
