//! `cargo xtask test`: every test there is, one line of result at the end.
//!
//! Order: what is quick and tells most comes first; the image is built once and all scenarios share it.

use crate::workspace::{cache, out, root};
use crate::{images, kernel, packages, programs};
use anyhow::{Context, Result};
use clap::Args;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
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
    failures: Vec<String>,
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
                self.failures.push(name.to_owned());
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
        // Output of passing tests is kept out of the log but for what a test prints about a missing witness.
        command.arg("--test-threads=2").args(args.filter.as_deref());
        cargo_tests(&mut score, "unit", &mut command);
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
        cargo_tests(&mut score, "scenario", &mut command);
    }

    for name in &score.failures {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", score.passed, score.failed);
    Ok(if score.failed == 0 && score.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn style(score: &mut Score) {
    let start = Instant::now();
    score.check("style::rustfmt", simple(&mut cargo(&["fmt", "--all", "--check"])), start);
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
fn cargo_tests(score: &mut Score, step: &str, command: &mut Command) {
    let start = Instant::now();
    let (passed, failed) = (score.passed, score.failed);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => return score.check(step, Err(e.into()), start),
    };
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            read_line(score, step, &line);
        }
    }
    let status = child.wait();
    let clean = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    if !clean && score.failed == failed {
        score.check(
            step,
            Err(anyhow::anyhow!("cargo test ended with {status:?} without naming a failed test: see above")),
            start,
        );
    }
    println!(
        "{step}: {} passed, {} failed in {:.0} s",
        score.passed - passed,
        score.failed - failed,
        start.elapsed().as_secs_f32()
    );
}

/// Takes one line of libtest's output in: `test result: ok. 3 passed; 0 failed; ...` counts, `test NAME ... FAILED` names.
fn read_line(score: &mut Score, step: &str, line: &str) {
    if let Some(counts) = line.strip_prefix("test result: ") {
        let number = |word: &str| {
            counts
                .split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        score.passed += number("passed");
        score.failed += number("failed");
    } else if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
        score.failures.push(format!("{step}: {name}"));
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn libtest_lines_are_counted_and_failures_named() {
        let mut score = Score::default();
        for line in [
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test result: FAILED. 11 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s",
        ] {
            read_line(&mut score, "unit", line);
        }
        assert_eq!((score.passed, score.failed), (11, 2));
        assert_eq!(score.failures, ["unit: a::c"]);
    }
}
