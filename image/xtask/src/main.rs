//! Build, run, test, bench, flash

fn main() {}
