//! The header of the DATA partition: two copies, each 4 KiB, little-endian.
//!
//! | offset | size | field |
//! |--|--|--|
//! | 0 | 8 | `HFVAULT1` |
//! | 8 | 8 | generation; the copy with the higher one counts |
//! | 16 | 16 | volume uuid, random |
//! | 32 | 1 | how the key is kept: 0 clear, 1 TPM, 2 TPM with epoch |
//! | 33 | 3 | zero |
//! | 36 | 2 | length p of the private part (the key itself when clear) |
//! | 38 | 2 | length q of the public part (0 when clear) |
//! | 40 | p | private part |
//! | 40+p | q | public part |
//! | 40+p+q | 32 | HMAC-SHA-256 over all before, under a key derived from the vault key |
//! | 72+p+q | 4 | CRC-32 over all before |
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{SealedKey, VaultKey};

/// Where the encrypted part begins.
pub const DATA_OFFSET: u64 = 1 << 20;
/// Where the copies are.
pub const COPY_OFFSETS: [u64; 2] = [0, 512 << 10];
const COPY_SIZE: usize = 4096;

const MAGIC: &[u8; 8] = b"HFVAULT1";
const FIXED: usize = 40;
const MAC_SIZE: usize = 32;
const CRC_SIZE: usize = 4;

/// Identity and sealed key of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Counts the times it was written.
    pub generation: u64,
    /// Random name of the volume.
    pub uuid: [u8; 16],
    /// Its key.
    pub sealed: SealedKey,
}

/// A header as it was read. Its MAC can only be checked with the key that comes out of it.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The header.
    pub header: Header,
    authenticated: Vec<u8>,
    mac: [u8; MAC_SIZE],
}

/// What the partition holds.
#[derive(Debug)]
pub enum Found {
    /// No header was ever finished.
    Nothing,
    /// Both copies were written once and neither is whole.
    Damaged(String),
    /// A whole header.
    Header(Box<Parsed>),
}

/// Why a copy is not a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyError {
    /// It does not begin like one.
    Absent,
    /// It begins like one and is not whole.
    Broken(&'static str),
}

impl Header {
    /// Identity of the volume for PCR 15: only who knows the key can make it.
    pub fn volume_id(&self, key: &VaultKey) -> [u8; 32] {
        let mut mac = hmac(key.expose());
        mac.update(b"holdfast volume id");
        mac.update(&self.uuid);
        mac.finalize().into_bytes().into()
    }

    /// One copy.
    fn encode(&self, key: &VaultKey) -> io::Result<Zeroizing<Vec<u8>>> {
        let (kind, private, public): (u8, &[u8], &[u8]) = match &self.sealed {
            SealedKey::Clear(key) => (0, key, &[]),
            SealedKey::Tpm { epoch_bound, private, public } => (1 + u8::from(*epoch_bound), private, public),
        };
        if FIXED + private.len() + public.len() + MAC_SIZE + CRC_SIZE > COPY_SIZE {
            return Err(io::Error::other("the sealed key does not fit the header"));
        }
        let length = |b: &[u8]| u16::try_from(b.len()).unwrap_or(u16::MAX).to_le_bytes();
        let mut b = Zeroizing::new(Vec::with_capacity(COPY_SIZE));
        b.extend(MAGIC);
        b.extend(self.generation.to_le_bytes());
        b.extend(self.uuid);
        b.extend([kind, 0, 0, 0]);
        b.extend(length(private));
        b.extend(length(public));
        b.extend(private);
        b.extend(public);
        let mac = header_mac(key, &b);
        b.extend(mac);
        let crc = crc32fast::hash(&b);
        b.extend(crc.to_le_bytes());
        b.resize(COPY_SIZE, 0);
        Ok(b)
    }
}

