//! Where the built images are: `$HOLDFAST_OUT`, else `out/` of the tree.

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use xtask::workspace::{VERSION, out};

/// The artefacts of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artefacts {
    /// Version text, as inside the image.
    pub version: String,
    /// Raw disk image.
    pub image: PathBuf,
    /// Update payload.
    pub update: PathBuf,
}

impl Artefacts {
    /// The version that devices start with.
    ///
    /// # Errors
    /// When it was not built.
    pub fn first() -> Result<Self> {
        Self::of(VERSION)
    }

    /// The version that updates go to; the same sources under another version text.
    ///
    /// # Errors
    /// When it was not built.
    pub fn next() -> Result<Self> {
        Self::of(&xtask::images::next_version())
    }

    fn of(version: &str) -> Result<Self> {
        Ok(Self {
            version: version.to_owned(),
            image: built(&format!("holdfast-{version}.img"))?,
            update: built(&format!("holdfast-{version}.update"))?,
        })
    }
}

/// The demo's app, a static program.
///
/// # Errors
/// When it was not built.
pub fn webapp() -> Result<PathBuf> {
    built("webapp")
}

fn built(name: &str) -> Result<PathBuf> {
    let path = out().join(name);
    if !path.is_file() {
        bail!("{} is not there; `cargo xtask test` and `cargo xtask run` build it", path.display());
    }
    Ok(path)
}

/// SHA-256 in hex and length of a file.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((hex::encode(hash.finalize()), bytes));
        }
        hash.update(&buffer[..count]);
        bytes += count as u64;
    }
}
