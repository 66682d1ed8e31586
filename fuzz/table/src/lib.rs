//! Every parser of untrusted bytes in the tree, under mutation.
//!
//! Principles:
//! 1. One table ([`targets::TARGETS`]) names them all; a test looks through the sources and fails for an entry that is missing.
//! 2. The same bytes every time: the seed of the mutations is fixed, so a finding of one machine is found on the next.
//! 3. A short search on every test run; a long one is the same program with more time, or an outside fuzzer with coverage:
//!
//! ```text
//! cargo test -p holdfast-fuzz                                  # about a second for each target
//! HOLDFAST_FUZZ_SECONDS=600 cargo test -p holdfast-fuzz vmm_   # longer, some targets
//! cargo run -p holdfast-fuzz --bin fuzz-one -- dns < packet    # one input again: a finding, or a file of yours
//! ```
//!
//! `fuzz-one TARGET` reads one input from standard input and ends by a panic (SIGABRT for the caller) when it finds something, which
//! is all that AFL++ (`afl-fuzz -i seeds -o findings -- fuzz-one dns`) and honggfuzz ask for; `fuzz-one --seeds TARGET FOLDER`
//! writes the seeds.
//!
//! Reading order: [`targets`] (what is tried), [`seeds`] (valid samples to begin from), [`mutate`], [`runner`], [`extra`] (parsers
//! without an entry of their own).
#![forbid(unsafe_code)]

pub mod extra;
pub mod mutate;
pub mod runner;
pub mod seeds;
pub mod targets;