impl Parsed {
    /// Reads one copy. Every field is bounded; the content is a stranger's until the MAC is checked.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn parse(copy: &[u8]) -> Result<Self, CopyError> {
        let broken = CopyError::Broken;
        if copy.get(..8) != Some(MAGIC) {
            return Err(CopyError::Absent);
        }
        let fixed = copy.get(..FIXED).ok_or(broken("it is cut off"))?;
        let length = |at: usize| usize::from(u16::from_le_bytes([fixed[at], fixed[at + 1]]));
        let (private, public) = (length(36), length(38));
        let end = FIXED + private + public;
        let parts = copy.get(FIXED..end).ok_or(broken("its lengths exceed it"))?;
        let mac = copy.get(end..end + MAC_SIZE).ok_or(broken("its lengths exceed it"))?;
        let crc = copy.get(end + MAC_SIZE..end + MAC_SIZE + CRC_SIZE).ok_or(broken("its lengths exceed it"))?;
        if crc != crc32fast::hash(&copy[..end + MAC_SIZE]).to_le_bytes() {
            return Err(broken("its checksum is wrong"));
        }
        let (private, public) = parts.split_at(private);
        let sealed = match fixed[32] {
            0 if public.is_empty() => SealedKey::Clear(Zeroizing::new(private.to_vec())),
            kind @ (1 | 2) => {
                SealedKey::Tpm { epoch_bound: kind == 2, private: private.to_vec(), public: public.to_vec() }
            }
            _ => return Err(broken("its kind of key is not known")),
        };
        let array = |b: &[u8]| -> [u8; 8] { b.try_into().unwrap_or_default() };
        Ok(Self {
            header: Header {
                generation: u64::from_le_bytes(array(&fixed[8..16])),
                uuid: fixed[16..32].try_into().unwrap_or_default(),
                sealed,
            },
            authenticated: copy[..end].to_vec(),
            mac: mac.try_into().unwrap_or_default(),
        })
    }

    /// Whether whoever wrote this header knew `key`.
    pub fn is_made_with(&self, key: &VaultKey) -> bool {
        let mut mac = header_hmac(key);
        mac.update(&self.authenticated);
        mac.verify_slice(&self.mac).is_ok()
    }
}

/// Reads both copies.
///
/// # Errors
/// The disk's.
pub fn read(partition: &File) -> io::Result<Found> {
    let mut whole: Option<Parsed> = None;
    let mut broken = Vec::new();
    for (name, offset) in ["A", "B"].into_iter().zip(COPY_OFFSETS) {
        let mut copy = vec![0; COPY_SIZE];
        match partition.read_exact_at(&mut copy, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
            other => other?,
        }
        match Parsed::parse(&copy) {
            Ok(parsed) if whole.as_ref().is_none_or(|w| w.header.generation < parsed.header.generation) => {
                whole = Some(parsed);
            }
            Ok(_) | Err(CopyError::Absent) => {}
            Err(CopyError::Broken(reason)) => broken.push(format!("copy {name}: {reason}")),
        }
    }
    Ok(match whole {
        Some(parsed) => Found::Header(Box::new(parsed)),
        // One broken copy beside an absent one is the first write of a volume, cut off.
        None if broken.len() < COPY_OFFSETS.len() => Found::Nothing,
        None => Found::Damaged(broken.join("; ")),
    })
}

/// Writes both copies, one after the other, each on stable storage before the next.
///
/// # Errors
/// The disk's.
pub fn write(partition: &File, header: &Header, key: &VaultKey) -> io::Result<()> {
    let copy = header.encode(key)?;
    for offset in COPY_OFFSETS {
        partition.write_all_at(&copy, offset)?;
        partition.sync_data()?;
    }
    Ok(())
}

/// Overwrites everything before the encrypted part.
///
/// # Errors
/// The disk's.
pub fn wipe(partition: &File) -> io::Result<()> {
    let zeros = vec![0; 64 << 10];
    let mut at = 0;
    while at < DATA_OFFSET {
        partition.write_all_at(&zeros, at)?;
        at += zeros.len() as u64;
    }
    partition.sync_data()
}

