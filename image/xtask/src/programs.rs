//! Building the programs that go into images.
//!
//! Two cargo invocations, because `crt-static` is chosen per invocation: what runs in an empty root or as an init is static,
//! what needs libtss2 or the resolver of glibc is dynamic.

use crate::workspace::{root, run};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Rust target of all device programs.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Package and program name of each static program.
const STATIC: &[(&str, &str)] = &[
    ("holdfast-pid1", "pid1"),
    ("holdfast-vmm", "vmm"),
    ("holdfast-netsvc", "netsvc"),
    ("holdfast-guest", "guest-init"),
    ("holdfast-webapp", "holdfast-webapp"),
];
/// Package and program name of each dynamic program.
const DYNAMIC: &[(&str, &str)] = &[("holdfast-node", "node"), ("holdfast-fetch", "fetch")];

/// Paths of the built, stripped programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `pid1`, the UKI's `/init`.
    pub pid1: PathBuf,
    /// `vmm`.
    pub vmm: PathBuf,
    /// `netsvc`.
    pub netsvc: PathBuf,
    /// Init of container guests.
    pub guest_init: PathBuf,
    /// The demo's app.
    pub webapp: PathBuf,
    /// `node`.
    pub node: PathBuf,
    /// `fetch`.
    pub fetch: PathBuf,
}

/// Builds all of them from the source tree at `tree` with build products below `target`.
///
/// # Errors
/// When cargo fails; its messages have been shown.
pub fn build_in(tree: &Path, target: &Path) -> Result<Programs> {
    let statics = build_static(tree, target)?;
    let dynamics = cargo(tree, &target.join("device"), DYNAMIC, "")?;
    Ok(Programs {
        pid1: statics.join("pid1"),
        vmm: statics.join("vmm"),
        netsvc: statics.join("netsvc"),
        guest_init: statics.join("guest-init"),
        webapp: statics.join("holdfast-webapp"),
        node: dynamics.join("node"),
        fetch: dynamics.join("fetch"),
    })
}

/// [`build_in`] for this tree.
///
/// # Errors
/// As [`build_in`].
pub fn build() -> Result<Programs> {
    build_in(&root(), &target_dir())
}

/// The VMM of this tree as images have it, built together with the other static programs: alone, its dependencies could have
/// other features.
///
/// # Errors
/// As [`build_in`].
pub fn build_vmm() -> Result<PathBuf> {
    Ok(build_static(&root(), &target_dir())?.join("vmm"))
}

/// The folder of the built static programs.
fn build_static(tree: &Path, target: &Path) -> Result<PathBuf> {
    cargo(tree, &target.join("device-static"), STATIC, "-C target-feature=+crt-static")
}

/// The tree's target folder, or `$CARGO_TARGET_DIR`.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn cargo(tree: &Path, target: &Path, programs: &[(&str, &str)], flags: &str) -> Result<PathBuf> {
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|h| format!("{h}/.cargo")))
        .unwrap_or_default();
    // Paths of the machine must not reach the programs: two clones give the same bytes.
    let rustflags = format!(
        "{flags} --remap-path-prefix={}=/holdfast --remap-path-prefix={home}=/cargo --remap-path-prefix={}=/target",
        tree.display(),
        target.display()
    );
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tree).args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"]).arg(target);
    for (package, program) in programs {
        command.args(["-p", package, "--bin", program]);
    }
    let status = command
        .env("RUSTFLAGS", rustflags.trim())
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CFLAGS", format!("-ffile-prefix-map={home}=/cargo -ffile-prefix-map={}=/target", target.display()))
        .env("SOURCE_DATE_EPOCH", "1735689600")
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!(
            "cargo build of {} ended with {status}: see its messages above",
            programs.iter().map(|p| p.1).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(target.join(TARGET).join("release"))
}

/// Shared libraries a dynamic program needs, by the loader's own account, with the loader; paths as the program names them.
///
/// # Errors
/// When `ldd` fails or a library is missing.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = run(Command::new("ldd").arg(program))?;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.contains("not found") {
            bail!("{}: {line}: install its package", program.display());
        }
        let path = line.split_once("=> ").map_or(line, |(_, p)| p).split(" (").next().unwrap_or("").trim();
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}
