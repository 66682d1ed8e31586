//! `cargo xtask bench`: figures of the device, with `vmm` of the VMM and with `network` of the planner, measured, with machine and method named.

mod vmm;

use crate::workspace::{out, root};
use crate::{images, packages, programs};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::process::{Command, ExitCode};

/// Options of `bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// Boots to measure; the table shows minimum, median and maximum.
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    runs: u32,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measure the VMM by itself and write docs/bench-vmm.md: the figures it has to reach, and what else was measured.
    Vmm(vmm::VmmArgs),
    /// Print what one changed access rule costs as apps and rules grow.
    Network,
}

/// Measures.
///
/// # Errors
/// What could not be built or started.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    match &args.what {
        Some(What::Vmm(args)) => return vmm::run(args),
        Some(What::Network) => return network(),
        None => {}
    }
    packages::ensure(packages::Need::Run)?;
    println!("{}", images::build_test_set()?);
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args([
        "run",
        "--quiet",
        "--package",
        "holdfast-scenarios",
        "--bin",
        "bench",
        "--",
        &args.runs.to_string(),
    ]);
    let status = command
        .env("HOLDFAST_OUT", out())
        .env("CARGO_TARGET_DIR", programs::target_dir())
        .status()
        .context("cannot start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn network() -> Result<ExitCode> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "holdfast-netkernel",
        "--example",
        "growth",
    ]);
    let status = command.env("CARGO_TARGET_DIR", programs::target_dir()).status().context("cannot start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