/// Any bytes as a copy of the header.
#[doc(hidden)]
pub fn fuzz_header(data: &[u8]) {
    let _ = Parsed::parse(data);
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    // HMAC takes keys of any length.
    Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC keys have no wrong length"))
}

fn header_hmac(key: &VaultKey) -> Hmac<Sha256> {
    let mut derive = hmac(key.expose());
    derive.update(b"holdfast vault header");
    hmac(&Zeroizing::new(<[u8; 32]>::from(derive.finalize().into_bytes()))[..])
}

fn header_mac(key: &VaultKey, bytes: &[u8]) -> [u8; MAC_SIZE] {
    let mut mac = header_hmac(key);
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(fill: u8) -> VaultKey {
        VaultKey::new(Zeroizing::new(vec![fill; 64])).unwrap()
    }

    fn header() -> Header {
        let sealed = SealedKey::Tpm { epoch_bound: true, private: vec![1; 160], public: vec![2; 78] };
        Header { generation: 7, uuid: [9; 16], sealed }
    }

    fn disk() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 << 20).unwrap();
        file
    }

    #[test]
    fn what_is_written_is_read_and_only_its_key_fits() {
        let disk = disk();
        write(&disk, &header(), &key(1)).unwrap();
        let Found::Header(parsed) = read(&disk).unwrap() else { panic!("no header") };
        assert_eq!(parsed.header, header());
        assert!(parsed.is_made_with(&key(1)) && !parsed.is_made_with(&key(2)));
        assert_ne!(header().volume_id(&key(1)), header().volume_id(&key(2)));
    }

    #[test]
    fn layout_never_changes() {
        let copy = header().encode(&key(1)).unwrap();
        assert_eq!(&copy[..8], b"HFVAULT1");
        assert_eq!((copy[8], copy[16], copy[32], copy[36], copy[38]), (7, 9, 2, 160, 78));
        assert_eq!(crc32fast::hash(&copy[..40 + 160 + 78 + 32]).to_le_bytes(), copy[310..314]);
    }

    #[test]
    fn one_copy_suffices_two_broken_ones_are_damage_and_a_first_write_cut_off_is_nothing() {
        let disk = disk();
        write(&disk, &header(), &key(1)).unwrap();
        disk.write_all_at(&[0xff; 16], COPY_OFFSETS[0] + 50).unwrap();
        assert!(matches!(read(&disk).unwrap(), Found::Header(_)));
        disk.write_all_at(&[0xff; 16], COPY_OFFSETS[1] + 50).unwrap();
        assert!(matches!(read(&disk).unwrap(), Found::Damaged(_)));
        disk.write_all_at(&[0; 16], COPY_OFFSETS[1]).unwrap();
        assert!(matches!(read(&disk).unwrap(), Found::Nothing));
        wipe(&disk).unwrap();
        assert!(matches!(read(&disk).unwrap(), Found::Nothing));
    }

    #[test]
    fn a_rewrite_cut_between_the_copies_leaves_one_of_the_two() {
        let disk = disk();
        write(&disk, &header(), &key(1)).unwrap();
        let newer = Header { generation: 8, ..header() };
        disk.write_all_at(&newer.encode(&key(1)).unwrap(), COPY_OFFSETS[0]).unwrap();
        let Found::Header(parsed) = read(&disk).unwrap() else { panic!("no header") };
        assert_eq!(parsed.header.generation, 8);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut data in proptest::collection::vec(any::<u8>(), 0..400), magic: bool) {
            if magic && data.len() >= 8 {
                data[..8].copy_from_slice(MAGIC);
            }
            fuzz_header(&data);
        }

        #[test]
        fn any_flipped_bit_of_a_copy_is_noticed(bit in 0usize..314 * 8) {
            let mut copy = header().encode(&key(1)).unwrap();
            copy[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Parsed::parse(&copy).is_err());
        }
    }
}
