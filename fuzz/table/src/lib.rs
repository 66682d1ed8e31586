//! Every parser of untrusted bytes in the tree, under mutation.
//!
//! Principles:
//! 1. One table ([`targets::TARGETS`]) names them all; a test looks through the sources and fails for an entry that is missing.
//! 2. The same bytes every time: the seed of the mutations is fixed and the number of inputs is in the table, so a finding of
//!    one machine is found on the next.
//! 3. A short search on every test run; a long one with coverage is the same entries under `cargo fuzz`.
//!
//! ```text
//! cargo test -p holdfast-fuzz                                  # the inputs of the table, some seconds in all
//! HOLDFAST_FUZZ_SECONDS=600 cargo test -p holdfast-fuzz vmm_   # longer, some targets
//! cargo run -p holdfast-fuzz --bin fuzz-one -- dns < packet    # one input again: a finding, or a file of yours
//!
//! cargo install cargo-fuzz                                     # guided by coverage, from the same seeds:
//! cargo run -p holdfast-fuzz --bin fuzz-one -- --corpus
//! cargo fuzz run --sanitizer none vmm_block -- -max_total_time=600
//! ```
//!
//! The programs of `cargo fuzz` are a workspace of their own in the folder above, made from the table
//! (`fuzz-one --programs`). They build with the stable toolchain and a C++ compiler; the address sanitizer
//! (`cargo +nightly fuzz run vmm_block`) wants a nightly one. Findings lie in `fuzz/artifacts/`; each becomes a test beside
//! the code, and a seed where it opens a new path.
//!
//! `fuzz-one TARGET` reads one input from standard input and ends by a panic (SIGABRT for the caller) when it finds something, which
//! is all that AFL++ (`afl-fuzz -i seeds -o findings -- fuzz-one dns`) and honggfuzz ask for; `fuzz-one --seeds TARGET FOLDER`
//! writes the seeds.
//!
//! Reading order: [`targets`] (what is tried), [`seeds`] (valid samples to begin from), [`mutate`], [`runner`], [`extra`] (parsers
//! without an entry of their own), [`cargo_fuzz`].
#![forbid(unsafe_code)]

pub mod cargo_fuzz;
pub mod extra;
pub mod mutate;
pub mod runner;
pub mod seeds;
pub mod targets;
