//! Build, run, test, bench, flash: what `cargo xtask` does.
//!
//! Principles:
//! 1. Two commands are enough: `cargo xtask run` and `cargo xtask test`; whatever they need they install or build, saying so.
//! 2. An artefact appears by one rename: an interrupted command leaves nothing that the next one trips over.
//! 3. The same commit and keys give the same bytes, in any folder.
//! 4. Everything that takes long says how far it is.
//!
//! Reading order: [`packages`], [`workspace`], [`kernel`], [`programs`], [`keys`], [`assemble`], [`images`], [`sbom`], [`budgets`],
//! [`tests`] (with [`libtest`]), [`demo`], [`bench`], [`flash`], [`sitecmd`].
#![forbid(unsafe_code)]

pub mod assemble;
pub mod bench;
pub mod budgets;
pub mod demo;
pub mod flash;
pub mod images;
pub mod kernel;
pub mod keys;
pub mod libtest;
pub mod packages;
pub mod programs;
pub mod sbom;
pub mod sitecmd;
pub mod tests;
pub mod workspace;
