//! Compiles the API's `.proto` files into one descriptor set, from which answers and reports are shown as JSON.

use prost::Message;
use std::path::{Path, PathBuf};

fn main() {
    let root = Path::new("../../attest/api/proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(root, &mut files);
    files.sort();
    let descriptors = protox::compile(&files, [root])
        .unwrap_or_else(|error| panic!("proto files below {}: {error:?}", root.display()));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join("eve.fds"), descriptors.encode_to_vec())
        .unwrap_or_else(|error| panic!("descriptor set in {}: {error}", out.display()));
}

/// Adds every `.proto` file below `dir` to `files`.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for entry in entries {
        let path = entry.unwrap_or_else(|error| panic!("{}: {error}", dir.display())).path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ext| ext == "proto") {
            files.push(path);
        }
    }
}
