//! `cargo xtask run`: build, then hand over to the demo program of the scenarios, which owns device and controller.

use crate::sitecmd::SiteArgs;
use crate::workspace::{out, root};
use crate::{images, packages, programs};
use anyhow::{Context, Result};
use clap::Args;
use std::process::{Command, ExitCode};

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Afterwards carry the same device to a second version through BaseOsConfig: download, trial, commit.
    #[arg(long)]
    update: bool,
    /// Show the device's serial console.
    #[arg(long)]
    console: bool,
    /// End by itself once everything was shown (for scripts), with exit code 0 if all went well.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    site: SiteArgs,
}

/// Runs the demo.
///
/// # Errors
/// What could not be built or started.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    packages::ensure(packages::Need::Run)?;
    let site = args.site.site()?;
    images::build_test_set()?;
    let site_file = match &site {
        Some(site) => {
            let path = out().join("run-site.bin");
            std::fs::write(&path, site.encode()?)?;
            Some(path)
        }
        None => None,
    };
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(["run", "--quiet", "--package", "holdfast-scenarios", "--bin", "demo", "--"]);
    command.env("HOLDFAST_OUT", out()).env("CARGO_TARGET_DIR", programs::target_dir());
    for (flag, on) in [("--update", args.update), ("--console", args.console), ("--once", args.once)] {
        if on {
            command.arg(flag);
        }
    }
    if let Some(path) = site_file {
        command.arg("--site").arg(path);
    }
    ignore_interrupt()?;
    let status = command.status().context("cannot start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ctrl-C is the demo's to handle; this process must live until it has cleaned up. (A child starts with an empty signal mask.)
fn ignore_interrupt() -> Result<()> {
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::Signal::SIGINT);
    Ok(set.thread_block()?)
}
