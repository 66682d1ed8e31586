//! Whole builds: everything from source to `out/`.

use crate::assemble::{self, Artefacts, Inputs};
use crate::workspace::{VERSION, out, root, run};
use crate::{budgets, kernel, keys, programs, sbom};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Version of the second image that update tests and `run --update` go to.
#[must_use]
pub fn next_version() -> String {
    format!("{VERSION}-next")
}

/// What to build.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Version text; `None` = the workspace's.
    pub version: Option<String>,
    /// Security epoch.
    pub epoch: u32,
    /// Folder of keys; `None` = the default.
    pub keys: Option<PathBuf>,
}

/// What was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// The artefacts.
    pub artefacts: Artefacts,
    /// The SBOM.
    pub sbom: PathBuf,
    /// Table of sizes against budgets.
    pub sizes: String,
    /// The Secure Boot key is one that anybody has.
    pub development: bool,
}

impl Built {
    /// What to tell the user.
    #[must_use]
    pub fn summary(&self) -> String {
        let warning = if self.development {
            "\nSigned with Debian's public OVMF test key: for QEMU and development only (see --keys)."
        } else {
            ""
        };
        format!(
            "{}\nimage   {}\nupdate  {}\nsbom    {}{warning}",
            self.sizes,
            self.artefacts.image.display(),
            self.artefacts.update.display(),
            self.sbom.display()
        )
    }
}

/// The parts that all versions share.
pub struct Parts {
    programs: programs::Programs,
    host: kernel::KernelArtifacts,
    guest: kernel::KernelArtifacts,
}

/// Builds or finds kernels and programs.
///
/// # Errors
/// What failed, with its log named.
pub fn parts() -> Result<Parts> {
    let step = Steps::default();
    step.say("kernels (built once per machine; the first time takes a while)");
    let progress = |line: &str| eprintln!("        {line}");
    let guest = kernel::build(kernel::Kernel::Guest, &progress)?;
    let host = kernel::build(kernel::Kernel::Host, &progress)?;
    step.say("programs");
    Ok(Parts { programs: programs::build()?, host, guest })
}

/// Builds one version.
///
/// # Errors
/// What failed and what to do.
pub fn build(options: &Options) -> Result<Built> {
    version_of(&parts()?, options, &out())
}

/// Makes one version of given parts in `folder`.
///
/// # Errors
/// As [`assemble::assemble`].
pub fn version_of(parts: &Parts, options: &Options, folder: &Path) -> Result<Built> {
    let version = options.version.clone().unwrap_or_else(|| VERSION.to_owned());
    if !holdfast_format::release::valid_version(&version) {
        bail!("version {version:?}: expected 1 to 64 letters, digits and ._+-");
    }
    let keys = keys::load(options.keys.as_deref().unwrap_or(&keys::default_folder()))?;
    let step = Steps::default();
    step.say(&format!("image {version}"));
    let inputs = Inputs {
        version: &version,
        epoch: options.epoch,
        keys: &keys,
        programs: &parts.programs,
        host: &parts.host,
        guest: &parts.guest,
        site: None,
    };
    let artefacts = assemble::assemble(&inputs, folder, &|line| step.say(line))?;
    let sbom = folder.join(format!("holdfast-{version}.spdx.json"));
    sbom::write(&sbom, &version, &parts.host)?;
    let sizes = budgets::table(&artefacts.sizes)?;
    fs::write(folder.join("sizes.txt"), &sizes)?;
    Ok(Built { artefacts, sbom, sizes, development: keys.development })
}

/// Both versions that the scenarios use, the first held against its budgets; returns the table of sizes.
///
/// # Errors
/// A failed build or an exceeded budget.
pub fn build_test_set() -> Result<String> {
    let parts = parts()?;
    let folder = out();
    let first = version_of(&parts, &Options::default(), &folder)?;
    version_of(&parts, &Options { version: Some(next_version()), ..Options::default() }, &folder)?;
    fs::copy(&parts.programs.webapp, folder.join("webapp"))?;
    budgets::check(&first.artefacts.sizes)?;
    Ok(first.sizes)
}

/// Builds the programs a second time from a copy of the tree in another folder, with nothing of the first build, and compares
/// image and payload byte for byte. Kernels come from the cache both times: their inputs are named by hash.
///
/// # Errors
/// The first difference.
pub fn check_reproducible() -> Result<()> {
    let parts = parts()?;
    let scratch = tempfile::Builder::new().prefix("holdfast-second-build-").tempdir()?;
    let tree = scratch.path().join("another/place");
    copy_tree(&root(), &tree)?;
    let second = Parts {
        programs: programs::build_in(&tree, &scratch.path().join("objects"))?,
        host: parts.host.clone(),
        guest: parts.guest.clone(),
    };
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let one = version_of(&parts, &Options::default(), &a)?;
    let two = version_of(&second, &Options::default(), &b)?;
    for (x, y) in [
        (&one.artefacts.image, &two.artefacts.image),
        (&one.artefacts.update, &two.artefacts.update),
        (&one.sbom, &two.sbom),
    ] {
        run(Command::new("cmp").arg(x).arg(y)).with_context(|| {
            format!("{} differs between two builds", x.file_name().unwrap_or_default().to_string_lossy())
        })?;
    }
    Ok(())
}

/// Copies the files that git tracks (as they are in the working tree).
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let list = run(Command::new("git").arg("-C").arg(from).args(["ls-files", "-z"]))?;
    for name in list.split('\0').filter(|n| !n.is_empty()) {
        let (source, target) = (from.join(name), to.join(name));
        if !source.is_file() {
            continue;
        }
        fs::create_dir_all(target.parent().unwrap_or(to))?;
        fs::copy(&source, &target).with_context(|| format!("copying {}", source.display()))?;
    }
    Ok(())
}

/// Progress lines with the seconds since the start.
struct Steps(Instant);

impl Default for Steps {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Steps {
    fn say(&self, line: &str) {
        eprintln!("[{:5.1}] {line}", self.0.elapsed().as_secs_f32());
    }
}
