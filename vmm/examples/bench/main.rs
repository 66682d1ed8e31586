//! Measures the VMM with the payload guest on this machine's `/dev/kvm`: `bench VMM FOLDER [WHAT...]`, where VMM is the
//! program to measure, FOLDER has room for a disk image, and WHAT is what to measure (`exits`, `start`, `block`, `net`,
//! `density`; all without it). `cargo xtask bench vmm` calls it and writes the table.
//!
//! One line for each figure and run on stdout, tab-separated: `figure NAME VALUE UNIT`. What has a partner is measured in
//! turn with it, and the ratio is of neighbours, so that a machine whose speed drifts does not decide.

mod block;
mod density;
mod exits;
mod figures;
mod net;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

/// What every measurement needs.
struct Bench {
    /// The program.
    vmm: PathBuf,
    /// Room for files.
    folder: PathBuf,
}

type Outcome = std::io::Result<()>;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [vmm, folder, wanted @ ..] = arguments.as_slice() else {
        eprintln!("usage: bench VMM FOLDER [WHAT...]");
        return ExitCode::FAILURE;
    };
    if let Some(reason) = holdfast_payload::missing() {
        eprintln!("no payload guest without KVM: {reason}");
        return ExitCode::FAILURE;
    }
    let bench = Bench { vmm: vmm.clone(), folder: folder.clone() };
    type Measure = fn(&Bench) -> Outcome;
    let measures: [(&str, Measure); 5] = [
        ("exits", exits::measure),
        ("start", start::measure),
        ("block", block::measure),
        ("net", net::measure),
        ("density", density::measure),
    ];
    if let Some(unknown) = wanted.iter().find(|word| measures.iter().all(|(name, _)| word.as_os_str() != *name)) {
        eprintln!(
            "bench: {} is not measured here; there is {}",
            unknown.display(),
            measures.map(|(name, _)| name).join(", ")
        );
        return ExitCode::FAILURE;
    }
    for (name, measure) in measures {
        if !wanted.is_empty() && wanted.iter().all(|word| word.as_os_str() != name) {
            continue;
        }
        eprintln!("bench: {name}");
        if let Err(e) = measure(&bench) {
            eprintln!("bench: {name}: {e}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Whether jails and taps can be made.
fn privileged() -> bool {
    // SAFETY: no arguments.
    unsafe { libc::geteuid() == 0 }
}
