//! Keys that images are signed with.
//!
//! | file | what | made by |
//! |---|---|---|
//! | `release.key`, `release.pub` | P-256, signs update payloads and PCR policies | at first use, if absent |
//! | `secureboot.key`, `secureboot.pem` | RSA-2048 and certificate for Secure Boot | taken from Debian's OVMF test key if absent |

use crate::workspace::{cache, run};
use anyhow::{Context, Result};
use holdfast_format::keys;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's key that the `snakeoil` OVMF variable store trusts. Anyone has it: for development only.
const SNAKEOIL_KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";
const SNAKEOIL_CERTIFICATE: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";

/// The keys of one signer.
pub struct Keys {
    /// Signs payloads and policies.
    pub release: p256::ecdsa::SigningKey,
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
    let path = folder.join("release.key");
    if !path.exists() {
        let key = p256::ecdsa::SigningKey::random(&mut p256::elliptic_curve::rand_core::OsRng);
        write_secret(&path, keys::private_pem(&key.to_bytes().into())?.as_bytes())?;
        eprintln!("made a new release key: {}", path.display());
    }
    let pem = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let release = keys::signing_key(&pem).with_context(|| path.display().to_string())?;
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

/// Writes a secret that only its owner reads; never over another one.
fn write_secret(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write;
    let temporary = path.with_extension(format!("new{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    // Two builds at once make two keys; one of them wins for both.
    match fs::hard_link(&temporary, path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
        _ => {}
    }
    fs::remove_file(&temporary)?;
    Ok(())
}
