//! What the client keeps across reboots: the last config, the controller's certificates, the UUID.
//!
//! Each file is replaced atomically: write beside it, fsync, rename, fsync the directory. A config is kept raw, together
//! with the certificate list that verified it, so it verifies again with no network and after a rotation:
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | `HFCONF1\n` |
//! | 8 | 4 | length c of the certificate list's envelope, little-endian |
//! | 12 | c | the envelope of `/certs` |
//! | 12 + c | 4 | length d of the config's envelope, little-endian |
//! | 16 + c | d | the envelope of `/config` |
//! | 16 + c + d | 32 | SHA-256 of everything before |

use crate::client::ReceivedConfig;
use holdfast_api::certs::{ControllerCertificates, Roots, ValidAt};
use holdfast_api::hash::sha256;
use holdfast_api::proto::config::ConfigResponse;
use holdfast_unit::durable::{self, DurableError};
use prost::Message;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const MAGIC: &[u8; 8] = b"HFCONF1\n";
const CONFIG: &str = "lastconfig";
const BACKUP: &str = "lastconfig.bak";
const CERTIFICATES: &str = "controllercerts";
const UUID: &str = "uuid";
/// No file of the store is larger.
const MAX_FILE: u64 = 16 << 20;

/// The store, in one directory.
#[derive(Debug, Clone)]
pub struct ConfigStore {
    dir: PathBuf,
}

/// The store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("{path}: {action}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A file that is there but cannot be used.
    #[error("{path}: {reason}; it is not used")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl ConfigStore {
    /// Opens the store, making the directory if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(io_error(&dir, "make directory"))?;
        Ok(Self { dir })
    }

    /// Keeps a config that was verified just now.
    ///
    /// # Errors
    /// [`StoreError::Io`]; what was kept before is still there.
    pub fn save_config(&self, config: &ReceivedConfig) -> Result<(), StoreError> {
        self.replace(CONFIG, &encode(config.certificates.envelope(), &config.envelope))
    }

    /// The last config, verified against the roots of the site; `None` when there is none.
    ///
    /// `after_crash`: the last boot ended in a crash that the config may have caused, so the backup is taken if there is
    /// one.
    ///
    /// # Errors
    /// [`StoreError`] when a file is there but neither it nor the backup can be used.
    pub fn load_config(&self, roots: &Roots, after_crash: bool) -> Result<Option<ReceivedConfig>, StoreError> {
        let order = if after_crash { [BACKUP, CONFIG] } else { [CONFIG, BACKUP] };
        let mut failed = None;
        for name in order {
            match self.read(name).and_then(|bytes| bytes.map(|bytes| self.decode(name, &bytes, roots)).transpose()) {
                Ok(Some(config)) => return Ok(Some(config)),
                Ok(None) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Makes the last config the backup, once it was `in_force` and good for `age` (`timer.test.baseimage.update`).
    /// Returns true when a backup was made.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn back_up(&self, in_force: Duration, age: Duration) -> Result<bool, StoreError> {
        if in_force < age {
            return Ok(false);
        }
        let Some(config) = self.read(CONFIG)? else {
            return Ok(false);
        };
        if self.read(BACKUP)?.as_ref() == Some(&config) {
            return Ok(false);
        }
        self.replace(BACKUP, &config).map(|()| true)
    }

    /// Keeps the controller's certificates.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn save_certificates(&self, certificates: &ControllerCertificates) -> Result<(), StoreError> {
        self.replace(CERTIFICATES, certificates.envelope())
    }

    /// The controller's certificates, verified against the roots of the site; `None` when there are none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_certificates(&self, roots: &Roots) -> Result<Option<ControllerCertificates>, StoreError> {
        let Some(bytes) = self.read(CERTIFICATES)? else {
            return Ok(None);
        };
        ControllerCertificates::from_reply(&bytes, roots, ValidAt::CheckedBefore)
            .map(Some)
            .map_err(|error| self.content(CERTIFICATES, error))
    }

    /// Keeps the device's UUID.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn save_uuid(&self, uuid: Uuid) -> Result<(), StoreError> {
        self.replace(UUID, format!("{uuid}\n").as_bytes())
    }

    /// The device's UUID; `None` before onboarding.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_uuid(&self) -> Result<Option<Uuid>, StoreError> {
        let Some(bytes) = self.read(UUID)? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&bytes);
        Uuid::try_parse(text.trim()).map(Some).map_err(|error| self.content(UUID, error))
    }

    fn decode(&self, name: &str, bytes: &[u8], roots: &Roots) -> Result<ReceivedConfig, StoreError> {
        let (certificates, envelope) =
            split(bytes).ok_or_else(|| self.content(name, "damaged or of another format"))?;
        let certificates = ControllerCertificates::from_reply(certificates, roots, ValidAt::CheckedBefore)
            .map_err(|error| self.content(name, error))?;
        let payload = certificates.open(envelope).map_err(|error| self.content(name, error))?;
        let response = ConfigResponse::decode(payload.as_slice()).map_err(|error| self.content(name, error))?;
        Ok(ReceivedConfig { envelope: envelope.to_vec(), payload, certificates: Arc::new(certificates), response })
    }

    fn content(&self, name: &str, reason: impl ToString) -> StoreError {
        StoreError::Content { path: self.dir.join(name), reason: reason.to_string() }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.dir.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path, "open")(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(io_error(&path, "read"))?;
        Ok(Some(bytes))
    }

    /// Atomic replacement: a power cut leaves the old file or the new one.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        durable::replace(&self.dir.join(name), bytes, 0o600)
            .map_err(|DurableError { step, path, source }| StoreError::Io { path, action: step, source })
    }
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path, action, source }
}

