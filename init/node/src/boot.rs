//! What this boot is: facts from PID 1, the site's document, the release of the running slot.

use anyhow::{Context, Result};
use holdfast_format::release::Release;
use holdfast_format::site::Site;
use holdfast_model::boot::BootFacts;
use std::fs;
use std::path::{Path, PathBuf};

/// Where everything is. Tests use other roots.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `/run/holdfast`.
    pub run: PathBuf,
    /// `/data`, the vault's mount point.
    pub data: PathBuf,
    /// `/`, the slot.
    pub slot: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { run: "/run/holdfast".into(), data: "/data".into(), slot: "/".into() }
    }
}

impl Paths {
    /// A file below `/run/holdfast/boot`.
    #[must_use]
    pub fn boot(&self, name: &str) -> PathBuf {
        self.run.join("boot").join(name)
    }

    /// Folder of control sockets.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.run.join("ctl")
    }

    /// Folder of `resolv.conf` and `hosts`, to which the image's `/etc` links: `/run`.
    #[must_use]
    pub fn names(&self) -> PathBuf {
        self.run.parent().unwrap_or(&self.run).to_owned()
    }

    /// PID 1's socket.
    #[must_use]
    pub fn supervise(&self) -> PathBuf {
        self.run.join("supervise.sock")
    }

    /// The ext4 seed.
    #[must_use]
    pub fn seed(&self) -> PathBuf {
        self.slot.join("share/seed.ext4")
    }

    /// A folder or file on the vault.
    #[must_use]
    pub fn data(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }
}

/// This boot.
#[derive(Debug, Clone)]
pub struct Boot {
    /// From PID 1.
    pub facts: BootFacts,
    /// Which controller; `None` when the SITE partition is empty or unreadable.
    pub site: Option<Site>,
    /// The running release.
    pub release: Release,
    /// Release public key, PEM, from the measured UKI.
    pub release_key_pem: String,
}

/// Reads it all.
///
/// # Errors
/// When PID 1's facts or the slot's release are missing or malformed; a missing SITE is not an error.
pub fn load(paths: &Paths) -> Result<Boot> {
    let facts: BootFacts = json(&paths.boot("facts.json"))?;
    let site_path = paths.boot("site.json");
    let site = if site_path.exists() { Some(json(&site_path)?) } else { None };
    let release_path = paths.slot.join(holdfast_format::release::PATH.trim_start_matches('/'));
    let release =
        Release::decode(&fs::read(&release_path).with_context(|| format!("cannot read {}", release_path.display()))?)?;
    let release_key_pem = fs::read_to_string(paths.boot("tpm2-pcr-public-key.pem")).unwrap_or_default();
    Ok(Boot { facts, site, release, release_key_pem })
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}: PID 1 writes it", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{}: expected PID 1's JSON", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_resolved_by_the_files_that_the_image_links_to() {
        // `image/xtask` links `/etc/resolv.conf` and `/etc/hosts` there.
        assert_eq!(Paths::default().names(), Path::new("/run"));
    }
}
