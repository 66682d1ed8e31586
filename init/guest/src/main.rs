//! Init inside container guests.
//!
//! As PID 1 it runs the guest's life and powers the VM off; started as anything else it only says what it is.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("guest-init: the init of a container guest; it runs only as PID 1 of a VM (docs/design.md 8.5)");
        return ExitCode::FAILURE;
    }
    holdfast_guest::lifecycle::live()
}
