//! `cargo xtask`: the one door for people who build, run, test, measure and flash Holdfast.

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use xtask::{bench, demo, flash, images, packages, sitecmd, tests};

/// Build, run, test, measure and flash Holdfast.
///
/// `cargo xtask run` is the place to start: it installs what is missing, builds everything and shows a device
/// coming up in QEMU. Everything it starts ends with Ctrl-C.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build kernels, programs and the image: out/holdfast-VERSION.img, .update, .spdx.json and a table of sizes.
    Build(BuildArgs),
    /// Boot the device in QEMU with Secure Boot and a TPM, onboard it, deploy a sample app, show a live status.
    Run(demo::RunArgs),
    /// Run every test, unit and scenario; the last line is "N passed, N failed".
    Test(tests::TestArgs),
    /// Measure boot times, memory and sizes of the device, or the VMM (`bench vmm`); the table names machine and method.
    Bench(bench::BenchArgs),
    /// Write the image to a disk of this machine, with your controller's settings in its SITE partition.
    Flash(flash::FlashArgs),
    /// Put controller, certificates, onboarding key and first network into an image without rebuilding it.
    ImageSite(sitecmd::ImageSiteArgs),
}

#[derive(Args)]
struct BuildArgs {
    /// Version text of the image [default: the workspace's version].
    #[arg(long, value_name = "TEXT")]
    version: Option<String>,
    /// Security epoch, 0 to 63: once committed, images of a lower one cannot open the data partition.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    epoch: u32,
    /// Folder with release.key and, for your own Secure Boot key, secureboot.key and secureboot.pem [default: keys in the
    /// cache, made at first use].
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // The chain of causes, each adding what it knows.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(task: Task) -> Result<ExitCode> {
    match task {
        Task::Build(args) => {
            packages::ensure(packages::Need::Build)?;
            let built = images::build(&images::Options { version: args.version, epoch: args.epoch, keys: args.keys })?;
            println!("{}", built.summary());
            Ok(ExitCode::SUCCESS)
        }
        Task::Run(args) => demo::run(&args),
        Task::Test(args) => tests::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Flash(args) => flash::run(&args),
        Task::ImageSite(args) => sitecmd::run(&args),
    }
}