fn encode(certificates: &[u8], envelope: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for part in [certificates, envelope] {
        // Replies are bounded far below 4 GiB.
        out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(part);
    }
    let sum = sha256(&out);
    out.extend_from_slice(&sum);
    out
}

/// The two envelopes of a file; `None` when it is damaged.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if sha256(body).as_slice() != sum {
        return None;
    }
    let rest = body.strip_prefix(MAGIC)?;
    let (certificates, rest) = part(rest)?;
    let (envelope, rest) = part(rest)?;
    rest.is_empty().then_some((certificates, envelope))
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

/// Entry for fuzzing: a file of the store as a damaged disk may give it.
#[doc(hidden)]
pub fn fuzz_config_file(data: &[u8]) {
    let _ = split(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn file_format_is_as_its_table_says() {
        let file = encode(b"ab", b"xyz");
        assert_eq!(&file[..8], b"HFCONF1\n");
        assert_eq!(&file[8..12], [2, 0, 0, 0]);
        assert_eq!(&file[12..14], b"ab");
        assert_eq!(&file[14..18], [3, 0, 0, 0]);
        assert_eq!(&file[18..21], b"xyz");
        assert_eq!(file.len(), 21 + 32);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_any_changed_byte_is_noticed(
            first in proptest::collection::vec(any::<u8>(), 0..40),
            second in proptest::collection::vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(),
            bit in 0..8u32,
        ) {
            let mut file = encode(&first, &second);
            prop_assert_eq!(split(&file), Some((first.as_slice(), second.as_slice())));
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            prop_assert_eq!(split(&file), None);
        }

        #[test]
        fn cut_or_random_file_is_refused(data in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert_eq!(split(&data), None);
        }
    }

    #[test]
    fn uuid_survives_and_leftovers_of_a_cut_write_do_no_harm() {
        let dir = tempfile::tempdir().expect("directory");
        let store = ConfigStore::open(dir.path().join("config")).expect("store");
        assert_eq!(store.load_uuid().expect("load"), None);
        fs::write(dir.path().join("config/uuid.new"), b"half a UU").expect("leftover");
        let uuid = Uuid::from_u128(5);
        store.save_uuid(uuid).expect("save");
        assert_eq!(store.load_uuid().expect("load"), Some(uuid));
        assert!(!dir.path().join("config/uuid.new").exists());
    }

    #[test]
    fn damaged_uuid_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().expect("directory");
        let store = ConfigStore::open(dir.path()).expect("store");
        fs::write(dir.path().join("uuid"), b"nonsense").expect("write");
        assert!(store.load_uuid().expect_err("nonsense").to_string().contains("uuid"));
    }
}
