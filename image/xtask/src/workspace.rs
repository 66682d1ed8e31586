//! Where things are: the source tree, the output folder, the cache outside the tree.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The root of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("xtask lies two folders below the root")
        .to_path_buf()
}

/// The output folder: `out/` of the tree, or `$HOLDFAST_OUT`.
pub fn out() -> PathBuf {
    std::env::var_os("HOLDFAST_OUT").map_or_else(|| root().join("out"), PathBuf::from)
}

/// Cache shared by all clones: `$HOLDFAST_CACHE`, `$XDG_CACHE_HOME/holdfast` or `~/.cache/holdfast`.
pub fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("HOLDFAST_CACHE") {
        return dir.into();
    }
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("holdfast")
}

/// Product version: that of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs a command to its end; its output is shown only when it fails.
///
/// # Errors
/// When it cannot be started or ends other than well: the message holds the last of its output.
pub fn run(command: &mut Command) -> Result<String> {
    let text = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {text}"))?;
    if !output.status.success() {
        let all = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let tail: Vec<&str> = all.lines().rev().take(30).collect();
        bail!("{text}\nended with {}:\n{}", output.status, tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
