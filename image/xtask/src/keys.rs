//! Keys that images are signed with.
//!
//! | file | what | made by |
//! |---|---|---|
//! | `release.key`, `release.pub` | P-256, signs update payloads and PCR policies | at first use, if absent |
//! | `secureboot.key`, `secureboot.pem` | RSA-2048 and certificate for Secure Boot | taken from Debian's OVMF test key if absent |

use crate::workspace::{cache, run};
use anyhow::{Context, Result};
use holdfast_format::keys;
use p256::ecdsa::SigningKey;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's key that the `snakeoil` OVMF variable store trusts. Anyone has it: for development only.
const SNAKEOIL_KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";
const SNAKEOIL_CERTIFICATE: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";

/// The keys of one signer.
pub struct Keys {
    /// Signs payloads and policies.
    pub release: SigningKey,
    /// Its public half, PEM: what the device trusts.
    pub release_public_pem: String,
    /// PEM of the Secure Boot key.
    pub secure_boot_key: String,
    /// PEM of the Secure Boot certificate.
    pub secure_boot_certificate: String,
    /// Anyone may have the Secure Boot key.
    pub development: bool,
}

/// Default folder of keys: in the cache, so that all clones of one machine sign alike.
pub fn default_folder() -> PathBuf {
    cache().join("keys")
}

/// Loads the keys of a folder, making what is absent.
///
/// # Errors
/// An unreadable or malformed key, named.
pub fn load(folder: &Path) -> Result<Keys> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let release = release_key(folder)?;
    let release_public_pem = keys::public_pem(release.verifying_key())?;
    fs::write(folder.join("release.pub"), &release_public_pem)?;

    let (key, certificate) = (folder.join("secureboot.key"), folder.join("secureboot.pem"));
    let development = !key.exists();
    let (secure_boot_key, secure_boot_certificate) = if development {
        let unlocked = run(Command::new("openssl").args(["pkey", "-in", SNAKEOIL_KEY, "-passin", "pass:snakeoil"]))
            .context("unlocking Debian's OVMF test key (package ovmf)")?;
        (
            unlocked,
            fs::read_to_string(SNAKEOIL_CERTIFICATE)
                .with_context(|| format!("cannot read {SNAKEOIL_CERTIFICATE}: install package ovmf"))?,
        )
    } else {
        (
            fs::read_to_string(&key).with_context(|| format!("cannot read {}", key.display()))?,
            fs::read_to_string(&certificate)
                .with_context(|| format!("cannot read {}: it belongs beside secureboot.key", certificate.display()))?,
        )
    };
    Ok(Keys { release, release_public_pem, secure_boot_key, secure_boot_certificate, development })
}

/// The release key of a folder, made if it is absent.
fn release_key(folder: &Path) -> Result<SigningKey> {
    let path = folder.join("release.key");
    if !path.exists() {
        let key = SigningKey::random(&mut p256::elliptic_curve::rand_core::OsRng);
        if write_secret(&path, keys::private_pem(&key.to_bytes().into())?.as_bytes())? {
            eprintln!("made a new release key: {}", path.display());
        }
    }
    let pem = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    keys::signing_key(&pem).with_context(|| path.display().to_string())
}

/// Writes a secret that only its owner reads; never over another one: false when there was one, which stays.
fn write_secret(path: &Path, content: &[u8]) -> Result<bool> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // Made with mode 0600, removed again when anything fails.
    let mut file = tempfile::Builder::new()
        .prefix(".key-")
        .tempfile_in(folder)
        .with_context(|| format!("cannot write into {}", folder.display()))?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    // Two builds at once make two keys; one of them wins for both.
    match file.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e.error).with_context(|| format!("cannot make {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = release_key(folder.path()).unwrap();
        assert_eq!(release_key(folder.path()).unwrap(), first);
        let mode = fs::metadata(folder.path().join("release.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn builds_that_race_for_the_first_key_agree_on_one() {
        let folder = tempfile::tempdir().unwrap();
        let start = Barrier::new(8);
        let keys: Vec<SigningKey> = std::thread::scope(|scope| {
            let racer = || {
                start.wait();
                release_key(folder.path()).unwrap()
            };
            let racers: Vec<_> = (0..8).map(|_| scope.spawn(racer)).collect();
            racers.into_iter().map(|r| r.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|k| *k == keys[0]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("release.key");
        fs::write(&path, "no key").unwrap();
        let error = format!("{:#}", release_key(folder.path()).unwrap_err());
        assert!(error.contains("release.key"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "no key");
    }
}
