//! One input from standard input into one target: for findings, and for fuzzers from outside.

use anyhow::{Context, Result, bail};
use holdfast_fuzz::cargo_fuzz;
use holdfast_fuzz::targets::{self, TARGETS, Target};
use std::io::Read;
use std::path::Path;

/// Longest input that is read.
const MAX_BYTES: u64 = 16 << 20;

const USAGE: &str = "fuzz-one TARGET < INPUT         run one input; a panic is a finding\n\
                     fuzz-one --seeds TARGET FOLDER  write the target's seeds as files\n\
                     fuzz-one --corpus               write all seeds to fuzz/corpus/, where `cargo fuzz` begins\n\
                     fuzz-one --programs             make fuzz/Cargo.toml and fuzz/fuzz_targets/ what the table says\n\
                     fuzz-one --list                 name the targets";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list"] => TARGETS.iter().for_each(|t| println!("{}", t.name)),
        ["--seeds", name, folder] => {
            let folder = Path::new(folder);
            let written = cargo_fuzz::write_seeds(target(name)?, folder);
            written.with_context(|| format!("cannot write to {}", folder.display()))?;
        }
        ["--corpus"] => cargo_fuzz::write_corpus(&cargo_fuzz::folder()).context("cannot write fuzz/corpus")?,
        ["--programs"] => cargo_fuzz::write_programs(&cargo_fuzz::folder()).context("cannot write fuzz/")?,
        [name] if !name.starts_with('-') => {
            let target = target(name)?;
            let mut input = Vec::new();
            std::io::stdin().take(MAX_BYTES).read_to_end(&mut input)?;
            // Fuzzers look for a signal, not for Rust's exit code 101.
            if std::panic::catch_unwind(|| (target.run)(&input)).is_err() {
                std::process::abort();
            }
        }
        _ => bail!("expected one of:\n{USAGE}"),
    }
    Ok(())
}

fn target(name: &str) -> Result<&'static Target> {
    targets::find(name).with_context(|| format!("expected a target of --list, found {name:?}"))
}
