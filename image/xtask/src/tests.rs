//! `cargo xtask test`: every test there is, one line of result at the end.
//!
//! Order: what is quick and tells most comes first; the image is built once and all scenarios share it.

use crate::libtest::Reader;
use crate::workspace::{cache, out, root};
use crate::{images, kernel, packages, programs};
use anyhow::{Context, Result};
use clap::Args;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Instant;

/// Which tests.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only this step: style, unit, build, reproducible or scenario.
    #[arg(long, value_name = "STEP")]
    only: Option<String>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Running totals.
#[derive(Default)]
struct Score {
    passed: u64,
    failed: u64,
    /// By name, with the last lines of each.
    failures: Vec<(String, Vec<String>)>,
}

impl Score {
    /// Counts one named check.
    fn check(&mut self, name: &str, outcome: Result<()>, since: Instant) {
        let seconds = since.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok ({seconds:.1} s)");
            }
            Err(e) => {
                self.failed += 1;
                println!("test {name} ... FAILED ({seconds:.1} s)\n{e:#}");
                self.failures.push((name.to_owned(), format!("{e:#}").lines().map(str::to_owned).collect()));
            }
        }
    }
}

/// Runs them.
///
/// # Errors
/// Only when tests cannot be run at all (packages); failing tests are counted, not errors.
pub fn run(args: &TestArgs) -> Result<ExitCode> {
    packages::ensure(packages::Need::Test)?;
    let wanted = |step: &str| args.only.as_deref().is_none_or(|o| step.contains(o));
    let mut score = Score::default();

    if wanted("style") {
        style(&mut score);
    }
    if wanted("unit") || wanted("build") || wanted("scenario") || wanted("reproducible") {
        for which in [kernel::Kernel::Guest, kernel::Kernel::Host] {
            let start = Instant::now();
            let built = kernel::build(which, &|line| eprintln!("{line}"));
            score.check(
                &format!("kernel::{}::builds_with_every_option_asked_for", which.name()),
                built.map(drop),
                start,
            );
        }
    }
    if wanted("unit") {
        let mut command =
            cargo(&["test", "--workspace", "--exclude", "holdfast-scenarios", "--no-fail-fast", "--", "--show-output"]);
        // `--show-output`: a test that passes says what it could not look at on this machine.
        command.arg("--test-threads=2").args(args.filter.as_deref());
        let start = Instant::now();
        match programs::build_vmm() {
            Ok(vmm) => {
                // Jails and guests are tested with the program that images have.
                command.env("HOLDFAST_VMM", vmm);
            }
            Err(e) => score.check("image::vmm_builds", Err(e), start),
        }
        cargo_tests(&mut score, "unit", command);
    }
    let mut image_is_built = true;
    if wanted("build") || wanted("scenario") || wanted("reproducible") {
        let start = Instant::now();
        let outcome = images::build_test_set().map(|sizes| println!("{sizes}"));
        image_is_built = outcome.is_ok();
        score.check("image::builds_within_its_budgets", outcome, start);
    }
    if wanted("reproducible") && image_is_built {
        let start = Instant::now();
        score.check("image::two_builds_of_one_commit_are_bit_identical", images::check_reproducible(), start);
    }
    if wanted("scenario") && image_is_built {
        let mut command =
            cargo(&["test", "-p", "holdfast-scenarios", "--no-fail-fast", "--", "--nocapture", "--test-threads=2"]);
        command.env("HOLDFAST_OUT", out()).env("HOLDFAST_CACHE", cache()).args(args.filter.as_deref());
        cargo_tests(&mut score, "scenario", command);
    }

    for (name, text) in &score.failures {
        println!("\nfailed: {name}");
        for line in text {
            println!("    {line}");
        }
    }
    println!("{} passed, {} failed", score.passed, score.failed);
    Ok(if score.failed == 0 && score.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Modules that come out of a macro: the kinds of network items, and the parts of the agent.
fn listed_modules() -> Vec<PathBuf> {
    let folders =
        ["net/plan/src/kinds", "net/kernel/src/kinds", "init/node/src/parts"].map(|folder| root().join(folder));
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.map(|path| if path.is_dir() { path.join("mod.rs") } else { path }).collect()
}

fn style(score: &mut Score) {
    let start = Instant::now();
    score.check("style::rustfmt", simple(&mut cargo(&["fmt", "--all", "--check"])), start);
    // Modules that come out of a macro: cargo fmt does not see them.
    let start = Instant::now();
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.current_dir(root()).args(["--check", "--edition", "2024"]).args(listed_modules());
    score.check("style::rustfmt of listed modules", simple(&mut rustfmt), start);
    let start = Instant::now();
    score.check(
        "style::clippy",
        simple(&mut cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])),
        start,
    );
    let start = Instant::now();
    let has_deny = Command::new("cargo-deny")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    if has_deny {
        score.check(
            "style::dependencies_follow_deny_toml",
            simple(&mut cargo(&["deny", "--offline", "check", "licenses", "bans", "sources"])),
            start,
        );
    } else {
        println!("cargo-deny is not installed: deny.toml is not checked here");
    }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments).env("CARGO_TARGET_DIR", programs::target_dir()).stdin(Stdio::null());
    command
}

fn simple(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    anyhow::bail!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs `cargo test` and counts what libtest says; a test program that dies counts as one failure.
fn cargo_tests(score: &mut Score, step: &str, command: Command) {
    let start = Instant::now();
    let mut reader = Reader::new();
    let status = match follow(command, |line| {
        if let Some(line) = reader.line(line) {
            println!("{line}");
        }
    }) {
        Ok(status) => status,
        Err(e) => return score.check(step, Err(e), start),
    };
    println!("{step}: {} passed, {} failed in {:.0} s", reader.passed, reader.failed, start.elapsed().as_secs_f32());
    let named = reader.failed > 0;
    score.passed += reader.passed;
    score.failed += reader.failed;
    for failure in reader.failures {
        score.failures.push((format!("{step}: {}", failure.name), failure.text));
    }
    if !status.success() && !named {
        let reason = anyhow::anyhow!("cargo test ended with {status} without naming a failed test: see above");
        score.check(step, Err(reason), start);
    }
}

/// Runs a program, both its outputs in one stream so that they stay in order, and hands out its lines.
fn follow(mut command: Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let (output, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdout(writer.try_clone().context("cannot share a pipe")?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    // It holds the pipe's other end, which would never close.
    drop(command);
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        each(&String::from_utf8_lossy(&line));
    }
    Ok(child.wait()?)
}
