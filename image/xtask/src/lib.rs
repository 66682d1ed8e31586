//! Build, run, test, bench, flash
