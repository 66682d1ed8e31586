//! GUIDs as GPT and EFI store them, and names turned into GUIDs.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// A GUID in its on-disk byte order (first three fields little-endian, UEFI 2.10 appendix A).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Guid(pub [u8; 16]);

/// Text that is not of the form `8-4-4-4-12` hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a GUID: expected 8-4-4-4-12 hexadecimal digits")]
pub struct GuidError(pub String);

impl Guid {
    /// The all-zero GUID, which marks an unused partition entry.
    pub const ZERO: Guid = Guid([0; 16]);

    /// From the fields as they are written in specifications.
    #[must_use]
    pub const fn from_fields(a: u32, b: u16, c: u16, d: [u8; 8]) -> Guid {
        let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        Guid([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
    }

    /// A GUID that depends only on `name`: RFC 9562 version 8 over SHA-256, so that images are reproducible.
    #[must_use]
    pub fn named(name: &str) -> Guid {
        let hash = Sha256::new().chain_update(b"holdfast guid\0").chain_update(name).finalize();
        let mut b = [0u8; 16];
        b.copy_from_slice(&hash[..16]);
        // Version nibble sits in the high byte of the third field, which is stored little-endian.
        b[7] = (b[7] & 0x0f) | 0x80;
        b[8] = (b[8] & 0x3f) | 0x80;
        Guid(b)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = &self.0;
        write!(
            f,
            "{:02x}{:02x}{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}-",
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9]
        )?;
        b[10..].iter().try_for_each(|x| write!(f, "{x:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Guid {
    type Err = GuidError;

    fn from_str(s: &str) -> Result<Self, GuidError> {
        let err = || GuidError(s.chars().take(64).collect());
        let lengths = s.split('-').map(str::len);
        if !lengths.eq([8, 4, 4, 4, 12]) {
            return Err(err());
        }
        let raw = hex::decode(s.replace('-', "")).map_err(|_| err())?;
        let mut b: [u8; 16] = raw.try_into().map_err(|_| err())?;
        b[0..4].reverse();
        b[4..6].reverse();
        b[6..8].reverse();
        Ok(Guid(b))
    }
}

impl Serialize for Guid {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Guid {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_disk_order_agree_with_the_efi_system_partition_type() {
        let g = Guid::from_fields(0xC12A_7328, 0xF81F, 0x11D2, [0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E, 0xC9, 0x3B]);
        assert_eq!(g.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(g.0[..4], [0x28, 0x73, 0x2a, 0xc1]);
        assert_eq!("C12A7328-F81F-11D2-BA4B-00A0C93EC93B".parse(), Ok(g));
    }

    #[test]
    fn named_guids_are_version_8_and_stable() {
        let g = Guid::named("ESP-A").to_string();
        assert_eq!(&g[14..15], "8");
        assert!("89ab".contains(&g[19..20]));
        assert_eq!(Guid::named("ESP-A"), Guid::named("ESP-A"));
        assert_ne!(Guid::named("ESP-A"), Guid::named("ESP-B"));
    }

    #[test]
    fn malformed_text_is_refused() {
        for s in [
            "",
            "c12a7328f81f11d2ba4b00a0c93ec93b",
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93",
            "é12a732-f81f-11d2-ba4b-00a0c93ec93b",
        ] {
            assert!(s.parse::<Guid>().is_err(), "{s}");
        }
    }
}
