//! Sandboxed download, verify and unpack jobs

fn main() {}
