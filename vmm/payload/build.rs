//! Builds the guest, an ELF kernel, with the compiler that builds everything else.

use std::path::PathBuf;
use std::process::Command;

const FLAGS: &[&str] = &[
    "--edition=2024",
    "--crate-name=payload",
    "--crate-type=bin",
    "--target=x86_64-unknown-linux-gnu",
    "-Copt-level=2",
    "-Cpanic=abort",
    "-Crelocation-model=static",
    "-Cstrip=symbols",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,-Tguest/link.ld",
    "-Dwarnings",
];

fn main() {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")));
    let image = variable("OUT_DIR").join("payload");
    let output = Command::new(variable("RUSTC"))
        .current_dir(variable("CARGO_MANIFEST_DIR"))
        .args(FLAGS)
        .arg("-o")
        .arg(&image)
        .arg("guest/main.rs")
        .output()
        .expect("the compiler can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
