//! `cargo xtask bench`: figures of the device, measured, with machine and method named.

use crate::workspace::{out, root};
use crate::{images, packages, programs};
use anyhow::{Context, Result};
use clap::Args;
use std::process::{Command, ExitCode};

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Boots to measure; the table shows minimum, median and maximum.
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    runs: u32,
}

/// Measures.
///
/// # Errors
/// What could not be built or started.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
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
